"""The catalogue and its code: every mistake changes what it says it changes, no equivalent does."""

import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch

from backends import fault_list, registry
from backends.base import Array, Ids, Sampler, Session, State, Want
from backends.checkpoint import open_checkpoint
from backends.errors import UsageError
from backends.fault_list import BATCH, CARRY, EQUATION, SAMPLER, TOKENIZER
from backends.reference import v7
from backends.reference.equations import BLOCK, Equation
from backends.reference.faults import EQUIVALENTS, FAULTS, PAIRS, open_fault, plant
from backends.reference.faults.feeding import HANDOVERS, REQUESTS, TOKENIZERS
from backends.reference.forms import FORMS, varied
from backends.reference.session import EquationSession
from backends.tokenizer import Bytes
from backends.weights import Weights
from tests.harness.shorts import short_names

ALL = Want(logits="all", state=True, trace=("*",))
TOKENS = np.frombuffer(
    b"def fibonacci(n):\n    if n < 2:\n        return n  # the Eiffel tower", dtype=np.uint8
).astype(np.int64)
SEVEN = {name: fault for name, fault in FAULTS.items() if "7" in fault.entry.versions}
BY_EQUATION = [name for name, fault in SEVEN.items() if fault.entry.kind == EQUATION]
FORMS_OF_SEVEN = [name for name, fault in EQUIVALENTS.items() if "7" in fault.entry.versions]


@pytest.fixture(scope="module")
def weights() -> Iterator[Weights]:
    with open_checkpoint("conformance") as opened:
        yield opened


def exact(weights: Weights, overrides: Mapping[str, Equation] | None = None) -> EquationSession:
    """Equations in float64, so that a difference is no rounding."""
    return EquationSession(weights, "exact", "f64", 1, overrides=overrides)


@pytest.fixture(scope="module")
def sound(weights: Weights) -> Array:
    return logits(exact(weights))


def logits(session: Session, tokens: Ids = TOKENS) -> Array:
    found = session.forward(tokens, want=Want(logits="all")).logits
    assert found is not None
    return found


def opened(weights: Weights, argument: str, dtype: str = "f32") -> Session:
    return registry.open_session(registry.parse(f"fault:{argument}@{dtype}"), weights, threads=1)


# ---- the catalogue ------------------------------------------------------------------------------


def test_every_row_has_code_and_every_code_has_a_row() -> None:
    code = [*plant.filed(), *HANDOVERS, *TOKENIZERS, *REQUESTS]
    assert sorted(code) == sorted([*fault_list.FAULTS, *fault_list.EQUIVALENTS])
    assert set(FAULTS) == set(fault_list.FAULTS)
    assert set(EQUIVALENTS) == set(fault_list.EQUIVALENTS) == set(FORMS)


def test_the_catalogue_is_as_large_as_it_claims_and_says_where_each_was_met() -> None:
    assert len(FAULTS) >= 60
    assert len(EQUIVALENTS) >= 6
    assert len(PAIRS) >= 8
    rows = [fault.entry for fault in (*FAULTS.values(), *EQUIVALENTS.values())]
    assert len({row.summary for row in rows}) == len(rows)
    for row in rows:
        assert re.fullmatch(r"[a-z0-9_.-]+", row.name), "a name must fit into a subject, where + @ and ? part"
        assert row.summary
        assert not row.summary.endswith(".")
        for place in row.seen_in:
            assert re.fullmatch(r"[\w.-]+/[\w.-]+#\d+", place) or "#" not in place
    assert all(FAULTS[name].entry.seen_in is not None for pair in PAIRS for name in pair)
    assert all(one != other for one, other in PAIRS)


def test_a_row_names_a_tensor_that_exists() -> None:
    for fault in (*FAULTS.values(), *EQUIVALENTS.values()):
        assert fault.entry.equivalent == (fault.name in EQUIVALENTS)
        if fault.entry.kind not in (TOKENIZER, SAMPLER):
            assert all(fault.tensor in short_names(version) for version in fault.entry.versions), fault.name
        else:
            assert fault.tensor == fault.entry.kind


def test_both_lists_are_found_by_name() -> None:
    assert fault_list.find("w-v6") is fault_list.FAULTS["w-v6"]
    assert fault_list.find("w-softplus") is fault_list.EQUIVALENTS["w-softplus"]
    assert fault_list.find("w-v8") is None


def test_listing_the_faults_loads_no_torch() -> None:
    code = "import sys, backends.fault_list; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_code_without_a_row_is_refused() -> None:
    with pytest.raises(AssertionError, match="no-such-fault has no row"):
        plant.plant("no-such-fault")(v7.w)


def test_overrides_match_tensors_of_the_model(weights: Weights) -> None:
    """A pattern that matches nothing would plant nothing."""
    model = exact(weights).model
    for name in (*BY_EQUATION, *FORMS_OF_SEVEN):
        for pattern, equation in plant.overrides(name, "7").items():
            model.overrides = {pattern: equation}
            spoiled = {full for full in model.names() if model.equation(full, _never) is not _never}
            assert spoiled, f"{name}: {pattern}"


def _never() -> torch.Tensor:
    raise AssertionError


# ---- what the equations do ----------------------------------------------------------------------


@pytest.mark.parametrize("name", BY_EQUATION)
def test_a_mistake_changes_the_logits(weights: Weights, sound: Array, name: str) -> None:
    found = logits(exact(weights, FAULTS[name].overrides()))
    assert found.shape == sound.shape
    assert not np.abs(found - sound).max() < 1e-5  # a NaN is a change too


@pytest.mark.parametrize("name", FORMS_OF_SEVEN)
def test_an_equivalent_does_not(weights: Weights, sound: Array, name: str) -> None:
    found = logits(exact(weights, EQUIVALENTS[name].overrides()))
    allowed = {"w-0.606531": 1e-6, "kk-root-1e-12": 1e-6}.get(name, 1e-8)  # six digits; 1e-12 beside a norm of 4e-3
    assert np.abs(found - sound).max() < allowed
    assert name == "kk-norm-plus-1e-12" or not np.array_equal(found, sound) or name in ("ffn-clamp", "ln-x-divided")


def test_the_value_residual_of_the_layer_before(weights: Weights) -> None:
    session = exact(weights, FAULTS["v-residual-previous"].overrides())
    other = exact(weights, FAULTS["v-residual-previous"].overrides())
    trace = session.forward(TOKENS, want=ALL).trace
    other.forward(TOKENS[::-1].copy(), want=ALL)  # sessions must not hand values to each other
    tensors = {name: torch.from_numpy(value) for name, value in trace.items()}
    att, weight = "blocks.2.att.", {n: weights.get(f"blocks.2.att.{n}", "f64") for n in ("v0", "v2")}
    expected = v7.v(tensors[att + "v_raw"], tensors["blocks.1.att.v"], tensors[att + "v_lora"], **weight)
    assert torch.allclose(tensors[att + "v"], expected, atol=1e-12)
    assert np.array_equal(session.forward(TOKENS, want=ALL).trace[att + "v"], trace[att + "v"])


def test_reading_the_old_state_reaches_across_blocks_and_calls(weights: Weights) -> None:
    session = exact(weights, FAULTS["y-old-state"].overrides())
    tokens = np.resize(TOKENS, 2 * BLOCK + 3)
    one = session.forward(tokens[:BLOCK], want=ALL)
    two = session.forward(tokens[BLOCK:], one.state, ALL)
    whole = {name: np.concatenate([value, two.trace[name]], axis=1) for name, value in one.trace.items()}
    state, r = (torch.from_numpy(whole[f"blocks.1.att.{name}"]) for name in ("state", "r"))
    before = torch.cat([torch.zeros_like(state[:, :1]), state[:, :-1]], dim=1)
    assert np.allclose(whole["blocks.1.att.y"], v7.y(before, r, 2).numpy(), atol=1e-12)


def test_the_first_token_is_known_by_the_zeros_before_it(weights: Weights) -> None:
    session = exact(weights, FAULTS["shift-first-token"].overrides())
    one = session.forward(TOKENS[:5], want=ALL)
    two = session.forward(TOKENS[5:], one.state, ALL)
    assert np.array_equal(one.trace["blocks.0.att.shift"][:, 0], one.trace["blocks.0.att.ln1"][:, 0])
    assert np.array_equal(two.trace["blocks.0.att.shift"][:, 0], one.trace["blocks.0.att.ln1"][:, -1])


def test_a_batch_leaks_from_its_first_row_only(weights: Weights) -> None:
    session = exact(weights, FAULTS["state-batch-leak"].overrides())
    assert FAULTS["state-batch-leak"].entry.kind == BATCH
    alone, sound = logits(session), logits(exact(weights))
    assert np.array_equal(alone, sound)
    both = logits(session, np.stack([TOKENS, TOKENS[::-1]]))
    assert np.allclose(both[0], sound[0], atol=1e-10)
    assert np.abs(both[1] - logits(exact(weights), TOKENS[::-1].copy())[0]).max() > 0.01


# ---- between two calls --------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in HANDOVERS if name in SEVEN])
def test_a_state_is_spoiled_on_its_way_and_the_one_passed_in_is_not(weights: Weights, name: str) -> None:
    assert FAULTS[name].entry.kind == CARRY
    session, honest = opened(weights, name), opened(weights, "ffn-clamp")
    assert np.array_equal(logits(session), logits(honest))  # one call: nothing is handed over
    state = session.forward(TOKENS[:30], want=Want(state=True)).state
    before = {part: value.copy() for part, value in session.export_state(state).parts().items()}
    spoiled, right = (s.forward(TOKENS[30:], state, Want(logits="all")).logits for s in (session, honest))
    assert np.abs(spoiled - right).max() > 1e-4  # type: ignore[operator]
    assert all(np.array_equal(before[part], value) for part, value in session.export_state(state).parts().items())


def test_what_is_dropped_starts_from_zero_and_the_rest_stays(weights: Weights) -> None:
    session, honest = opened(weights, "edge-shift"), opened(weights, "ffn-clamp")
    state = honest.export_state(honest.forward(TOKENS[:30], want=Want(state=True)).state)
    without = State(np.zeros_like(state.att_shift), state.wkv, state.ffn_shift)
    spoiled = session.forward(TOKENS[30:], session.import_state(state)).logits
    assert np.array_equal(spoiled, honest.forward(TOKENS[30:], honest.import_state(without)).logits)  # type: ignore[arg-type]


def test_layers_and_shifts_change_places(weights: Weights) -> None:
    honest = opened(weights, "ffn-clamp")
    state = honest.export_state(honest.forward(TOKENS[:30], want=Want(state=True)).state)
    swapped = {
        "edge-layers": State(state.att_shift, state.wkv[[1, 0, 2]], state.ffn_shift),
        "edge-shifts-swapped": State(state.ffn_shift, state.wkv, state.att_shift),
        "edge-state-transposed": State(state.att_shift, np.swapaxes(state.wkv, -1, -2), state.ffn_shift),
        "edge-heads": State(state.att_shift, state.wkv[:, :, ::-1], state.ffn_shift),
    }
    for name, other in swapped.items():
        session = opened(weights, name)
        spoiled = session.forward(TOKENS[30:], session.import_state(state)).logits
        expected = honest.forward(TOKENS[30:], honest.import_state(other)).logits
        assert np.allclose(spoiled, expected, atol=1e-5), name  # type: ignore[arg-type]


# ---- tokenizer and sampler ----------------------------------------------------------------------

TEXT = " caf\u00e9\r\n \U0001f600 "
BYTES = list(TEXT.encode())


@pytest.mark.parametrize(
    ("name", "ids", "back"),
    [
        ("tokenizer-ascii", list(b" caf?\r\n ? "), b" caf?\r\n ? "),
        ("tokenizer-id-shift", [i + 1 for i in BYTES], bytes(BYTES)),
        ("tokenizer-bos", [0, *BYTES], b"\0" + bytes(BYTES)),
        ("tokenizer-crlf", list(TEXT.replace("\r", "").encode()), TEXT.replace("\r", "").encode()),
        ("tokenizer-strip", list(TEXT.strip().encode()), TEXT.strip().encode()),
        ("tokenizer-lossy", BYTES, " caf\ufffd\ufffd\r\n \ufffd\ufffd\ufffd\ufffd ".encode()),
    ],
)
def test_a_tokenizer_goes_wrong_as_said(weights: Weights, name: str, ids: list[int], back: bytes) -> None:
    tokenizer = opened(weights, name).tokenizer
    assert tokenizer is not None
    assert tokenizer.name == "bytes"
    assert tokenizer.encode(TEXT) == ids
    assert tokenizer.decode_bytes(ids) == back
    assert Bytes().encode(TEXT) == BYTES  # the sound one inside is shared and stays sound


def generated(session: Session, sampler: Sampler | None = None, stop: tuple[int, ...] = ()) -> list[int]:
    return [int(step[0]) for step in session.generate(TOKENS, sampler, 8, stop)]


def test_a_choice_goes_wrong_as_said(weights: Weights) -> None:
    honest = opened(weights, "ffn-clamp")
    right = generated(honest)
    assert generated(opened(weights, "w-softplus")) == right  # what leaves generation alone
    assert generated(opened(weights, "sampler-one-short")) == right[:-1]
    repeated = [int(step[0]) for step in honest.generate(np.append(TOKENS, TOKENS[-1]), None, 8)]
    assert generated(opened(weights, "sampler-repeat-last")) == repeated
    second = opened(weights, "sampler-off-by-one")
    ranking = np.argsort(-logits(honest)[0, -1])
    assert generated(second)[0] == ranking[1]
    stale = generated(opened(weights, "sampler-stale"))
    assert stale[0] == stale[1] == right[0]


@pytest.mark.parametrize("name", ["sampler-penalty", "sampler-temperature"])
def test_a_sampler_sees_other_logits(weights: Weights, name: str) -> None:
    seen: list[Array] = []

    def always_seven(found: Array) -> Ids:
        seen.append(found)
        return np.full(len(found), 7)

    honest: list[Array] = []

    def recorded(found: Array) -> Ids:
        honest.append(found)
        return np.full(len(found), 7)

    generated(opened(weights, "ffn-clamp"), recorded)
    assert generated(opened(weights, name), always_seven) == [7] * 8
    for step, (spoiled, right) in enumerate(zip(seen, honest, strict=True)):
        penalty = np.zeros_like(right)
        penalty[:, 7] = step
        expected = right - penalty if name == "sampler-penalty" else right / 2
        assert np.allclose(spoiled, expected)


def test_stops_are_passed_on(weights: Weights) -> None:
    session = opened(weights, "sampler-penalty")
    free = generated(session)
    assert generated(session, stop=(free[3],)) == free[: free.index(free[3])]


# ---- as a backend -------------------------------------------------------------------------------


def test_float64_shows_a_mistake_without_any_rounding(weights: Weights) -> None:
    found = logits(opened(weights, "bonus-raw-key", "f64"))
    assert found.dtype == np.float64
    assert np.array_equal(found, logits(exact(weights, FAULTS["bonus-raw-key"].overrides())))


def test_a_fault_says_what_it_is(weights: Weights) -> None:
    info = opened(weights, "w-v6+y-old-state", "bf16").info
    assert (info.backend, info.dtype) == ("fault", "bf16")
    assert info.notes[0].startswith("planted: the decay of v6")
    assert len(info.notes) == 2
    assert "replay" not in info.abilities
    assert "trace" in info.abilities


def test_several_are_planted_at_once(weights: Weights, sound: Array) -> None:
    alone = [logits(opened(weights, name)) - sound for name in ("bonus-raw-key", "bonus-raw-value")]
    both = logits(opened(weights, "w-no-tanh+ffn-row-zero")) - sound
    single = [logits(opened(weights, name)) - sound for name in ("w-no-tanh", "ffn-row-zero")]
    assert all(np.abs(both - one).max() > 1e-3 for one in single)
    assert not np.allclose(alone[0], alone[1])


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_a_pair_is_more_than_either(weights: Weights, pair: tuple[str, str]) -> None:
    def run(name: str) -> Array:
        session = opened(weights, name)
        out = session.forward(TOKENS[:30], want=Want(logits="all", state=True))
        again = session.forward(TOKENS[30:], out.state, Want(logits="all"))
        return np.concatenate([out.logits, again.logits], axis=1)

    patterns = [set(plant.overrides(name, "7")) for name in pair]
    assert not patterns[0] & patterns[1], "one would replace the other"
    both, one, other = run("+".join(pair)), run(pair[0]), run(pair[1])
    assert all(np.abs(both - single).max() > 1e-4 for single in (one, other))


def test_low_precision_is_rounded_by_seed(weights: Weights, sound: Array) -> None:
    zero, again, one = (
        logits(opened(weights, name, "bf16")) for name in ("ffn-clamp", "ffn-clamp?seed=0", "ffn-clamp?seed=1")
    )
    assert np.array_equal(zero, again)
    assert not np.array_equal(zero, one)
    assert 1e-3 < np.abs(zero - sound).max() < 0.3
    assert np.array_equal(logits(opened(weights, "ffn-clamp")), logits(opened(weights, "ffn-clamp?seed=1")))


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("", r"takes NAME\[\+NAME\.\.\.\]"),
        ("?seed=1", "takes NAME"),
        ("w-v6?seed=x", "takes NAME"),
        ("w-v7", "unknown fault 'w-v7'. Did you mean w-v6"),
        ("w-v6+", "unknown fault ''"),
        ("maa-order", "fault 'maa-order' is one of RWKV 6; this checkpoint is RWKV-7"),
    ],
)
def test_a_wrong_name_is_a_usage_error(weights: Weights, argument: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        open_fault(weights, argument=argument)


# ---- equivalent forms ---------------------------------------------------------------------------


def test_honest_rows_are_written_in_one_form_after_another(weights: Weights) -> None:
    rows = np.stack([TOKENS] * 7)
    trace = exact(weights, varied(2)).forward(rows, want=ALL).trace
    plain = exact(weights).forward(TOKENS, want=ALL).trace
    scale = 0.606531
    s = torch.from_numpy(plain["blocks.0.att.w_raw"]) + weights.get("blocks.0.att.w0", "f64")
    rounded = (-scale * s.sigmoid()).exp().numpy()[0]
    forms = [plain["blocks.0.att.w"][0], rounded, plain["blocks.0.att.w"][0]]  # softplus: equal but for the last bit
    for row in range(7):
        assert np.allclose(trace["blocks.0.att.w"][row], forms[(2 + row) % 3], atol=1e-12)
    assert np.abs(trace["head"] - plain["head"]).max() < 1e-5


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_a_single_row_takes_the_form_of_its_seed(weights: Weights, sound: Array, seed: int) -> None:
    found = logits(exact(weights, varied(seed)))
    assert np.abs(found - sound).max() < 1e-6
    assert np.array_equal(found, sound) == (seed == 0)
