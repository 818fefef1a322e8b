"""A race in which somebody or something breaks: what was timed before stays, and the others go on."""

from typing import Any

import pytest

from backends.base import Ids
from harness import bench, cells
from harness.bench import Row
from harness.limits import Limits, Work
from reports.record import Measurement, Observation
from tests.harness.clock import OPTIONS, Clock
from tests.harness.stub import QUIET, Stub, context


def breaks(clock: Clock, name: str) -> Stub:
    """A session that breaks for good at its tenth prompt of 8 tokens."""
    session, prompts = clock.session(name, 1e-3), [0]
    steady = session.step

    def step(tokens: Ids) -> None:
        steady(tokens)
        prompts[0] += tokens.size == 8
        if prompts[0] >= 10:
            raise RuntimeError("fell off the bus")

    session.step = step
    return session


def cells_of(found: list[Row], kind: str, subject: str) -> list[str]:
    return [
        f"{row.data['what']} {row.data['tokens']}"
        for row in found
        if isinstance(row, Observation) and (row.kind, row.subject) == (kind, subject)
    ]


def told_rows(
    sessions: dict[str, Any], limits: Limits | None = None, **options: Any
) -> tuple[list[Row], dict[str, str]]:
    told: dict[str, str] = {}
    asked = context(list(range(20)), **{**OPTIONS, **options})
    found = bench.measure(sessions, asked, QUIET, limits, lambda error: told.update({error.subject: str(error.cause)}))
    return list(found), told


@pytest.mark.parametrize("who", ["first", "last"])
def test_what_was_timed_before_somebody_broke_is_kept_and_not_timed_again(clock: Clock, who: str) -> None:
    told_rows({name: clock.session(name, 1e-3) for name in ("first", "last")})
    whole = {name: clock.order.count(name) for name in ("first", "last")}
    clock.order.clear()
    of_two = {name: breaks(clock, name) if name == who else clock.session(name, 1e-3) for name in ("first", "last")}
    found, told = told_rows(of_two)
    assert told == {who: "fell off the bus"}
    other = "last" if who == "first" else "first"
    assert cells_of(found, "samples", other) == ["decode 3", "prefill 4", "prefill 8"]
    assert cells_of(found, "samples", who) == ["decode 3", "prefill 4"]
    assert cells_of(found, "ratio", "last") == ["decode 3", "prefill 4"]
    assert clock.order.count(other) <= whole[other] + cells.WARM_UP[1] + 2 * 12, "one cell again, not all of them"


def test_who_breaks_far_behind_keeps_its_cells_and_the_next_has_its_positions(clock: Clock) -> None:
    class Short(Stub):
        def _forward(self, tokens: Ids, state: Any, want: Any) -> Any:
            if want.logits == "none":
                raise RuntimeError("out of memory")
            return super()._forward(tokens, state, want)

    short = Short(clock.session("short", 1e-3).step)
    found, told = told_rows({"short": short, "b": clock.session("b", 1e-3)}, positions=[0, 8])
    assert told == {"short": "out of memory"}
    assert cells_of(found, "samples", "short") == ["decode 3", "prefill 4", "prefill 8"]
    assert [row.subject for row in found if isinstance(row, Observation) and row.kind == "latency"] == ["b"]
    memory = {row.subject for row in found if isinstance(row, Measurement) and row.name == "working_memory"}
    assert "short" not in memory


@pytest.mark.parametrize("good", [0, 20])
def test_a_probe_that_breaks_takes_only_the_limits(clock: Clock, good: int) -> None:
    class Probe:
        calls = 0

        def read(self) -> float:
            Probe.calls += 1
            if Probe.calls > good:
                raise RuntimeError("an illegal address")
            return 1e9

        copy = read

        def gemm(self, dtype: str) -> float:
            return 1e12

    limits = Limits(Work(1 << 20, 1 << 10, 1 << 20, 64), 0, lambda device: Probe())  # type: ignore[arg-type,return-value]
    found, told = told_rows({"a": clock.session("a", 1e-3)}, limits, probe=True)
    assert told == {}
    assert cells_of(found, "samples", "a") == ["decode 3", "prefill 4", "prefill 8"]
    samples = [row.data for row in found if isinstance(row, Observation) and row.kind == "samples"]
    assert {data.get("no_limit") for data in samples} == {"the probe of cpu broke: an illegal address"}
