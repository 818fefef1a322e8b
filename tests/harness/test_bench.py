"""Timing under a clock of its own: interleaving, warm-up, ratios, whose error it is."""

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backends.base import Ids, Sampler
from backends.errors import BackendError
from harness import bench
from reports.record import Measurement, Observation
from tests.harness.stub import QUIET, Stub, context

OPTIONS: dict[str, Any] = {"prefill": [4, 8], "decode": 3, "rounds": 12, "batches": [1]}


class Clock:
    """Time that passes when a session computes."""

    def __init__(self) -> None:
        self.now = 100.0
        self.order: list[str] = []

    def perf_counter(self) -> float:
        return self.now

    def session(self, name: str, cost: float, **more: Any) -> Stub:
        """A session that takes `cost` seconds a token, with half a percent of noise."""
        noise = np.random.default_rng(hash_of(name))

        def step(tokens: Ids) -> None:
            self.order.append(name)
            self.now += cost * tokens.size * (1 + 0.005 * noise.random())

        return Stub(step, **more)


def hash_of(name: str) -> int:
    return sum(map(ord, name))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(bench, "time", SimpleNamespace(perf_counter=made.perf_counter))
    return made


def rows(sessions: dict[str, Any], **options: Any) -> tuple[list[Measurement], list[Observation]]:
    found = list(bench.measure(sessions, context(list(range(20)), **{**OPTIONS, **options}), QUIET))
    return (
        [row for row in found if isinstance(row, Measurement)],
        [row for row in found if isinstance(row, Observation)],
    )


def test_every_round_times_every_subject_once_in_an_order_drawn_anew(clock: Clock) -> None:
    sessions = {name: clock.session(name, 1e-3) for name in "abc"}
    samples = bench.time_cell(bench.Cell("prefill", 8, 1), sessions, np.arange(9), 12, 0)
    assert {name: len(seconds) for name, seconds in samples.items()} == {"a": 12, "b": 12, "c": 12}
    counted = clock.order[-36:]
    rounds = ["".join(counted[i : i + 3]) for i in range(0, 36, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 2
    warming = clock.order[:-36]
    assert warming == sorted(warming)
    assert all(warming.count(name) >= bench.WARM_UP[0] for name in "abc")


def test_warming_up_ends_when_samples_agree_and_never_counts(clock: Clock) -> None:
    session = clock.session("a", 1e-3)
    steady = session.step
    left = [2.0, 0.5]  # a compiler at work

    def step(tokens: Ids) -> None:
        clock.now += left.pop(0) if left else 0.0
        steady(tokens)

    session.step = step
    samples = bench.time_cell(bench.Cell("prefill", 8, 1), {"a": session}, np.arange(9), 6, 0)
    assert max(samples["a"]) < 0.01
    assert len(clock.order) - 6 <= bench.WARM_UP[1]


def test_warming_up_gives_up_on_a_subject_that_never_settles(clock: Clock) -> None:
    noise = np.random.default_rng(0)

    def step(tokens: Ids) -> None:
        clock.order.append("a")
        clock.now += 10 ** noise.uniform(-4, -2)

    bench.time_cell(bench.Cell("prefill", 8, 1), {"a": Stub(step)}, np.arange(9), 1, 0)
    assert bench.WARM_UP[0] < len(clock.order) <= bench.WARM_UP[1] + 1


def test_a_slow_cell_stops_early_but_not_before_enough_rounds(clock: Clock) -> None:
    samples = bench.time_cell(bench.Cell("prefill", 8, 1), {"a": clock.session("a", 1.0)}, np.arange(9), 50, 0)
    assert len(samples["a"]) == bench.ENOUGH


def test_numbers_are_tokens_per_second(clock: Clock) -> None:
    measurements, observations = rows({"a": clock.session("a", 1e-3)}, batches=[1, 3])
    by_name = {m.name: m for m in measurements if m.unit == "tokens/s"}
    assert set(by_name) == {
        "prefill_T4_B1_tokens_per_s", "prefill_T8_B1_tokens_per_s", "prefill_T4_B3_tokens_per_s",
        "prefill_T8_B3_tokens_per_s", "decode_T3_B1_tokens_per_s", "decode_T3_B3_tokens_per_s",
    }  # fmt: skip
    for m in by_name.values():
        assert m.value == pytest.approx(1000, rel=0.01)  # rows count: each token costs the same
    for o in (o for o in observations if o.kind == "samples"):
        assert o.data["low"] <= o.data["median"] <= o.data["high"]
        assert o.data["median"] * np.median(o.data["seconds"]) == pytest.approx(o.data["tokens"] * o.data["batch"])


@pytest.mark.parametrize(("cost", "verdict"), [(0.5e-3, "faster"), (1e-3, "equivalent"), (2e-3, "slower")])
def test_ratios_are_taken_against_the_first(clock: Clock, cost: float, verdict: str) -> None:
    _, observations = rows({"base": clock.session("base", 1e-3), "b": clock.session("b", cost)})
    ratios = [o for o in observations if o.kind == "ratio"]
    assert len(ratios) == 3
    for o in ratios:
        assert (o.subject, o.data["versus"], o.data["verdict"]) == ("b", "base", verdict)
        assert o.data["ratio"] == pytest.approx(1e-3 / cost, rel=0.01)
        assert o.data["low"] <= o.data["ratio"] <= o.data["high"]


@pytest.mark.parametrize("noise", [0.0, 0.02, 0.3])
def test_a_against_a_never_claims_a_difference(clock: Clock, noise: float) -> None:
    """One session under two names: whatever the machine does, it hits both."""
    random = np.random.default_rng(7)

    def step(tokens: Ids) -> None:
        clock.now += 1e-3 * tokens.size * (1 + noise * random.random())

    session = Stub(step)
    _, observations = rows({"a": session, "again": session})
    verdicts = [o.data["verdict"] for o in observations if o.kind == "ratio"]
    assert len(verdicts) == 3
    assert set(verdicts) <= {"equivalent", "inconclusive"}


def test_drift_of_the_machine_cancels(clock: Clock) -> None:
    """A machine that gets 20% slower during the run; subjects timed one after the other would differ by it."""

    def step(tokens: Ids) -> None:
        clock.now += 1e-3 * tokens.size * (1 + (clock.now - 100.0) / 3)

    _, observations = rows({"a": Stub(step), "again": Stub(step)}, rounds=24)
    assert {o.data["verdict"] for o in observations if o.kind == "ratio"} <= {"equivalent", "inconclusive"}


def test_latency_by_position(clock: Clock) -> None:
    measurements, observations = rows({"a": clock.session("a", 1e-3)}, prefill=[512])
    (found,) = (o.data for o in observations if o.kind == "latency")
    assert found["position"] == [0, 256, 512, 768, 1024]
    assert found["ms"] == pytest.approx([1.0] * 5, rel=0.01)  # milliseconds
    assert all(low <= ms <= high for low, ms, high in zip(found["low"], found["ms"], found["high"], strict=True))
    (growth,) = (m for m in measurements if m.name == "cost_growth")
    assert growth.value == pytest.approx(0, abs=0.02)
    assert growth.where.startswith("from position 0 to 1024: ")


def test_a_cost_that_grows_is_seen(clock: Clock) -> None:
    """Attention in disguise: every token costs more than the one before."""
    seen = 0

    def step(tokens: Ids) -> None:
        nonlocal seen
        seen += tokens.size
        clock.now += 1e-3 * (1 + seen / 1000)

    measurements, _ = rows({"a": Stub(step)}, prefill=[512])
    assert next(m.value or 0 for m in measurements if m.name == "cost_growth") > 0.05


def test_who_cannot_batch_is_left_out_of_batches(clock: Clock) -> None:
    alone = clock.session("a", 1e-3, abilities=("state",))
    measurements, _ = rows({"a": alone, "b": clock.session("b", 1e-3)}, batches=[1, 2])
    assert {m.subject for m in measurements if "_B2_" in m.name} == {"b"}
    measurements, _ = rows({"a": alone}, batches=[2])
    assert {m.name for m in measurements} == {"cost_growth"}


@pytest.mark.parametrize("after", [0, 3, 10, 45])
def test_it_is_said_who_broke(clock: Clock, after: int) -> None:
    good, bad = clock.session("good", 1e-3), clock.session("bad", 1e-3)
    steady = bad.step

    def step(tokens: Ids) -> None:
        if clock.order.count("bad") >= after:
            raise RuntimeError("fell off the bus")
        steady(tokens)

    bad.step = step
    with pytest.raises(bench.BrokenSubjectError) as caught:
        rows({"good": good, "bad": bad})
    assert caught.value.subject == "bad"
    assert str(caught.value.cause) == "fell off the bus"


class Lazy(Stub):
    """Ends its generation early, which would look fast."""

    def generate(
        self, tokens: Any, sampler: Sampler | None = None, max_new_tokens: int = 1, stop: Any = ()
    ) -> Iterator[Ids]:
        return super().generate(tokens, sampler, max_new_tokens - 1, stop)


def test_fewer_tokens_are_not_more_speed(clock: Clock) -> None:
    with pytest.raises(bench.BrokenSubjectError) as caught:
        rows({"lazy": Lazy()})
    assert isinstance(caught.value.cause, BackendError)
    assert "generate gave 3 tokens, 4 were asked for" in str(caught.value.cause)
