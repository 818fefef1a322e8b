"""Speed of several subjects in one run: interleaved in random order, every sample kept, intervals printed.

Machines drift; a subject timed after another is timed on another machine. So each round times every
subject once, in an order drawn anew, and ratios are taken from the same rounds.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.base import Ids, Session, Want
from backends.errors import BackendError
from harness import statistics
from harness.measures.base import Context
from reports.record import Measurement, Observation

Row = Measurement | Observation

WARM_UP = (2, 12)  # rounds before counting: at least, at most
CELL_SECONDS = 4.0  # a cell stops early once each subject has used this much and has enough rounds
ENOUGH = 5
TICK = 1e-9  # seconds: no sample is shorter, also where the clock did not move
PROBE = 256  # tokens between the positions at which the cost of one more token is looked at


class BrokenSubjectError(Exception):
    """A subject broke while it was timed; `cause` is its own error."""

    def __init__(self, subject: str, cause: Exception) -> None:
        super().__init__(subject)
        self.subject, self.cause = subject, cause


@dataclass(frozen=True)
class Cell:
    """One thing that is timed.

    Attributes:
        what: "prefill" or "decode".
        tokens: how many tokens one sample handles, a row.
        batch: rows.
    """

    what: str
    tokens: int
    batch: int

    @property
    def name(self) -> str:
        """For the name of measurements."""
        return f"{self.what}_T{self.tokens}_B{self.batch}"


def measure(sessions: Mapping[str, Session], context: Context, progress: Callable[[str], None]) -> Iterator[Row]:
    """Time every cell of the case on every subject.

    Args:
        sessions: subject id -> opened session that has passed logits.
        context: case with options prefill, decode, rounds, batches; tokens to feed.
        progress: told which cell is timed.

    Yields:
        Measurements (tokens/s, median), and observations "samples", "ratio" and "latency".

    Raises:
        BrokenSubjectError: a subject broke; it is named.
    """
    options = context.case.options
    cells = [Cell("prefill", T, B) for B in options["batches"] for T in options["prefill"]]
    cells += [Cell("decode", options["decode"], B) for B in options["batches"]]
    for cell in cells:
        able = {name: s for name, s in sessions.items() if cell.batch == 1 or "batch" in s.info.abilities}
        progress(f"speed: {cell.what}, {cell.tokens} tokens, batch {cell.batch}, {len(able)} subjects")
        if able:
            yield from _rows(cell, time_cell(cell, able, context.tokens, options["rounds"], context.seed), context)
    for name, session in sessions.items():
        progress(f"speed: cost by position, {name}")
        with _blaming(name):
            rows = list(_latency(name, session, context))
        yield from rows


@contextmanager
def _blaming(name: str) -> Iterator[None]:
    """Say whose error it is."""
    try:
        yield
    except Exception as error:  # a backend may break in any way
        raise BrokenSubjectError(name, error) from error


def time_cell(
    cell: Cell, sessions: Mapping[str, Session], tokens: Ids, rounds: int, seed: int
) -> dict[str, list[float]]:
    """Interleaved samples of one cell: subject -> seconds, one a round, in the order of the rounds."""
    random = np.random.default_rng(seed)
    fed = np.tile(np.resize(tokens, cell.tokens), (cell.batch, 1))
    for name, session in sessions.items():
        with _blaming(name):
            _warm_up(cell, session, fed)
    samples: dict[str, list[float]] = {name: [] for name in sessions}
    for number in range(rounds):
        for name in map(str, random.permutation(list(sessions))):
            with _blaming(name):
                samples[name].append(max(_sample(cell, sessions[name], fed), TICK))
        if number + 1 >= ENOUGH and max(sum(s) for s in samples.values()) > CELL_SECONDS:
            break
    return samples


def _warm_up(cell: Cell, session: Session, fed: Ids) -> None:
    """Run until the last samples agree, so that compiling and caches are not timed."""
    seconds: list[float] = []
    for number in range(WARM_UP[1]):
        seconds.append(_sample(cell, session, fed))
        settled = statistics.steady_from(seconds, window=3) is not None if number >= 3 else False
        if number + 1 >= WARM_UP[0] and (settled or sum(seconds) > CELL_SECONDS):
            return


def _sample(cell: Cell, session: Session, fed: Ids) -> float:
    """Seconds of one sample, between two points at which the device has finished."""
    if cell.what == "prefill":
        session.sync()
        start = time.perf_counter()
        session.forward(fed, want=Want(logits="last", state=True, fetch=False))
        session.sync()
        return time.perf_counter() - start
    steps = session.generate(fed[:, :1], max_new_tokens=cell.tokens + 1)
    next(steps)  # the prompt and the first token are not decoding
    session.sync()
    start = time.perf_counter()
    done = sum(1 for _ in steps)
    session.sync()
    seconds = time.perf_counter() - start
    if done != cell.tokens:  # fewer steps in less time would pass for speed
        raise BackendError(f"generate gave {done + 1} tokens, {cell.tokens + 1} were asked for")
    return seconds


def _rows(cell: Cell, samples: Mapping[str, list[float]], context: Context) -> Iterator[Row]:
    case, work = context.case.name, cell.tokens * cell.batch
    shape = {"what": cell.what, "tokens": cell.tokens, "batch": cell.batch}
    for name, seconds in samples.items():
        middle = statistics.median(seconds)
        rates = {"median": work / middle.value, "low": work / middle.high, "high": work / middle.low}
        yield Observation("speed", case, name, "samples", {**shape, "seconds": seconds, **rates})
        yield Measurement(
            "speed", case, name, f"{cell.name}_tokens_per_s", rates["median"], "tokens/s", f"{len(seconds)} rounds"
        )
    baseline = next(iter(samples))
    for name, seconds in samples.items():
        if name != baseline:
            ratio = statistics.speed_ratio(seconds, samples[baseline])
            data = {**shape, "versus": baseline, "ratio": ratio.value, "low": ratio.low, "high": ratio.high}
            yield Observation("speed", case, name, "ratio", {**data, "verdict": statistics.speed_verdict(ratio)})


def _latency(name: str, session: Session, context: Context) -> Iterator[Row]:
    """Milliseconds of one more token at growing positions: constant, if the state is all there is."""
    positions, ms, low, high = [], [], [], []
    handle: Any = None
    fed = np.resize(context.tokens, PROBE)
    reach = max(2 * max(context.case.options["prefill"]), PROBE)
    for position in range(0, reach + 1, PROBE):
        token_ms = [1e3 * _step(session, handle) for _ in range(12)][2:]
        middle = statistics.median(token_ms)
        positions.append(position)
        ms.append(middle.value)
        low.append(middle.low)
        high.append(middle.high)
        handle = session.forward(fed, handle, Want(logits="none", state=True)).state
    data = {"position": positions, "ms": ms, "low": low, "high": high}
    yield Observation("speed", context.case.name, name, "latency", data)
    change = statistics.growth(positions, ms)
    where = f"from position 0 to {positions[-1]}: {100 * change.low:+.1f}% to {100 * change.high:+.1f}%"
    yield Measurement("speed", context.case.name, name, "cost_growth", change.value, "", where)


def _step(session: Session, handle: Any) -> float:
    """Seconds of one decoded token after `handle`."""
    session.sync()
    start = time.perf_counter()
    session.forward(np.zeros((1, 1), dtype=np.int64), handle, Want(logits="last", state=True, fetch=False))
    session.sync()
    return time.perf_counter() - start
