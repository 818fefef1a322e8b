"""What opening a subject costs: time, memory, the first answer; and how large its state is."""

import time
from collections.abc import Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.base import Session, Want
from backends.registry import open_session, parse
from harness import energy, memory
from reports.record import Measurement, Observation

if TYPE_CHECKING:
    from backends.base import Ids
    from backends.weights import Weights

FIRST = 16
"""Tokens of the first prompt."""


def opened(name: str, weights: "Weights", threads: int, tokens: "Ids") -> tuple[Session, dict[str, Any]]:
    """Open a subject and ask it once, by the clock.

    Args:
        name: its id.
        weights: the checkpoint.
        threads: as `open_session`.
        tokens: a prompt, whose first tokens are asked.

    Returns:
        The session, and `load_seconds`, `first_seconds` (from the first call to its logits, compilers included; left
        out where that call broke, which the suites will find), and what it took of memory: bytes `own`, of `device`
        and of `children`.

    Raises:
        Exception: whatever opening raised.
    """
    device = parse(name).device
    memory.forget_peak(device)
    before, start = memory.look(device), time.perf_counter()
    session = open_session(parse(name), weights, threads)
    data: dict[str, Any] = {"load_seconds": time.perf_counter() - start}
    if session.timed:
        with suppress(Exception):  # a backend may break in any way
            start = time.perf_counter()
            session.forward(tokens[:FIRST], want=Want(logits="last"))
            session.sync()
            data["first_seconds"] = time.perf_counter() - start
    return session, data | memory.grown(before, memory.look(device))


def rows(case: str, name: str, session: Session, data: dict[str, Any]) -> Iterator[Measurement | Observation]:
    """What opening came to, with what else is known of a subject at rest.

    Yields:
        Observation "opening", and its numbers as measurements.
    """
    state = session.forward(np.zeros(1, dtype=np.int64), want=Want(logits="none", state=True)).state
    _, counter = energy.counter(session.info.device)
    found = {**data, "state_bytes": session.export_state(state).nbytes, "energy": counter}
    trip = session.round_trip()
    found |= {} if trip is None else {"round_trip_ms": 1e3 * trip}
    found |= {} if batches(session) else {"single_rows": True}
    yield Observation("speed", case, name, "opening", found)
    for key, measure, unit in _NUMBERS:
        if key in found:
            yield Measurement("speed", case, name, measure, float(found[key]), unit)


def batches(session: Session) -> bool:
    """Whether the rows of a batch are worth timing: whether they share the work."""
    return "batch" in session.info.abilities and session.shares_batch


_NUMBERS = (
    ("load_seconds", "load_time", "s"),
    ("first_seconds", "first_answer", "s"),
    ("own", "memory", "bytes"),
    ("device", "memory_of_device", "bytes"),
    ("children", "memory_of_children", "bytes"),
    ("state_bytes", "state_size", "bytes"),
    ("round_trip_ms", "round_trip", "ms"),
)
