"""Timing under a clock of its own: interleaving, warm-up, ratios, controls, whose error it is."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from backends.base import Ids, Sampler
from backends.errors import BackendError
from harness import bench, cells, energy
from harness.cells import Plan, Sample
from tests.harness.clock import Clock, of_kind, race, rows
from tests.harness.stub import Stub


def test_every_round_times_every_subject_once_in_an_order_drawn_anew(clock: Clock) -> None:
    sessions = {name: clock.session(name, 1e-3) for name in "abc"}
    found = race(sessions, rounds=12)
    assert {name: len(taken) for name, taken in found.samples.items()} == {"a": 12, "b": 12, "c": 12}
    counted = clock.order[-36:]
    rounds = ["".join(counted[i : i + 3]) for i in range(0, 36, 3)]
    assert all(sorted(one) == ["a", "b", "c"] for one in rounds)
    assert len(set(rounds)) > 2
    warming = clock.order[:-36]
    assert warming == sorted(warming)
    assert all(warming.count(name) >= cells.WARM_UP[0] for name in "abc")


def test_warming_up_ends_when_samples_agree_and_never_counts(clock: Clock) -> None:
    session = clock.session("a", 1e-3)
    steady = session.step
    left = [2.0, 0.5]  # a compiler at work

    def step(tokens: Ids) -> None:
        clock.now += left.pop(0) if left else 0.0
        steady(tokens)

    session.step = step
    found = race({"a": session}, rounds=6)
    assert max(one.seconds for one in found.samples["a"]) < 0.04
    assert len(clock.order) - 6 <= cells.WARM_UP[1]


def test_warming_up_gives_up_on_a_subject_that_never_settles(clock: Clock) -> None:
    noise = np.random.default_rng(0)

    def once() -> Sample:
        clock.order.append("a")
        return Sample(10 ** noise.uniform(-4, -2))

    cells.warm_up(once, 4.0, 0.0)
    assert cells.WARM_UP[0] < len(clock.order) <= cells.WARM_UP[1]


def test_what_is_over_in_a_moment_is_repeated_within_a_sample(clock: Clock) -> None:
    found = race({"a": clock.session("a", 1e-4)}, rounds=5, least=0.02)
    assert all(one.seconds == pytest.approx(3.2e-3, rel=0.01) for one in found.samples["a"])  # of one, still
    turns = len(clock.order) / 7  # 20 ms are 7 times 3.2 ms
    assert 5 <= turns <= 5 + 2


def test_repeats_are_their_mean_and_keep_every_token() -> None:
    left = [Sample(1.0, (0.5, 0.5), 3.0), Sample(3.0, (1.0, 2.0), 5.0)]
    assert cells.repeated(lambda: left.pop(0), 2) == Sample(2.0, (0.5, 0.5, 1.0, 2.0), 4.0)
    assert cells.repeated(lambda: Sample(1.0), 3) == Sample(1.0)


def test_a_slow_cell_stops_early_but_not_before_enough_rounds(clock: Clock) -> None:
    found = race({"a": clock.session("a", 1.0)}, rounds=50)
    assert len(found.samples["a"]) == cells.ENOUGH


def test_numbers_are_tokens_per_second(clock: Clock) -> None:
    measurements, observations = rows({"a": clock.session("a", 1e-3)}, batches=[1, 3])
    by_name = {m.name: m for m in measurements if m.unit == "tokens/s"}
    assert set(by_name) == {
        "prefill_T4_B1_tokens_per_s", "prefill_T8_B1_tokens_per_s", "prefill_T4_B3_tokens_per_s",
        "prefill_T8_B3_tokens_per_s", "decode_T3_B1_tokens_per_s", "decode_T3_B3_tokens_per_s",
    }  # fmt: skip
    for m in by_name.values():
        assert m.value == pytest.approx(1000, rel=0.01)  # rows count: each token costs the same
    for data in of_kind(observations, "samples"):
        assert data["low"] <= data["median"] <= data["high"]
        assert data["median"] * np.median(data["seconds"]) == pytest.approx(data["tokens"] * data["batch"])


def test_single_tokens_have_percentiles_where_they_come_singly(clock: Clock) -> None:
    _, observations = rows({"a": clock.session("a", 1e-3)}, decode=8, prefill=[])
    (data,) = of_kind(observations, "samples")
    assert data["token_ms"] == pytest.approx({"p50": 1.0, "p90": 1.0, "p99": 1.0}, rel=0.01)
    assert data["token_count"] == 8 * 12


class AtOnce(Stub):
    """Computes everything before the second token is given away."""

    def generate(
        self, tokens: Any, sampler: Sampler | None = None, max_new_tokens: int = 1, stop: Any = ()
    ) -> Iterator[Ids]:
        steps = super().generate(tokens, sampler, max_new_tokens, stop)
        yield next(steps)
        yield from list(steps)


def test_tokens_that_come_all_at_once_have_no_percentiles(clock: Clock) -> None:
    session = AtOnce(clock.session("a", 1e-3).step)
    _, observations = rows({"a": session}, decode=8, prefill=[])
    (data,) = of_kind(observations, "samples")
    assert "token_ms" not in data
    assert data["median"] == pytest.approx(1000, rel=0.01)


def test_energy_is_told_by_token(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(energy, "counter", lambda device: (lambda: 50 * clock.now, "a watt meter"))
    _, observations = rows({"a": clock.session("a", 1e-3)}, prefill=[64], decode=0)
    (data,) = of_kind(observations, "samples")
    assert data["joules_per_token"] == pytest.approx(0.05, rel=0.01)  # 50 W for a millisecond


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
    verdicts = [data["verdict"] for data in of_kind(observations, "ratio")]
    assert len(verdicts) == 3
    assert set(verdicts) <= {"equivalent", "inconclusive"}


@pytest.mark.parametrize(("patient", "rounds"), [(False, 5), (True, 9)])
def test_rounds_that_were_asked_for_are_made_however_long_they_take(clock: Clock, patient: bool, rounds: int) -> None:
    done = race({"a": clock.session("a", 1.0)}, rounds=9, patient=patient)
    assert len(done.samples["a"]) == rounds


def test_drift_of_the_machine_cancels(clock: Clock) -> None:
    """A machine that gets slower during the run; subjects timed one after the other would differ by it."""

    def step(tokens: Ids) -> None:
        clock.now += 1e-3 * tokens.size * (1 + (clock.now - 100.0) / 10)

    _, observations = rows({"a": Stub(step), "again": Stub(step)}, rounds=24)
    assert {data["verdict"] for data in of_kind(observations, "ratio")} <= {"equivalent", "inconclusive"}


# ---- the control ------------------------------------------------------------------------------


def test_on_a_quiet_machine_the_control_is_equivalent_and_verdicts_hold(clock: Clock) -> None:
    sessions = {"base": clock.session("base", 1e-3), "b": clock.session("b", 2e-3)}
    _, observations = rows(sessions, control=["decode", "prefill"])
    controls = [o for o in observations if o.kind == "control"]
    assert [o.data["verdict"] for o in controls] == ["equivalent"] * 3
    assert {o.subject for o in controls} == {"base"}
    assert {data["verdict"] for data in of_kind(observations, "ratio")} == {"slower"}
    assert not any("without_control" in data for data in of_kind(observations, "ratio"))


def test_on_a_noisy_machine_rounds_go_on_and_verdicts_are_inconclusive(clock: Clock) -> None:
    noise = np.random.default_rng(3)

    def step(tokens: Ids) -> None:
        clock.now += 1e-3 * tokens.size * float(noise.choice([1.0, 1.6]))

    sessions = {"base": Stub(step), "b": clock.session("b", 9e-3)}
    _, observations = rows(sessions, prefill=[8], decode=8, longer=3)
    (control,) = of_kind(observations, "control")
    assert (control["what"], control["verdict"]) == ("decode", "inconclusive")
    assert len(control["seconds"]) == 3 * 12
    ratios = of_kind(observations, "ratio")
    assert [data["what"] for data in ratios] == ["decode", "prefill"]  # which has no control of its own
    assert [(data["verdict"], data["without_control"]) for data in ratios] == [("inconclusive", "slower")] * 2


# ---- who takes part ---------------------------------------------------------------------------


def test_who_cannot_batch_is_left_out_of_batches(clock: Clock) -> None:
    alone = clock.session("a", 1e-3, abilities=("state",))
    measurements, _ = rows({"a": alone, "b": clock.session("b", 1e-3)}, batches=[1, 2])
    assert {m.subject for m in measurements if "_B2_" in m.name} == {"b"}
    measurements, _ = rows({"a": alone}, batches=[2])
    assert {m.name for m in measurements} == {"cost_growth"}
    in_turn = clock.session("a", 1e-3)
    in_turn.shares_batch = False  # takes batches, but row by row
    measurements, _ = rows({"a": in_turn, "b": clock.session("b", 1e-3)}, batches=[1, 2])
    assert {m.subject for m in measurements if "_B2_" in m.name} == {"b"}


def test_prompts_of_many_rows_are_left_out_beyond_a_size() -> None:
    plan = Plan(prefill=(16, 512), decode=16, batches=(1, 4), most=1024)
    assert [cell.name for cell in plan.cells()] == [
        *("decode_T16_B1", "decode_T16_B4", "prefill_T16_B1", "prefill_T512_B1", "prefill_T16_B4"),
    ]


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
