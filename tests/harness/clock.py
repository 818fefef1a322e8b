"""Sessions under a clock of their own: time passes only when they compute."""

from typing import Any

import numpy as np

from backends.base import Ids
from harness import bench
from harness.cells import Cell, Plan
from harness.limits import Limits
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
