"""Diagnosis: the right mistake is named, and nobody is accused of what he did not do."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from backends import registry
from backends.base import Session, Want
from backends.checkpoint import open_checkpoint
from backends.errors import BackendError
from backends.fault_list import FAULTS, PAIRS
from backends.reference.faults import FAULTS as PLANTED
from backends.reference.faults import FaultSession
from backends.reference.rounding import honest
from backends.reference.session import VERSIONS, EquationSession
from backends.registry import open_session, parse
from backends.weights import Weights
from harness import suspects
from harness.diagnose import EDGE, TOKENS, Clinic
from harness.diagnosis import Diagnosis, listed, sentences, what, where
from harness.formulas import formula, formulas
from harness.ledger import encode
from harness.replay import Out
from harness.suite import prompts
from harness.suspects import Feed, Lineup, Suspect, distance, finite_prefix
from tests.harness.conftest import Command
from tests.harness.outside import MISTAKES
from tests.harness.stub import measured, small_suites

SEED = 11


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def weights() -> Iterator[Weights]:
    with open_checkpoint("conformance") as found:
        yield found


@pytest.fixture(scope="module")
def clinic(weights: Weights) -> Clinic:
    def opened(name: str) -> Session:
        return open_session(parse(name), weights, 1)

    truth = opened("reference-f64")
    tokens = encode(prompts()["long"].text, truth.tokenizer, 256)[:TOKENS]
    return Clinic(opened, truth, tokens, EDGE, tokenizer=truth.tokenizer)


def port(weights: Weights, *names: str, dtype: str = "f32") -> Session:
    """A program with known mistakes that rounds otherwise than the catalogue's own."""
    session = FaultSession(weights, [PLANTED[name] for name in names], dtype, 1, seed=SEED)
    if dtype == "f32":
        session.model.rounding = honest("f32", SEED, VERSIONS["7"].kept_f32)
    return session


def outsider(weights: Weights, name: str) -> Session:
    rounding = honest("f32", SEED, VERSIONS["7"].kept_f32)
    return EquationSession(weights, name, "f32", 1, rounding, "", MISTAKES[name], shown="f32")


def blind(session: Session) -> Session:
    session.info = replace(session.info, abilities=session.info.abilities - {"trace"})
    return session


def shown() -> list[str]:
    kinds = ("equation", "batch", "carry")
    return [name for name, entry in FAULTS.items() if entry.kind in kinds and "7" in entry.versions]


def test_from_f32_logits_the_right_fault_comes_first(clinic: Clinic, weights: Weights) -> None:
    first, explained = [], []
    for name in shown():
        line = clinic.examine(blind(port(weights, name))).lineup
        assert line is not None
        first += [name] if line.best and line.best.names == (name,) else []
        explained += [name] if line.explained else []
    assert len(first) >= 0.95 * len(shown()), set(shown()) - set(first)
    assert len(explained) >= 0.95 * len(shown()), set(shown()) - set(explained)


def test_from_bf16_logits_what_can_be_seen_comes_first(clinic: Clinic, weights: Weights) -> None:
    seen, wrong = 0, []
    for name in shown()[::6]:
        found = clinic.examine(blind(port(weights, name, dtype="bf16")))
        assert found.lineup is not None
        seen += found.lineup.astray
        if found.cause != (name,) and (found.lineup.astray or found.cause):
            wrong.append((name, found.cause))
    assert seen >= 12
    assert wrong == []


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_outside_the_catalogue_is_none_of_the_known(clinic: Clinic, weights: Weights, name: str) -> None:
    found = clinic.examine(blind(outsider(weights, name)))
    assert found.cause == ()
    assert found.astray
    assert what(found).startswith("None of the known mistakes explains it")
    assert what(found).endswith("record named tensors: a trace tells which one is wrong.")


@pytest.mark.parametrize("name", ["gate-through-silu", "static-value-residual", "decay-squared"])
def test_a_trace_names_the_tensor_of_a_mistake_outside_the_catalogue(
    clinic: Clinic, weights: Weights, name: str
) -> None:
    found = clinic.examine(outsider(weights, name))
    (pattern,) = MISTAKES[name]
    assert found.cause == ()
    assert found.tensor == pattern.split(".", 2)[2]
    assert formula(found.tensor) in what(found)


@pytest.mark.parametrize("pair", PAIRS[:4] + PAIRS[5:7], ids="+".join)
def test_a_known_pair_is_named(clinic: Clinic, weights: Weights, pair: tuple[str, str]) -> None:
    assert set(clinic.examine(blind(port(weights, *pair))).cause) == set(pair)


def test_an_unknown_pair_is_found_by_combining(clinic: Clinic, weights: Weights) -> None:
    pair = ("bonus-missing", "out-no-gate")
    assert clinic.examine(blind(port(weights, *pair))).cause == ()
    assert set(clinic.examine(blind(port(weights, *pair)), thorough=True).cause) == set(pair)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(
    ("name", "layer", "token"),
    [("w-v6", 0, 0), ("v-residual-previous", 2, 0), ("edge-state-transposed", 0, EDGE), ("ffn-silu", 0, 0)],
)
def test_a_trace_names_tensor_layer_token_and_cause(
    clinic: Clinic, weights: Weights, name: str, layer: int, token: int, dtype: str
) -> None:
    found = clinic.examine(port(weights, name, dtype=dtype))
    assert found.first is not None
    assert (found.first.short, found.first.layer, found.first.token) == (FAULTS[name].tensor, layer, token)
    assert found.cause == (name,)
    assert found.data()["sentences"][0].startswith(
        f"Layer {layer}, token {token}: `{FAULTS[name].tensor}` is the first"
    )


def test_a_trace_alone_names_the_cause_by_replay(clinic: Clinic, weights: Weights) -> None:
    found = clinic.examine(port(weights, "k-a-plus", dtype="bf16"), faults=False)
    assert (found.cause, found.by, found.lineup) == (("k-a-plus",), "replay", None)
    assert "planted, it gives that tensor to within" in what(found)


def test_a_division_by_zero_is_met_again(clinic: Clinic, weights: Weights) -> None:
    found = clinic.examine(port(weights, "kk-no-floor"))
    assert found.cause == ("kk-no-floor",)
    assert "is not finite although its inputs are" in where(found)
    logits = clinic.examine(blind(port(weights, "kk-no-floor")))
    assert "not finite from the first token on" in where(logits)
    assert logits.cause == ()


def test_rows_that_leak_into_each_other_are_seen_though_every_tensor_is_right(clinic: Clinic, weights: Weights) -> None:
    found = clinic.examine(port(weights, "state-batch-leak"))
    assert found.first is None
    assert found.cause == ("state-batch-leak",)
    assert where(found).startswith("All ")


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize(
    ("subject", "held", "cause"),
    [
        ("honest:5?form=official&state=bf16@bf16", "bf16", ("state-bf16",)),
        ("honest:6?form=plain&state=bf16@bf16", "bf16", ("state-bf16",)),
        ("honest:7?state=f16@bf16", "f16", ()),
    ],
)
def test_a_state_in_low_precision_is_named_by_its_entries(
    clinic: Clinic, weights: Weights, subject: str, held: str, cause: tuple[str, ...], traced: bool
) -> None:
    with open_session(parse(subject), weights, 1) as session:
        found = clinic.examine(session if traced else blind(session), faults=not traced)
    assert (found.held, found.cause, found.tensor) == (held, cause, "att.state")
    assert found.astray
    assert "where float32 has 24; keep it in float32; compare with att.state =" in what(found)
    assert found.first is not None or where(found).startswith(f"The WKV state is held in {held}: every entry")


@pytest.mark.parametrize(("rounds", "held"), [(True, "bf16"), (False, "")])
def test_another_program_that_keeps_its_state_in_bf16_is_told_so(
    clinic: Clinic, weights: Weights, monkeypatch: pytest.MonkeyPatch, rounds: bool, held: str
) -> None:
    """torch-compile, which has nothing in common with the equations, with its state as it is and rounded."""
    session: Any = open_session(parse("torch-compile@bf16"), weights, 1)
    forward, export, take = session._forward, session.export_state, session.import_state

    def narrow(state: Any) -> Any:
        found = export(state)
        rounded = torch.from_numpy(found.wkv).bfloat16().float().numpy()
        return take(replace(found, wkv=rounded))

    def rounding(tokens: Any, state: Any, want: Want) -> Any:
        out = forward(tokens, state, want)
        return replace(out, state=narrow(out.state)) if want.state else out

    if rounds:
        monkeypatch.setattr(session, "_forward", rounding)
    found = clinic.examine(session)
    assert (found.held, found.astray) == (held, rounds)
    assert ("The WKV state is held in bf16" in where(found)) is rounds


@pytest.mark.parametrize("seed", [0, 3])
def test_the_official_semantics_with_a_float32_state_have_nothing_to_explain(
    clinic: Clinic, weights: Weights, seed: int
) -> None:
    with open_session(parse(f"honest:{seed}?form=official@bf16"), weights, 1) as session:
        found = clinic.examine(session)
    assert (found.astray, found.held, found.first) == (False, "", None)


@pytest.mark.parametrize("name", ["edge-state-bf16", "edge-shift", "edge-layers"])
def test_a_mistake_between_two_calls_is_named_by_replay_in_bf16(clinic: Clinic, weights: Weights, name: str) -> None:
    found = clinic.examine(port(weights, name, dtype="bf16"), faults=False)
    assert found.first is not None
    assert (found.first.token, found.cause, found.by) == (EDGE, (name,), "replay")


def test_what_is_handed_over_is_not_guessed_from_part_of_it(clinic: Clinic) -> None:
    assert (
        clinic._handed_over("edge-state", {"blocks.0.att.state": np.zeros((TOKENS, 1))}, "blocks.0.att.state") is None
    )


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_an_honest_program_has_nothing_to_explain(clinic: Clinic, weights: Weights, dtype: str) -> None:
    with open_session(parse(f"honest:5@{dtype}"), weights, 1) as session:
        found = clinic.examine(session)
    assert not found.astray
    assert sentences(found) == [
        f"The logits are as near to the truth as honest {dtype} rounding; there is nothing to explain.", "",
    ]  # fmt: skip
    assert found.data()["explained"] is False


def test_a_backend_that_breaks_is_said_not_raised(clinic: Clinic, weights: Weights) -> None:
    class Broken(EquationSession):
        def _forward(self, tokens: Any, state: Any, want: Want) -> Any:
            raise BackendError("the device is gone")

    session = blind(Broken(weights, "broken", "f32", 1))
    assert where(clinic.examine(session)) == "Nothing could be examined: the device is gone."


def test_a_backend_that_gives_no_logits_is_said(clinic: Clinic, weights: Weights) -> None:
    class Mute(EquationSession):
        def _forward(self, tokens: Any, state: Any, want: Want) -> Any:
            return replace(super()._forward(tokens, state, want), logits=None)

    assert "mute gave no logits" in where(clinic.examine(blind(Mute(weights, "mute", "f32", 1))))


def test_only_the_last_logits_are_enough(clinic: Clinic, weights: Weights) -> None:
    session = blind(port(weights, "bonus-missing"))
    session.info = replace(session.info, abilities=frozenset())
    assert clinic.examine(session).cause == ("bonus-missing",)


def test_a_reference_that_cannot_replay_leaves_the_logits(clinic: Clinic, weights: Weights) -> None:
    truth = clinic.opened("reference-f64")
    truth.info = replace(truth.info, abilities=truth.info.abilities - {"replay"})
    weak = replace(clinic, truth=truth, _bands={})
    found = weak.examine(port(weights, "bonus-missing"))
    assert found.first is None
    assert found.cause == ("bonus-missing",)
    assert "reference that can replay" in found.problem


# ---- the parts ----------------------------------------------------------------------------------


def lineup(truth: float, *rows: tuple[str, float]) -> Lineup:
    return Lineup(truth, 1.0, tuple(Suspect(tuple(name.split("+")), far) for name, far in rows))


def test_a_lineup_explains_only_what_is_clear() -> None:
    assert lineup(100.0, ("w-v6", 2.0), ("w-log", 90.0)).explained
    assert not lineup(100.0, ("w-v6", 6.0), ("w-log", 90.0)).explained
    assert lineup(1000.0, ("w-v6", 6.0), ("w-log", 90.0)).explained
    assert not lineup(1000.0, ("w-v6", 6.0), ("w-log", 9.0)).explained
    assert not lineup(1.5, ("w-v6", 0.1)).explained
    assert not lineup(100.0).explained
    assert lineup(100.0).nearer == lineup(100.0).margin == 0.0
    assert lineup(float("nan")).astray
    assert lineup(100.0, ("w-v6", 0.0)).nearer == lineup(100.0, ("w-v6", 2.0)).margin == float("inf")


def test_the_rival_is_none_of_the_pairs_of_the_cause() -> None:
    line = lineup(1000.0, ("w-v6", 1.0), ("w-v6+w-log", 1.1), ("y-scaled", 50.0))
    found = Diagnosis("f32", cause=("w-v6",), by="logits", lineup=line)
    assert found.next_best == ("y-scaled", 50.0)
    assert found.data()["next"] == {"cause": "y-scaled", "times": 50.0}
    assert "down to the rounding floor; the next best, `y-scaled`, is 50 times farther" in what(found)
    alone = Diagnosis("f32", cause=("w-v6",), by="logits", lineup=lineup(1000.0, ("w-v6", 20.0)))
    assert "the logits come 50 times nearer" in what(alone)
    assert alone.data()["next"] is None


def test_the_nearest_is_named_where_none_explains() -> None:
    found = Diagnosis("f32", lineup=lineup(100.0, ("g-tanh", 20.0), ("w-v6", 99.0)))
    assert "the nearest is `g-tanh`, which comes 5 times nearer than the truth" in what(found)


def test_sentences_of_a_partial_trace() -> None:
    first = Out("blocks.1.att.y", 3, 50.0, 60.0)
    found = Diagnosis("f32", first=first, gap=("blocks.1.att.state",), lacking=tuple("abcdef"), hints=("y is late.",))
    assert "(blocks.1.att.state lies between it and what was recorded, and may be it too)" in where(found)
    assert "explains it, but: y is late; compare with att.y" in what(found)
    assert what(found).endswith("record a, b, c, d and 2 more too.")
    free = replace(found, replayed=False)
    assert "`att.y` is the first recorded tensor that is away from its expected value" in where(free)
    assert where(free).endswith("): its error is 50 times that of honest f32 rounding.")
    assert what(free).startswith("What it reads was as expected")
    outside = replace(found, first=Out("head", 3, float("inf"), 60.0), gap=())
    assert where(outside).startswith("Token 3: `head` is the first recorded tensor that is wrong by itself: it is not")


def test_sentences_without_logits() -> None:
    assert where(Diagnosis("f32")) == "Nothing could be examined: there are neither logits nor named tensors."
    right = Diagnosis("bf16", traced=7, untested=2, lacking=("blocks.0.att.w",))
    assert where(right) == "All 7 recorded tensors follow from what they read, within honest bf16 rounding."
    assert what(right) == "2 tensors were not tested: record blocks.0.att.w."
    assert listed(("a",)) == "a"


def test_distances_look_at_what_both_have() -> None:
    logits = np.arange(12.0).reshape(1, 3, 4)
    assert distance(logits + 1, logits) == 1.0
    assert distance(logits[:, -1:] + 2, logits) == 2.0
    assert distance(logits[..., :2], logits) == float("inf")
    broken = logits + 1
    broken[0, 1] = np.nan
    assert finite_prefix(broken) == 1
    assert distance(broken, logits) == 1.0
    broken[0, 0, 0] = np.inf
    assert distance(broken, logits) == float("inf")
    assert distance(logits, broken) == float("inf")


def test_a_feed_knows_which_faults_can_show() -> None:
    one, two = Feed(np.zeros((1, 4), int), 0), Feed(np.zeros((2, 4), int), 2)
    assert [one.covers(kind) for kind in ("equation", "carry", "batch", "tokenizer")] == [True, False, False, False]
    assert [two.covers(kind) for kind in ("equation", "carry", "batch", "sampler")] == [True, True, True, False]


def test_faults_that_cannot_be_opened_are_left_out(clinic: Clinic) -> None:
    def opened(name: str) -> Session:
        if name.startswith("fault:") and name != "fault:bonus-missing@f32":
            raise BackendError("not for this version")
        return clinic.opened(name)

    few = suspects.Suspects(opened, clinic.truth, Feed(clinic.tokens[None], 0))
    line = few.line_up(few.truth + 1, "f64")
    assert [suspect.names for suspect in line.suspects] == [("bonus-missing",)]


def test_every_named_tensor_has_its_formula(clinic: Clinic) -> None:
    trace = clinic.truth.forward([1], want=Want(trace=("*",))).trace
    assert list(formulas()) == list(dict.fromkeys(Out(name, 0, 0, 0).short for name in _ordered(trace)))
    assert formula("no such tensor") == ""


def _ordered(trace: Any) -> list[str]:
    """As evaluated, of layer 1, which has every tensor."""
    return [name for name in trace if not name.startswith("blocks.") or name.startswith("blocks.1.")]


# ---- the commands -------------------------------------------------------------------------------


def test_the_command_names_a_fault(command: Command) -> None:
    found = command("diagnose", "--backend", "fault:bonus-missing", "--backend", "torch-compile")
    assert found.code == 1
    assert "fault:bonus-missing: Layer 0, token 0: `att.bonus` is the first" in found.out
    assert "torch-compile: The logits are as near to the truth as honest f32 rounding" in found.out


def test_the_command_from_logits_only_as_json(command: Command) -> None:
    found = command("diagnose", "--backend", "fault:bonus-missing", "--logits-only", "--json")
    assert found.code == 1
    assert '"cause": "bonus-missing"' in found.out
    assert '"ratio": null' in found.out


def test_the_command_refuses_what_does_not_exist(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("diagnose", "--backend", "fault:no-such").code == 2
    assert command("diagnose", "--backend", "torch-compile", "--model", "/no/such.pth").code == 3
    monkeypatch.setattr(registry.Backend, "available", lambda row: "no such device")
    assert "torch-compile cannot run here: no such device" in command("diagnose", "--backend", "torch-compile").err


def test_a_failed_run_is_diagnosed_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    small_suites(monkeypatch)
    record = measured("fault:bonus-missing", "torch-cpu-f32", suites=("logits",), runs=8, diagnosis=True)
    (seen,) = [o for o in record.observations if o.kind == "diagnosis"]
    assert (seen.subject, seen.suite, seen.data["cause"]) == ("fault:bonus-missing", "logits", "bonus-missing")
    off = measured("fault:bonus-missing", suites=("logits",), runs=8)
    assert not [o for o in off.observations if o.kind == "diagnosis"]


def test_validate_prints_the_diagnosis_unless_told_not_to(command: Command) -> None:
    arguments = ("validate", "--backend", "fault:bonus-missing", "--suite", "layers", "--honest-runs", "8")
    found = command(*arguments)
    assert found.code == 1
    assert "DIAGNOSIS fault:bonus-missing: Layer 0, token 0: `att.bonus`" in found.out
    assert "DIAGNOSIS" not in command(*arguments, "--no-diagnosis").out


def test_a_candidate_that_breaks_under_diagnosis_breaks_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    small_suites(monkeypatch)

    def broken(*_: Any, **__: Any) -> Diagnosis:
        raise RuntimeError("no memory")

    monkeypatch.setattr(Clinic, "examine", broken)
    record = measured("fault:bonus-missing", suites=("logits",), runs=8, diagnosis=True)
    assert record.status == "complete"
    assert any("fault:bonus-missing could not be diagnosed: RuntimeError: no memory" in note for note in record.notes)
