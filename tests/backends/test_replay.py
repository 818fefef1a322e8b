from collections.abc import Collection, Iterator

import numpy as np
import pytest

from backends import registry
from backends.base import Array, Gap, Ids, Session, Want
from backends.errors import Unsupported
from backends.reference import v7
from backends.reference.equations import Equation
from backends.reference.session import EquationSession
from backends.weights import Weights
from tests.backends.random_model import as_weights, random_rwkv7

ALL = Want(trace=("*",), logits="all")
IDS = np.random.default_rng(5).integers(0, 100, 70)  # more than one block of the recurrence
ATT = "blocks.1.att."


@pytest.fixture(scope="module")
def weights() -> Weights:
    return as_weights(random_rwkv7(C=64, N=32, L=3, V=100))


@pytest.fixture(scope="module")
def truth(weights: Weights) -> Iterator[Session]:
    with registry.open_session(registry.parse("reference-f64"), weights, 1) as session:
        yield session


@pytest.fixture(scope="module")
def trace(truth: Session) -> dict[str, Array]:
    return dict(truth.forward(IDS, want=ALL).trace)


def without(trace: dict[str, Array], gone: Collection[str]) -> dict[str, Array]:
    return {name: value for name, value in trace.items() if name not in gone}


def off(
    truth: Session, trace: dict[str, Array], ids: Ids = IDS, only: Collection[str] | None = None
) -> dict[str, float]:
    found = truth.replay(trace, ids, only=only)
    return {name: float(np.abs(value - trace[name]).max()) for name, value in found.items()}


def test_a_complete_trace_has_no_gaps(truth: Session, trace: dict[str, Array]) -> None:
    gaps = truth.gaps(trace)
    assert list(gaps) == list(trace)
    assert set(gaps.values()) == {Gap()}


def test_gaps_tell_what_is_spanned_and_what_lacks(truth: Session, trace: dict[str, Array]) -> None:
    gaps = truth.gaps(without(trace, {ATT + "w_lora", ATT + "w_raw", ATT + "ln1", "ln0", "blocks.0.att.v"}))
    assert gaps[ATT + "w"].spanned == (ATT + "w_lora", ATT + "w_raw")
    assert gaps[ATT + "xr"].spanned == (ATT + "ln1",)
    assert gaps[ATT + "v"] == Gap((), ("blocks.0.att.v",))
    assert gaps["blocks.0.att.ln1"].lacking == ("ln0",)
    assert gaps["blocks.0.att.xr"] == Gap()  # all that it reads was recorded
    assert gaps["blocks.2.att.w"] == Gap()


def test_a_gap_is_computed_over(truth: Session, trace: dict[str, Array]) -> None:
    gone = {ATT + name for name in ("shift", "w_lora", "w_raw", "k_raw", "a_lora", "state", "bonus", "ln_x")}
    errors = off(truth, without(trace, gone))
    assert ATT + "w" in errors
    assert ATT + "out" in errors
    assert gone.isdisjoint(errors)
    assert max(errors.values()) < 1e-12


def test_nothing_but_the_streams_still_tests_every_sublayer(truth: Session, trace: dict[str, Array]) -> None:
    streams = {
        name: value
        for name, value in trace.items()
        if name.endswith("res") or name in ("ln0", "blocks.0.att.v", "head")
    }
    errors = off(truth, streams)
    assert list(errors) == list(streams)
    assert max(errors.values()) < 1e-12


def test_only_limits_what_is_evaluated(truth: Session, trace: dict[str, Array]) -> None:
    assert list(off(truth, trace, only=[ATT + "w", "head", "nonsense"])) == [ATT + "w", "head"]
    assert off(truth, without(trace, {ATT + "xw"}), only=[ATT + "xw"]) == {}


def test_what_lacks_its_input_is_left_out(truth: Session, trace: dict[str, Array]) -> None:
    assert off(truth, {"head": trace["head"], ATT + "v": trace[ATT + "v"]}) == {}


def test_a_mistake_in_a_gap_is_found_behind_it_and_nowhere_else(weights: Weights, truth: Session) -> None:
    wrong = EquationSession(
        weights, "wrong", "f64", overrides={ATT + "w_raw": lambda w_lora, w2: 1.01 * v7.w_raw(w_lora, w2)}
    )
    recorded = dict(wrong.forward(IDS, want=ALL).trace)
    assert [n for n, error in off(truth, recorded).items() if error > 1e-9] == [ATT + "w_raw"]
    spanned = without(recorded, {ATT + "w_lora", ATT + "w_raw"})
    assert [n for n, error in off(truth, spanned).items() if error > 1e-9] == [ATT + "w"]


def test_replay_starts_from_a_state(truth: Session) -> None:
    before = truth.forward(IDS[:30], want=Want(state=True)).state
    later = dict(truth.forward(IDS[30:], before, ALL).trace)
    for gone in ((), (ATT + "state",)):
        recorded = without(later, gone)
        found = truth.replay(recorded, IDS[30:], before)
        assert max(float(np.abs(found[name] - recorded[name]).max()) for name in found) < 1e-12


@pytest.mark.parametrize(
    ("name", "equation", "words"),
    [
        ("r", lambda xr, receptance_weight: xr @ receptance_weight, "receptance_weight is transposed"),
        ("r", lambda xk, receptance_weight: xk @ receptance_weight.t(), "xk is read in the place of xr"),
        ("xr", lambda ln1, shift, x_r: shift + (ln1 - shift) * x_r, "ln1 and shift are exchanged"),
        ("w", lambda w_raw: v7.w(w_raw, 0 * w_raw), "w0 is left out"),
        ("k", lambda k_raw, a: k_raw * a, "k_a is taken as 1"),
        ("y", lambda state, r, heads: v7.y(state.transpose(-1, -2), r, heads), "state is transposed"),
        ("shift", lambda x_prev: x_prev, "x is read in the place of ln1"),
    ],
)
def test_a_misread_equation_is_among_the_misreadings(
    weights: Weights,
    truth: Session,
    name: str,
    equation: Equation,
    words: str,
) -> None:
    wrong = EquationSession(weights, "wrong", "f64", overrides={ATT + name: equation})
    recorded = dict(wrong.forward(IDS, want=ALL).trace)
    found = truth.misread(recorded, IDS, ATT + name)
    matching = [said for said, value in found.items() if np.abs(value - recorded[ATT + name]).max() < 1e-9]
    assert words in matching


def test_weights_that_are_not_square_may_lie_transposed_in_memory(truth: Session, trace: dict[str, Array]) -> None:
    found = truth.misread(trace, IDS, "blocks.0.ffn.k")
    assert {"key_weight lies transposed in memory", "key_weight is read as if it lay transposed in memory"} <= set(
        found
    )


def test_no_misreading_reads_what_is_computed_later(truth: Session, trace: dict[str, Array]) -> None:
    said = " ".join(truth.misread(trace, IDS, ATT + "bonus"))
    assert "out is read" not in said
    assert "bonus is read" not in said
    assert "k_raw is read in the place of k" in said


def test_no_misreadings_without_the_inputs_or_of_an_unknown_name(truth: Session, trace: dict[str, Array]) -> None:
    assert truth.misread(without(trace, {ATT + "xr"}), IDS, ATT + "r") == {}
    assert truth.misread(trace, IDS, "blocks.1.att.nonsense") == {}


def test_a_session_without_the_ability_says_so(weights: Weights) -> None:
    from tests.harness.fakes import Modest

    modest = Modest(weights)
    for ask in (lambda: modest.replay({}, IDS), lambda: modest.gaps([]), lambda: modest.misread({}, IDS, "head")):
        with pytest.raises(Unsupported, match="has no ability 'replay'"):
            ask()
