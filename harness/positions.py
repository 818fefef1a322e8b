"""Cost by position: milliseconds of one more token behind states that lie ever deeper in a text.

A recurrent state is all that a token sees, so the cost has to be constant. States at all positions are made first, then
all of them have their turns in the same rounds: a machine that slows down slows all of them down.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.base import Session, Want
from harness import statistics
from harness.cells import Plan, interleaved, step
from harness.measures.base import Context
from reports.record import Measurement, Observation

CHUNK = 512
"""Tokens of one call on the way to a position."""

STEPS = (3, 128)
"""Tokens of one turn that count, at least and at most. One before them does not: it finds caches that others filled."""

ROUNDS = 24

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
            data = cost(session, context, where, plan)
        yield Observation("speed", context.case.name, name, "latency", data)
        if len(where) > 1:
            span = f"from position {where[0]} to {where[-1]}"
            words = f"{span}: {100 * data['growth_low']:+.1f}% to {100 * data['growth_high']:+.1f}%, {data['cost']}"
            yield Measurement("speed", context.case.name, name, "cost_growth", data["growth"], "", words)


def cost(session: Session, context: Context, where: list[int], plan: Plan) -> dict[str, Any]:
    """Milliseconds at every position with intervals; the growth over all of them, and what it comes to.

    A turn's sample is the median of its tokens. The growth is that of samples by their round's median, so that a
    machine which slows down from round to round is no growth.
    """
    states = dict(zip(map(str, where), _states(session, context, where), strict=True))
    count = _steps(session, states[str(where[0])], plan.least)
    turns = {name: partial(_turn, session, state, count) for name, state in states.items()}
    found = interleaved(turns, context.seed, partial(_enough, plan.seconds))
    tokens = np.array([found[str(at)] for at in where])  # position, round, token
    ms = np.median(tokens, axis=-1)
    middles = [statistics.median(each) for each in ms]
    data: dict[str, Any] = {
        "position": where,
        "ms": [middle.value for middle in middles],
        "low": [middle.low for middle in middles],
        "high": [middle.high for middle in middles],
        "samples": ms.tolist(),
        "tokens_a_sample": count,
        "percentiles": statistics.percentiles(tokens.ravel()),
    }
    return data | (_growth(where, ms / np.median(ms, axis=0)) if len(where) > 1 else {})


def _growth(where: list[int], relative: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Slope over all samples (position, round), as a change over the whole span."""
    at = np.broadcast_to(np.array(where)[:, None], relative.shape)
    change = statistics.growth(at, relative)
    verdict = statistics.cost_verdict(change)
    return {"growth": change.value, "growth_low": change.low, "growth_high": change.high, "cost": verdict}


def _steps(session: Session, state: Any, least: float) -> int:
    """How many tokens a turn has to take to last so many seconds."""
    return int(np.clip(np.ceil(least / min(step(session, state, STEPS[0] + 1)[1:])), *STEPS))


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


def _turn(session: Session, state: Any, count: int) -> list[float]:
    return [1e3 * one for one in step(session, state, count + 1)[1:]]


def _enough(seconds: float, found: Mapping[str, list[list[float]]]) -> bool:
    taken = sum(one for turns in found.values() for turn in turns for one in turn) / 1e3
    rounds = len(next(iter(found.values())))
    return rounds >= ROUNDS or (rounds >= 2 and taken > seconds)
