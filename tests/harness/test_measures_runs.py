"""Consistency, generation and state of sessions whose mistake is known, and of samples made by hand."""

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backends.base import Ids, Output, State, Want
from backends.reference.equations import Carry
from backends.reference.session import EquationSession
from backends.weights import Weights
from harness.measures import consistency, generation, state
from harness.measures.base import Context
from tests.backends.random_model import as_weights, random_rwkv7
from tests.harness import fakes
from tests.harness.stub import Stub, context, evidence, numbers, where

TEXT = list(b"The same river, twice and twice again.")


@pytest.fixture(scope="module")
def weights() -> Weights:
    return as_weights(random_rwkv7(C=32, N=16, L=2, V=256))


@pytest.fixture(scope="module")
def right(weights: Weights) -> EquationSession:
    return EquationSession(weights, "right", "f32", 1)


# ---- consistency -----------------------------------------------------------------------------------

WAYS = {"tokens": 38, "chunks": [1, 7, 16, 100], "batch": 3}


class ForgetsAtEdges(EquationSession):
    """Starts every chunk with a zero time-mix shift."""

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        if state is not None:
            state = Carry({n: t * 0 if n.endswith("att.ln1") else t for n, t in state.tensors.items()})
        return super()._forward(tokens, state, want)


class LeaksBetweenRows(EquationSession):
    """The last row of a batch gets a thousandth of the first."""

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        out = super()._forward(tokens, state, want)
        if out.logits is not None and len(out.logits) > 1:
            out.logits[-1] += 1e-3 * out.logits[0]
        return out


class Moody(EquationSession):
    """Never gives the same answer twice."""

    calls = 0

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        self.calls += 1
        out = super()._forward(tokens, state, want)
        return replace(out, logits=None if out.logits is None else out.logits + 1e-3 * self.calls)


def matrix(session: Any) -> tuple[dict[str, dict[str, Any]], dict[str, float]]:
    around = context(TEXT, **WAYS)
    (sample,) = consistency.collect(session, around, {})
    rows = evidence(consistency.observe(sample, {}, around))["matrix"]["rows"]
    return {row["check"]: row for row in rows}, numbers(consistency.compare(sample, {}, around))


def test_all_ways_are_tried(right: EquationSession) -> None:
    rows, found = matrix(right)
    assert list(rows) == [
        "repeat", "token by token", "chunks of 7", "chunks of 16", "first row of 3", "last row of 3", "input state",
    ]  # fmt: skip
    assert rows["repeat"]["bit_equal"]
    assert found["max_abs"] < 1e-5
    assert found["input_state_moved"] == found["repeat_max_abs"] == 0.0


def test_a_lost_shift_shows_in_chunks_only(weights: Weights) -> None:
    rows, found = matrix(ForgetsAtEdges(weights, "forgets", "f32", 1))
    for name in ("token by token", "chunks of 7", "chunks of 16"):
        assert rows[name]["max_abs"] > 0.01, name
    assert rows["last row of 3"]["max_abs"] < 1e-5
    assert found["max_abs"] > 0.01
    assert found["repeat_max_abs"] == 0.0


def test_rows_that_leak_show_in_the_batch_only(weights: Weights) -> None:
    rows, found = matrix(LeaksBetweenRows(weights, "leaks", "f32", 1))
    assert rows["last row of 3"]["max_abs"] > 1e-4
    assert rows["first row of 3"]["max_abs"] < 1e-5
    assert rows["chunks of 16"]["max_abs"] < 1e-5
    assert found["max_abs"] == rows["last row of 3"]["max_abs"]


def test_answers_that_change_show_in_the_repeat(weights: Weights) -> None:
    _, found = matrix(Moody(weights, "moody", "f32", 1))
    assert found["repeat_max_abs"] == pytest.approx(1e-3, rel=0.01)


def test_writing_into_the_input_state_shows(weights: Weights) -> None:
    _, found = matrix(fakes.WritesIntoItsInput(weights, "writes", "f32", 1))
    assert found["input_state_moved"] == pytest.approx(2.0)


def test_last_logits_are_compared_where_there_are_no_others(right: EquationSession) -> None:
    rows, found = matrix(_restricted(right, "state"))
    assert "last row of 3" not in rows
    assert found["max_abs"] < 1e-5


def _restricted(session: EquationSession, *abilities: str) -> Any:
    made = EquationSession(session.model.weights, "restricted", "f32", 1)
    made.info = replace(made.info, abilities=frozenset(abilities))
    return made


def test_honest_runs_are_compared_with_each_other(right: EquationSession) -> None:
    around = context(TEXT, **WAYS)
    samples = consistency.collect(right, around, {}, 3)
    assert len(samples) == 2
    found = numbers(consistency.compare(samples[0], {}, around))
    assert set(found) == {"max_abs", "state", "repeat_max_abs"}


def test_a_nan_in_one_way_is_the_worst_way() -> None:
    rows = [
        {"check": "repeat", "max_abs": 0.0, "state": 0.0},
        {"check": "a", "max_abs": 9.0, "state": 0.1},
        {"check": "b", "max_abs": math.nan, "state": math.nan},
        {"check": "c", "max_abs": 1.0, "state": 0.1},
        {"check": "input state", "max_abs": math.nan, "state": math.nan},
    ]
    found = consistency.compare({"rows": rows}, {}, context(TEXT))
    assert where(found, "max_abs") == "b"
    assert all(math.isnan(numbers(found)[name]) for name in ("max_abs", "state", "input_state_moved"))


# ---- generation ------------------------------------------------------------------------------------


def chosen(ids: list[int], logits: Any = None) -> dict[str, Any]:
    """A sample whose logits prefer its own ids by 1, all others being 0."""
    if logits is None:
        logits = np.zeros((len(ids), 8))
        logits[np.arange(len(ids)), ids] = 1.0
    return {"ids": ids, "logits": logits}


def classified(got: dict[str, Any], truth: dict[str, Any], honest: float) -> tuple[str, dict[str, float], Any]:
    around = context(TEXT, {"max_abs": honest}, temperature=0.0)
    shown = evidence(generation.observe(got, truth, around))["text"]
    return shown["class"], numbers(generation.compare(got, truth, around)), shown


def test_exact() -> None:
    kind, found, shown = classified(chosen([3, 4, 5]), chosen([3, 4, 5]), 0.1)
    assert (kind, found["agreement"], found["partings"], found["unexplained"]) == ("EXACT", 1.0, 0.0, 0.0)
    assert (shown["parting"], shown["margin"]) == (None, None)


@pytest.mark.parametrize(
    ("honest", "kind", "unexplained"), [(0.6, "TIE", 0.0), (0.5, "TIE", 0.0), (0.4, "DIVERGED", 1.0)]
)
def test_a_parting_is_a_tie_if_honest_errors_of_both_logits_close_the_gap(
    honest: float, kind: str, unexplained: float
) -> None:
    got = chosen([3, 6, 5])
    found_kind, found, shown = classified(got, chosen([3, 4, 5]), honest)
    assert (found_kind, found["unexplained"]) == (kind, unexplained)
    assert found["agreement"] == pytest.approx(1 / 3)
    assert (shown["parting"], shown["margin"], shown["allowed"]) == (1, 1.0, 2 * honest)


def test_every_step_along_the_truth_is_judged() -> None:
    """Exact by luck in the free run, but the forced run prefers others."""
    got = chosen([3, 4, 5], chosen([3, 4, 7])["logits"])
    kind, found, _ = classified(got, chosen([3, 4, 5]), 0.1)
    assert (kind, found["agreement"], found["partings"], found["unexplained"]) == ("DIVERGED", 1.0, 1.0, 1.0)


@pytest.mark.parametrize("ids", [[3, 4], [3, 4, 5, 6], []])
def test_another_length_is_no_tie(ids: list[int]) -> None:
    kind, found, _ = classified(chosen(ids, chosen([3, 4, 5])["logits"]), chosen([3, 4, 5]), 10.0)
    assert kind == "DIVERGED"
    assert found["unexplained"] == math.inf


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_broken_logits_are_no_tie(bad: float) -> None:
    logits = chosen([3, 4, 5])["logits"].copy()
    logits[1, 7] = bad
    kind, found, _ = classified(chosen([3, 4, 5], logits), chosen([3, 4, 5]), 1e9)
    assert kind == "DIVERGED"
    assert math.isnan(found["unexplained"])


def test_without_all_logits_the_first_parting_is_judged() -> None:
    got = {"ids": [3, 6, 5], "logits": None}
    kind, found, _ = classified(got, chosen([3, 4, 5]), 0.4)
    assert (kind, found["unexplained"]) == ("DIVERGED", 1.0)
    assert "max_abs" not in found
    assert classified({"ids": [3, 4, 5], "logits": None}, chosen([3, 4, 5]), 0.1)[0] == "EXACT"


@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_subjects_draw_with_the_same_luck(right: EquationSession, temperature: float) -> None:
    around = context(TEXT, new_tokens=6, temperature=temperature)
    first, second = (generation.collect(right, around, None)[0] for _ in range(2))
    assert first["ids"] == second["ids"]
    along = generation.collect(right, around, first)[0]
    found = numbers(generation.compare(along, first, replace(around, honest=context([], {"max_abs": 1e-5}).honest)))
    assert found == {"agreement": 1.0, "partings": 0.0, "unexplained": 0.0, "max_abs": pytest.approx(0, abs=1e-5)}
    other = generation.collect(right, replace(around, seed=1), None)[0]
    assert (other["ids"] == first["ids"]) is (temperature == 0.0)


def test_sampling_draws_from_the_softmax() -> None:
    """Gumbel noise: argmax(logits + T noise) has the probabilities softmax(logits / T)."""
    row, T = np.array([0.0, 1.0, 2.0]), 0.7
    draws: list[int] = []
    for seed in range(400):
        around: Context = replace(context(TEXT, temperature=T), seed=seed)
        sampler = generation._sampler(around)
        assert sampler is not None
        draws.append(int(sampler(row[None])[0]))
    expected = np.exp(row / T) / np.exp(row / T).sum()
    share = np.bincount(draws, minlength=3) / len(draws)
    assert np.abs(share - expected).max() < 4 * math.sqrt(0.25 / len(draws))


def test_honest_rows_run_along_the_truth(right: EquationSession) -> None:
    around = context(TEXT, new_tokens=4, temperature=0.0)
    truth = generation.collect(right, around, None)[0]
    rows = generation.collect(right, around, truth, 3)
    assert [sample["logits"].shape for sample in rows] == [(4, 256)] * 3
    assert rows[0]["ids"] == truth["ids"]


# ---- state -----------------------------------------------------------------------------------------


class Growing(Stub):
    """A state in disguise of a cache: larger at every call; loses half when restored."""

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        out = super()._forward(tokens, state, want)
        scale = 0.0 if state is None else float(state)
        return replace(
            out, state=scale + tokens.shape[1], logits=None if out.logits is None else out.logits * (1 + scale)
        )

    def export_state(self, state: Any) -> State:
        return State(np.full((1, 1, 4 + int(state)), state), np.zeros((1, 1, 1, 4, 4)), np.zeros((1, 1, 4)))

    def import_state(self, state: State) -> Any:
        return float(state.att_shift[0, 0, 0]) / 2


def test_growth_and_what_restoring_loses() -> None:
    around = context(TEXT, positions=[1, 8])
    (sample,) = state.collect(Growing(abilities=("state",)), around, None)
    found = state.compare(sample, {}, around)
    by_name = numbers(found)
    assert by_name["growth"] == 7 * 8  # seven float64 more
    assert where(found, "growth") == "up to position 8"
    assert by_name["restored_max_abs"] == pytest.approx(4.0)
    assert by_name["zero_max_abs"] == 0.0
    assert "decay_min" not in by_name
    shown = evidence(state.observe(sample, {}, around))["state"]
    assert shown["positions"] == [1, 8]
    assert shown["bytes_at"][1] - shown["bytes_at"][0] == 56


def test_the_right_state(right: EquationSession) -> None:
    around = context(TEXT, positions=[1, 16, 40])
    (sample,) = state.collect(right, around, None)
    found = numbers(state.compare(sample, {}, around))
    assert found["growth"] == found["not_finite"] == found["restored_max_abs"] == found["zero_max_abs"] == 0.0
    assert found["bytes"] == 4 * 2 * (32 + 2 * 16 * 16 + 32)
    assert 0.545239 < found["decay_min"] < found["decay_max"] < 1


def test_a_big_model_goes_less_far() -> None:
    around = context(TEXT, positions=[1, 16, 128, 2048])
    big = replace(around, model=replace(around.model, parameters=7_200_000_000))
    assert state.collect(Stub(abilities=("state",)), big, None)[0]["positions"] == [1, 16, 128]
    huge = replace(around, model=replace(around.model, parameters=10**12))
    assert state.collect(Stub(abilities=("state",)), huge, None)[0]["positions"] == [1, 16]


class Traced(Stub):
    """Traces these decays, layer by layer."""

    decays: tuple[float, ...] = ()

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        trace = {f"blocks.{i}.att.w": np.array([[value]]) for i, value in enumerate(self.decays)} if want.trace else {}
        return replace(super()._forward(tokens, state, want), trace=trace)


@pytest.mark.parametrize("decays", [(0.6, math.nan, 0.7), (math.nan, 0.6), (0.7, math.nan)])
def test_a_nan_among_decays_is_never_hidden(decays: tuple[float, ...]) -> None:
    session = Traced()
    session.decays = decays
    around = context(TEXT, positions=[1])
    found = numbers(state.compare(state.collect(session, around, None)[0], {}, around))
    assert math.isnan(found["decay_min"])
    assert math.isnan(found["decay_max"])


def test_a_trace_without_decays_leaves_them_unmeasured() -> None:
    around = context(TEXT, positions=[1])
    found = numbers(state.compare(state.collect(Traced(), around, None)[0], {}, around))
    assert "decay_min" not in found
    assert "growth" in found


def test_a_broken_state_is_counted() -> None:
    class Broken(Stub):
        def export_state(self, state: Any) -> State:
            made = super().export_state(state)
            made.wkv[0, 0, 0, :2] = math.nan
            return made

    around = context(TEXT, positions=[1, 2])
    found = numbers(state.compare(state.collect(Broken(abilities=("state",)), around, None)[0], {}, around))
    assert found["not_finite"] == 16.0  # 8 entries at each of 2 positions
