"""Suite layers on the designed checkpoint: honest backends stay inside, one wrong equation is named with its place."""

import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np
import pytest

from backends.base import Array, Ids, Output, State, Want
from backends.reference import v7
from backends.reference.session import EquationSession
from backends.weights import Weights
from harness.job import make_job
from harness.measures import layers
from harness.replay import Error
from harness.run import run
from reports.record import Outcome, Record
from tests.harness import fakes

Numbers = dict[str, tuple[float, str]]


def measured(*subjects: str, **kinds: Callable[[Weights], Any]) -> Record:
    with fakes.registered(**kinds):
        job = make_job("conformance", subjects, ("layers",), threads=1, honest_runs=8)
        return run(job, lambda _: None, lambda _: None)


def numbers(record: Record, subject: str) -> Numbers:
    return {
        m.name: (float("nan") if m.value is None else m.value, m.where)
        for m in record.measurements
        if m.subject == subject
    }


def told(record: Record, subject: str) -> dict[str, Any]:
    return next(o.data for o in record.observations if o.kind == "layers" and o.subject == subject)


def verdicts(record: Record, subject: str) -> set[Outcome]:
    return {v.outcome for v in record.verdicts if v.subject == subject}


class Partial(EquationSession):
    """The float32 equations, from which only some tensors can be traced."""

    def __init__(self, weights: Weights, hidden: Collection[str], **options: Any) -> None:
        super().__init__(weights, "partial", "f32", **options)
        self.hidden = hidden

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        out = super()._forward(tokens, state, want)
        seen = {n: v for n, v in out.trace.items() if not any(fnmatchcase(n, p) for p in self.hidden)}
        return replace(out, trace=seen)


class Altered(EquationSession):
    """The float32 equations, whose trace is changed before anybody sees it."""

    def __init__(
        self, weights: Weights, alter: Callable[[dict[str, Array]], None], abilities: Collection[str] = ()
    ) -> None:
        super().__init__(weights, "altered", "f32")
        self.alter = alter
        if abilities:
            self.info = replace(self.info, abilities=frozenset(abilities))

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        out = super()._forward(tokens, state, want)
        trace = dict(out.trace)
        self.alter(trace)
        return replace(out, trace=trace)


class DropsItsState(EquationSession):
    """Begins every call with a WKV state of zeros."""

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        if state is not None:
            kept = self.export_state(state)
            state = self.import_state(State(kept.att_shift, 0 * kept.wkv, kept.ffn_shift))
        return super()._forward(tokens, state, want)


def no_bonus_share(r: Any, k: Any, v: Any, r_k: Any, heads: int) -> Any:
    return v7.bonus(r, k, v, 0 * r_k + 1, heads)


WRONG_W = {"blocks.1.att.w_raw": lambda w_lora, w2: 1.5 * v7.w_raw(w_lora, w2)}
HIDDEN_W = ("*.att.w_lora", "*.att.w_raw")


@pytest.fixture(scope="module")
def record() -> Record:
    """One run over everything that the tests below look at."""

    def not_finite(trace: dict[str, Array]) -> None:
        trace["blocks.1.ffn.k"][:, -1:] = np.nan

    def transposed(trace: dict[str, Array]) -> None:
        for name in [n for n in trace if n.endswith("state")]:
            trace[name] = trace[name].swapaxes(-1, -2)

    def misshapen(trace: dict[str, Array]) -> None:
        trace["blocks.0.att.state"] = trace["blocks.0.att.state"].reshape(*trace["blocks.0.att.w"].shape[:2], -1)

    everywhere = {"blocks.*.att.bonus": no_bonus_share}
    return measured(
        *("torch-cpu-f32", "honest:77", "wrong", "bonus", "drops", "gap", "shallow", "blind"),
        *("nan-in-ffn", "transposes", "misshapen", "stateless", "modest"),
        bonus=lambda w: EquationSession(w, "bonus", "f32", overrides=everywhere),
        drops=lambda w: DropsItsState(w, "drops", "f32"),
        gap=lambda w: Partial(w, HIDDEN_W, overrides=WRONG_W),
        shallow=lambda w: Partial(w, ("blocks.0.att.v", "blocks.1.ffn.res")),
        blind=lambda w: Partial(w, ("*",)),
        **{"nan-in-ffn": lambda w: Altered(w, not_finite)},
        transposes=lambda w: Altered(w, transposed),
        misshapen=lambda w: Altered(w, misshapen),
        stateless=lambda w: Altered(w, lambda _: None, {"trace", "logits-all"}),
    )


@pytest.mark.parametrize("subject", ["torch-cpu-f32", "honest:77", "stateless"])
def test_honest_backends_stay_inside(record: Record, subject: str) -> None:
    found = numbers(record, subject)
    assert found["out_of_band"][0] == 0
    assert 0 < found["worst_ratio"][0] < 3
    assert found["worst_ratio"][1].startswith(("blocks.", "head", "ln"))
    assert found["untested"][0] == 0
    assert found["inherited_worst"][0] < 10
    assert verdicts(record, subject) == {Outcome.PASS}
    assert told(record, subject)["first"] is None
    assert told(record, subject)["hints"] == []


def test_a_wrong_equation_is_named_with_layer_token_and_ratio(record: Record) -> None:
    count, where = numbers(record, "wrong")["out_of_band"]
    assert count == 3  # the decay of every layer, and nothing that only inherits it
    assert where.startswith("blocks.0.att.w, layer 0, token 0: ")
    assert where.endswith(" x honest")
    assert Outcome.FAIL in verdicts(record, "wrong")
    assert numbers(record, "wrong")["inherited_worst"][0] > 1000


def test_the_hint_says_how_the_equation_was_misread(record: Record) -> None:
    assert told(record, "bonus")["hints"] == ["bonus is what its equation gives if r_k is taken as 1."]


def test_a_state_dropped_between_two_calls_is_seen_at_the_edge(record: Record) -> None:
    data = told(record, "drops")
    assert (data["first"]["tensor"], data["first"]["token"]) == ("blocks.0.att.state", 40)
    assert any("the first of the second call" in hint for hint in data["hints"])


def test_a_finding_over_a_gap_says_what_it_spans(record: Record) -> None:
    data = told(record, "gap")
    assert data["first"]["tensor"] == "blocks.1.att.w"
    assert data["first"]["spanned"] == ["blocks.1.att.w_lora", "blocks.1.att.w_raw"]
    assert set(data["untested"]) == {f"blocks.{layer}.att.{name}" for layer in range(3) for name in ("w_lora", "w_raw")}
    assert numbers(record, "gap")["untested"][0] == 6
    assert data["hints"] == ["Only layer 1 has att.w wrong."]


def test_missing_names_are_untested_and_say_what_they_would_open(record: Record) -> None:
    data = told(record, "shallow")
    assert {"blocks.1.att.v", "blocks.2.att.v", "blocks.0.att.v", "blocks.1.ffn.res"} <= set(data["untested"])
    assert set(data["lacking"]) == {"blocks.0.att.v", "blocks.1.ffn.res"}
    assert data["worst"][data["tensors"].index("blocks.2.att.v")] is None
    assert numbers(record, "shallow")["out_of_band"][0] == 0


def test_an_empty_trace_is_no_pass(record: Record) -> None:
    found = numbers(record, "blind")
    assert math.isnan(found["out_of_band"][0])
    assert math.isnan(found["worst_ratio"][0])
    assert found["untested"][0] == len(told(record, "blind")["tensors"])
    assert "and " in found["untested"][1]
    assert verdicts(record, "blind") == {Outcome.FAIL}


def test_what_is_not_finite_fails_and_is_named(record: Record) -> None:
    data = told(record, "nan-in-ffn")
    assert data["first"]["tensor"] == "blocks.1.ffn.k"
    assert "not finite" in data["hints"][0]
    assert verdicts(record, "nan-in-ffn") == {Outcome.FAIL}


def test_a_transposed_state_is_recognised(record: Record) -> None:
    assert told(record, "transposes")["first"]["tensor"] == "blocks.0.att.state"
    assert any(hint.startswith("state is transposed") for hint in told(record, "transposes")["hints"])


def test_another_shape_is_an_error_in_words(record: Record) -> None:
    (verdict,) = [v for v in record.verdicts if v.subject == "misshapen"]
    assert verdict.outcome is Outcome.ERROR
    assert (
        "trace blocks.0.att.state has shape (1, 80, 8192), where the reference has (1, 80, 2, 64, 64)" in verdict.detail
    )


def test_no_trace_is_unsupported(record: Record) -> None:
    assert verdicts(record, "modest") == {Outcome.UNSUPPORTED}


def test_the_record_keeps_the_bands_small(record: Record) -> None:
    kept = {o.subject: o.data for o in record.observations if o.kind == "bands"}
    assert set(kept) == {"honest@f32", "honest@bf16"}
    for data in kept.values():
        assert data["runs"] == 8
        assert 0.5 < data["reach"] < 3
        assert len(data["tensors"]) == len(data["rms"]) == len(data["largest"])
    assert {s.id for s in record.subjects if s.role == "honest"} == set(kept)


def test_a_reference_that_cannot_replay_makes_the_suite_unsupported() -> None:
    with fakes.registered(shy=lambda w: Altered(w, lambda _: None, {"trace", "state", "logits-all", "batch"})):
        job = make_job("conformance", ("torch-cpu-f32",), ("layers",), reference="shy", threads=1, honest_runs=8)
        record = run(job, lambda _: None, lambda _: None)
    (verdict,) = record.verdicts
    assert verdict.outcome is Outcome.UNSUPPORTED
    assert "reference that can replay" in verdict.detail


def test_states_that_would_not_fit_are_left_to_the_gap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "STATES", 1 << 20)
    monkeypatch.setattr(layers, "PORTION", 1 << 20)  # and honest runs go one by one
    monkeypatch.setattr(layers, "SMALL", 0)  # and hints look at the first wrong tokens only
    record = measured(
        "torch-cpu-f32",
        "stale",
        stale=lambda w: EquationSession(w, "stale", "f32", overrides={"blocks.*.att.y": wrong_read}),
    )
    assert not any(name.endswith("state") for name in told(record, "torch-cpu-f32")["tensors"])
    assert numbers(record, "torch-cpu-f32")["out_of_band"][0] == 0
    assert told(record, "stale")["first"]["tensor"] == "blocks.0.att.y"
    assert told(record, "stale")["first"]["spanned"] == ["blocks.0.att.state"]


def wrong_read(state: Any, r: Any, heads: int) -> Any:
    return v7.y(state.transpose(-1, -2), r, heads)


def test_without_bands_the_suite_is_unsupported() -> None:
    from backends.errors import Unsupported
    from harness.measures.base import Context

    context = Context(case=None, tokens=np.zeros(1, np.int64), model=None)  # type: ignore[arg-type]
    with pytest.raises(Unsupported, match="honest runs"):
        layers.compare({"trace": {}}, {"trace": {}}, context)
    with pytest.raises(Unsupported, match="can replay"):
        layers.replayer(context)


def test_a_float32_band_allows_sums_in_any_order() -> None:
    band: Mapping[str, Error] = {"r": Error(np.ones(2), np.ones(2), np.ones(2), 0.5, 1.0)}
    same, wider = layers._free_order(band, 100)["r"], layers._free_order(band, 1024)["r"]
    assert (same.rms == 1).all()
    assert (wider.rms == 2).all()
    assert (wider.largest == 2).all()
    assert wider.factor == 1.0
    assert layers._free_order({"r": Error(np.ones(2), np.ones(2), np.ones(2))}, 100)["r"].factor > 0
