"""What the bench times: cells, one sample of each, and rounds in which everybody has a turn."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np

from backends.base import Ids, Session, Want
from backends.errors import BackendError
from harness import statistics

WARM_UP = (2, 12)
"""Samples before counting: at least, at most."""

ENOUGH = 5
"""Rounds that a cell has at least, however slow a subject is."""

TICK = 1e-9
"""Seconds: no sample is shorter, also where the clock did not move."""

MOST_REPEATS = 20
"""Of what is over in a moment, within one sample."""

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """One thing that is timed.

    Attributes:
        what: "prefill" (a prompt, to the logits after its last token) or "decode" (greedy generation).
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

    @property
    def work(self) -> int:
        """Tokens of one sample, of all rows together."""
        return self.tokens * self.batch

    def facts(self) -> dict[str, Any]:
        """For evidence."""
        return {"what": self.what, "tokens": self.tokens, "batch": self.batch}


@dataclass(frozen=True)
class Plan:
    """Which cells are timed, and how long.

    Attributes:
        prefill: lengths of prompts.
        decode: tokens that one sample of decoding generates.
        batches: rows.
        positions: where the cost of one more token is looked at.
        rounds: of every cell.
        longer: a cell goes on for so many times its rounds while the same thing timed twice does not read equivalent.
        least: seconds; what takes less is repeated within one sample, so that no moment's disturbance decides it.
        seconds: a cell stops early once a subject has used so many and has enough rounds.
        patient: whether all rounds are made however long they take.
        control: in which kinds of cells the first subject is timed twice.
        probe: whether the machine's limits are probed in between.
        most: tokens of a prompt, all rows together, beyond which only a single row is timed; 0 is no limit.
    """

    prefill: tuple[int, ...]
    decode: int
    batches: tuple[int, ...]
    positions: tuple[int, ...] = (0, 512)
    rounds: int = 12
    longer: int = 1
    least: float = 0.002
    seconds: float = 4.0
    patient: bool = False
    control: tuple[str, ...] = ("decode",)
    probe: bool = False
    most: int = 0

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From a case's options."""
        plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in options.items()}
        return cls(**plain)

    def cells(self) -> Iterator[Cell]:
        """In the order in which they are timed: decoding first, whose control speaks for cells without one."""
        if self.decode:
            yield from (Cell("decode", self.decode, B) for B in self.batches)
        for B in self.batches:
            for length in self.prefill:
                if B == 1 or not self.most or length * B <= self.most:
                    yield Cell("prefill", length, B)


class Skipped(NamedTuple):
    """What a subject says it left out, where it would have met zeros: operations, and bytes of weights."""

    operations: float = 0.0
    bytes: float = 0.0

    @classmethod
    def so_far(cls, session: Session) -> Self:
        """Since it was opened."""
        return cls(session.skipped_operations, session.skipped_bytes)

    def since(self, before: Self) -> "Skipped":
        """What has come since `before`."""
        return Skipped(*(now - then for now, then in zip(self, before, strict=True)))


NOTHING = Skipped()
"""What a subject has left out that leaves out nothing."""


@dataclass(frozen=True)
class Sample:
    """One timed piece of work.

    Attributes:
        seconds: in all.
        tokens: seconds of every single token, where they came singly.
        joules: what the device says it used; None where it does not say.
        skipped: what the subject says it left out.
    """

    seconds: float
    tokens: tuple[float, ...] = ()
    joules: float | None = None
    skipped: Skipped = NOTHING


def sample(cell: Cell, session: Session, fed: Ids, joules: Callable[[], float] | None = None) -> Sample:
    """Time one sample, between two points at which the device has finished.

    Args:
        cell: what is timed.
        session: of whom.
        fed: (B, T) ids.
        joules: the reading of an energy counter.

    Raises:
        BackendError: it generated fewer tokens than it was asked for.
    """
    run = _prefill if cell.what == "prefill" else _decode
    before = joules() if joules else 0.0
    found = run(cell, session, fed)
    return Sample(max(found.seconds, TICK), found.tokens, joules() - before if joules else None, found.skipped)


def _prefill(cell: Cell, session: Session, fed: Ids) -> Sample:
    del cell
    session.sync()
    skipped, start = Skipped.so_far(session), time.perf_counter()
    session.forward(fed, want=Want(logits="last", state=True, fetch=False))
    session.sync()
    return Sample(time.perf_counter() - start, skipped=Skipped.so_far(session).since(skipped))


def _decode(cell: Cell, session: Session, fed: Ids) -> Sample:
    steps = session.generate(fed[:, :1], max_new_tokens=cell.tokens + 1)
    next(steps)  # the prompt and the first token are not decoding
    session.sync()
    skipped, stamps = Skipped.so_far(session), [time.perf_counter()]
    stamps.extend(time.perf_counter() for _ in steps)
    session.sync()
    seconds = time.perf_counter() - stamps[0]
    done = len(stamps) - 1
    if done != cell.tokens:  # fewer steps in less time would pass for speed
        raise BackendError(f"generate gave {done + 1} tokens, {cell.tokens + 1} were asked for")
    each = np.diff(stamps)
    singly = done > 2 and each.max() < 0.9 * each.sum()  # a program may answer with all of them at once
    left_out = Skipped.so_far(session).since(skipped)
    return Sample(seconds, tuple(map(float, each)) if singly else (), skipped=left_out)


def step(session: Session, handle: Any, count: int) -> list[float]:
    """Seconds of each of `count` tokens fed one after the other behind a kept state."""
    found = []
    token, want = np.zeros((1, 1), dtype=np.int64), Want(logits="last", state=True, fetch=False)
    for _ in range(count):
        session.sync()
        start = time.perf_counter()
        handle = session.forward(token, handle, want).state
        session.sync()
        found.append(max(time.perf_counter() - start, TICK))
    return found


def warm_up(once: Callable[[], Sample], seconds: float, least: float) -> int:
    """Run until the last samples agree, so that compiling and caches are not timed.

    Args:
        once: takes a sample.
        seconds: no more samples once they took so many.
        least: seconds that a sample shall last.

    Returns:
        How often it has to be repeated for that.
    """
    taken: list[float] = []
    for number in range(WARM_UP[1]):
        taken.append(once().seconds)
        settled = statistics.steady_from(taken, window=3) is not None if number >= 3 else False
        if number + 1 >= WARM_UP[0] and (settled or sum(taken) > seconds):
            break
    return int(np.clip(np.ceil(least / min(taken)), 1, MOST_REPEATS))


def repeated(once: Callable[[], Sample], times: int) -> Sample:
    """Several samples as one: their mean."""
    found = [once() for _ in range(times)]
    joules = [one.joules for one in found if one.joules is not None]
    return Sample(
        sum(one.seconds for one in found) / times,
        tuple(token for one in found for token in one.tokens),
        sum(joules) / times if joules else None,
        Skipped(*(sum(parts) / times for parts in zip(*(one.skipped for one in found), strict=True))),
    )


def interleaved(
    entrants: Mapping[str, Callable[[], T]], seed: int, done: Callable[[Mapping[str, list[T]]], bool]
) -> dict[str, list[T]]:
    """Rounds in which every entrant has one turn, in an order drawn anew.

    Args:
        entrants: name -> what its turn is.
        seed: of the orders.
        done: asked after every round, given all results so far.

    Returns:
        Name -> its results, in the order of the rounds.
    """
    random = np.random.default_rng(seed)
    found: dict[str, list[T]] = {name: [] for name in entrants}
    while True:
        for name in map(str, random.permutation(list(entrants))):
            found[name].append(entrants[name]())
        if done(found):
            return found
