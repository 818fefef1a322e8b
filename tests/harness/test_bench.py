"""Timing under a clock of its own: interleaving, warm-up, ratios, controls, limits, whose error it is."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from backends.base import Ids, Sampler
from backends.errors import BackendError
from harness import bench, cells, energy
from harness.cells import Cell, Plan, Sample
from harness.limits import Limits, Work
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
    monkeypatch.setattr(cells, "time", SimpleNamespace(perf_counter=made.perf_counter))
    monkeypatch.setattr(energy, "counter", lambda device: (None, "not in tests"))
    return made


def rows(
    sessions: dict[str, Any], limits: Limits | None = None, **options: Any
) -> tuple[list[Measurement], list[Observation]]:
    found = list(bench.measure(sessions, context(list(range(20)), **{**OPTIONS, **options}), QUIET, limits))
    return (
        [row for row in found if isinstance(row, Measurement)],
        [row for row in found if isinstance(row, Observation)],
    )


def race(sessions: dict[str, Any], cell: Cell = Cell("prefill", 32, 1), **plan: Any) -> bench.Race:  # noqa: B008
    settings: dict[str, Any] = {"prefill": (), "decode": 0, "batches": (1,), "control": (), **plan}
    return bench.run(cell, sessions, context(list(range(9))), Plan(**settings))


def of_kind(observations: list[Observation], kind: str) -> list[dict[str, Any]]:
    return [o.data for o in observations if o.kind == kind]


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


# ---- the control -----------------------------------------------------------------------------------


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


# ---- the machine's limits --------------------------------------------------------------------------

WORK = Work(weights=1000, head=100, products=800, state=40)


class FakeProbe:
    """Reads, copies and multiplies at a given rate, and takes its time for that."""

    def __init__(self, clock: Clock, read: float, gemm: float = 1e12) -> None:
        self.clock, self.rates = clock, (read, gemm)

    def read(self) -> float:
        self.clock.order.append("probe")
        self.clock.now += 1.0
        return self.rates[0]

    def gemm(self, dtype: str) -> float:
        assert dtype == "f32"
        return self.rates[1]

    def copy(self) -> float:
        return 7.0


def limits_of(clock: Clock, read: float, gemm: float = 1e12, cache: int = 0) -> Limits:
    return Limits(WORK, cache, lambda device: FakeProbe(clock, read, gemm))  # type: ignore[arg-type, return-value]


def test_a_figure_stands_as_a_share_of_the_limit_probed_in_the_same_rounds(clock: Clock) -> None:
    limits = limits_of(clock, read=8e6)  # 4080 bytes a token: 0.51 ms, where 1 ms is taken
    measurements, observations = rows({"a": clock.session("a", 1e-3)}, limits, decode=32, prefill=[], probe=True)
    (data,) = of_kind(observations, "samples")
    assert data["fraction"] == pytest.approx(0.51, rel=0.01)
    assert data["fraction_low"] <= data["fraction"] <= data["fraction_high"]
    assert (data["bound"], data["invalid"]) == ("memory", False)
    assert len(data["limit_seconds"]) == len(data["seconds"]) == clock.order.count("probe") - 1
    (shown,) = of_kind(observations, "limits")
    assert (shown["device"], set(shown["read"]), set(shown["copy"])) == ("cpu", {8e6}, {7.0})
    assert next(m.value for m in measurements if m.name == "decode_T32_B1_of_limit") == data["fraction"]


def test_prompts_are_held_against_arithmetic(clock: Clock) -> None:
    limits = limits_of(clock, read=1e12, gemm=1.6e6)  # 1600 operations a token, 200 for the head: 32.125 ms
    _, observations = rows({"a": clock.session("a", 1e-3)}, limits, decode=0, prefill=[32], probe=True)
    (data,) = of_kind(observations, "samples")
    assert data["bound"] == "arithmetic"
    assert data["fraction"] == pytest.approx(32.125 / 32, rel=0.01)


def test_more_than_the_machine_can_do_is_invalid_unless_skipped_bytes_explain_it(clock: Clock) -> None:
    sessions = {"base": clock.session("base", 1e-3), "b": clock.session("b", 0.25e-3)}
    limits = limits_of(clock, read=8e6)
    _, observations = rows(sessions, limits, decode=32, prefill=[], probe=True)
    by_name = {o.subject: o.data for o in observations if o.kind == "samples"}
    assert (by_name["base"]["invalid"], by_name["b"]["invalid"]) == (False, True)
    assert [data["verdict"] for data in of_kind(observations, "ratio")] == ["invalid"]
    sessions["b"].skipped_bytes = 2400
    _, observations = rows(sessions, limits, decode=32, prefill=[], probe=True)
    assert not any(data["invalid"] for data in of_kind(observations, "samples"))
    assert [data["verdict"] for data in of_kind(observations, "ratio")] == ["faster"]


def test_it_is_said_why_there_is_no_limit(clock: Clock) -> None:
    def words(limits: Limits, session: Stub) -> str:
        _, observations = rows({"a": session}, limits, decode=8, prefill=[], probe=True)
        (data,) = of_kind(observations, "samples")
        assert "fraction" not in data
        return str(data["no_limit"])

    assert "cache of 1 MiB" in words(limits_of(clock, 8e6, cache=1 << 20), clock.session("a", 1e-3))
    quantised = clock.session("a", 1e-3)
    quantised.own_file = "it reads a file of its own"
    assert words(limits_of(clock, 8e6), quantised) == "it reads a file of its own"
    elsewhere = clock.session("a", 1e-3, device="npu")
    assert words(Limits(WORK, 0, missing), elsewhere) == "no probe for npu"


def missing(device: str) -> Any:
    raise BackendError(f"no probe for {device}")


def test_without_being_asked_nothing_is_probed(clock: Clock) -> None:
    _, observations = rows({"a": clock.session("a", 1e-3)}, limits_of(clock, 8e6))
    assert "probe" not in clock.order
    assert not of_kind(observations, "limits")


# ---- positions -------------------------------------------------------------------------------------


def test_latency_by_position(clock: Clock) -> None:
    measurements, observations = rows({"a": clock.session("a", 1e-3)}, positions=[1024, 0, 256])
    (found,) = of_kind(observations, "latency")
    assert found["position"] == [0, 256, 1024]
    assert found["ms"] == pytest.approx([1.0] * 3, rel=0.01)  # milliseconds
    assert all(low <= ms <= high for low, ms, high in zip(found["low"], found["ms"], found["high"], strict=True))
    assert found["cost"] == "constant"
    (growth,) = (m for m in measurements if m.name == "cost_growth")
    assert growth.value == pytest.approx(0, abs=0.02)
    assert growth.where.startswith("from position 0 to 1024: ")


def test_a_machine_that_slows_down_is_no_growth(clock: Clock) -> None:
    """Ever longer tokens, wherever they stand."""

    def tired(tokens: Ids) -> None:
        clock.now += 1e-3 * 1.003 ** (1e3 * (clock.now - 100)) * tokens.size

    _, observations = rows({"a": Stub(tired)}, positions=[0, 8, 16], prefill=[], decode=0)
    (found,) = of_kind(observations, "latency")
    assert max(found["samples"][0]) > 1.1 * min(found["samples"][0])
    assert found["cost"] == "constant"


def test_short_tokens_are_repeated_until_a_turn_has_a_length(clock: Clock) -> None:
    _, observations = rows({"a": clock.session("a", 1e-4)}, positions=[0, 8], least=0.002)
    (found,) = of_kind(observations, "latency")
    assert found["tokens_a_sample"] == 20


class Attentive(Stub):
    """Attention in disguise: every token costs more than the one before."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.reached = clock, 0

    def _forward(self, tokens: Ids, state: Any, want: Any) -> Any:
        reached = (state or 0) + tokens.size
        self.clock.now += 1e-3 * (1 + reached / 1000)
        return bench_output(super()._forward(tokens, state, want), reached)


def bench_output(out: Any, reached: int) -> Any:
    return replace(out, state=reached)


def test_a_cost_that_grows_is_seen(clock: Clock) -> None:
    measurements, observations = rows({"a": Attentive(clock)}, positions=[0, 500, 1000])
    (found,) = of_kind(observations, "latency")
    assert found["cost"] == "grows"
    assert found["ms"] == pytest.approx([1.003, 1.503, 2.003], rel=0.01)
    assert next(m.value or 0 for m in measurements if m.name == "cost_growth") > 0.5


def test_positions_are_reached_to_the_token(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beyond one call's worth of tokens, and the kept states are fed again and again."""
    reached: list[int] = []
    session = Attentive(clock)
    whole = session._forward

    def forward(tokens: Ids, state: Any, want: Any) -> Any:
        reached.append(state or 0)
        return whole(tokens, state, want)

    monkeypatch.setattr(session, "_forward", forward)
    _, observations = rows({"a": session}, positions=[0, 7, 1200], prefill=[], decode=0)
    (found,) = of_kind(observations, "latency")
    turns = reached[4:]  # 7 tokens, then 512, 512 and 169 more lead there
    assert reached[:4] == [0, 7, 519, 1031]
    assert {turns[i] for i in range(0, len(turns), 4)} == {0, 7, 1200}
    assert all(turns[i + 3] - turns[i] == 3 for i in range(0, len(turns), 4))
    assert [len(each) for each in found["samples"]] == [24, 24, 24]


def test_one_position_has_no_growth_and_none_no_latency(clock: Clock) -> None:
    measurements, observations = rows({"a": clock.session("a", 1e-3)}, positions=[64])
    assert len(of_kind(observations, "latency")) == 1
    assert not [m for m in measurements if m.name == "cost_growth"]
    _, observations = rows({"a": clock.session("a", 1e-3)}, positions=[])
    assert not of_kind(observations, "latency")


def test_slow_subjects_are_looked_at_less_often(clock: Clock) -> None:
    _, observations = rows({"a": clock.session("a", 2.0)}, positions=[0, 1])
    (found,) = of_kind(observations, "latency")
    assert len(found["samples"][0]) == 2  # rounds


# ---- who takes part --------------------------------------------------------------------------------


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
