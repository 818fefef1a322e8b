"""Cost by position: milliseconds of one more token behind states that lie ever deeper in a text.

A recurrent state is all that a token sees, so the cost has to be constant. States at all positions are made first, then
all of them have their turns in the same rounds: a machine that slows down slows all of them down.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np

from backends.base import Session, Want
from harness import statistics
from harness.cells import Plan, interleaved, step
from harness.measures.base import Context
from reports.record import Measurement, Observation

CHUNK = 512
"""Tokens of one call on the way to a position."""

STEPS = 4
"""Tokens of one turn; the first is not counted, since it finds caches that others have filled."""

ROUNDS = 6

Blaming = Callable[[str], AbstractContextManager[None]]


def measure(
    sessions: Mapping[str, Session], context: Context, plan: Plan, progress: Callable[[str], None], blaming: Blaming
) -> Iterator[Measurement | Observation]:
    """Time one more token at every position of the plan, one subject after the other.

    Yields:
        Observation "latency" and the measurement cost_growth: its change over the whole span, as a share.

    Raises:
        BrokenSubjectError: a subject broke; it is named.
    """
    where = sorted(set(plan.positions))
    for name, session in sessions.items() if where else ():
        progress(f"speed: cost by position, {name}")
        with blaming(name):
            data = cost(session, context, where, plan.seconds)
        yield Observation("speed", context.case.name, name, "latency", data)
        if len(where) > 1:
            span = f"from position {where[0]} to {where[-1]}"
            words = f"{span}: {100 * data['growth_low']:+.1f}% to {100 * data['growth_high']:+.1f}%, {data['cost']}"
            yield Measurement("speed", context.case.name, name, "cost_growth", data["growth"], "", words)


def cost(session: Session, context: Context, where: list[int], seconds: float) -> dict[str, Any]:
    """Milliseconds at every position with intervals; the growth over all of them, and what it comes to."""
    states = dict(zip(map(str, where), _states(session, context, where), strict=True))
    turns = {name: partial(_turn, session, state) for name, state in states.items()}
    found = interleaved(turns, context.seed, partial(_enough, seconds))
    ms = {name: [one for turn in turns for one in turn] for name, turns in found.items()}
    middles = [statistics.median(ms[str(at)]) for at in where]
    data: dict[str, Any] = {
        "position": where,
        "ms": [middle.value for middle in middles],
        "low": [middle.low for middle in middles],
        "high": [middle.high for middle in middles],
        "samples": [ms[str(at)] for at in where],
        "percentiles": statistics.percentiles([one for each in ms.values() for one in each]),
    }
    return data | (_growth(where, data["samples"]) if len(where) > 1 else {})


def _growth(where: list[int], samples: list[list[float]]) -> dict[str, Any]:
    """Slope over all samples, as a change over the whole span."""
    at = [position for position, each in zip(where, samples, strict=True) for _ in each]
    change = statistics.growth(at, [one for each in samples for one in each])
    verdict = statistics.cost_verdict(change)
    return {"growth": change.value, "growth_low": change.low, "growth_high": change.high, "cost": verdict}


def _states(session: Session, context: Context, where: list[int]) -> Iterator[Any]:
    """A handle at every position."""
    handle, reached = None, 0
    for position in where:
        while reached < position:
            count = min(CHUNK, position - reached)
            fed = np.resize(np.roll(context.tokens, -reached), count)
            handle = session.forward(fed, handle, Want(logits="none", state=True)).state
            reached += count
        yield handle


def _turn(session: Session, state: Any) -> list[float]:
    return [1e3 * one for one in step(session, state, STEPS)[1:]]


def _enough(seconds: float, found: Mapping[str, list[list[float]]]) -> bool:
    taken = sum(one for turns in found.values() for turn in turns for one in turn) / 1e3
    rounds = len(next(iter(found.values())))
    return rounds >= ROUNDS or (rounds >= 2 and taken > seconds)
