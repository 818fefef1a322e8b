"""Which known mistake explains a difference: every planted fault is run on the same tokens and ranked by distance.

A candidate that makes a known mistake lies at rounding distance from the equations with that mistake planted,
however far it is from the truth. Distances are RMS over all logits that both have.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from backends.base import Array, Ids, Session, Want
from backends.errors import BackendError, HarnessError
from backends.fault_list import BATCH, CARRY, EQUATION, FAULTS, PAIRS

Open = Callable[[str], Session]
"""Subject as written ("fault:NAME@f32") -> its session on the checkpoint in question."""

Names = tuple[str, ...]

HONEST_ROWS = 8
"""Honest runs that the floor is taken from."""

ASTRAY = 2.0
"""Beyond so many times the honest floor a candidate has something to explain."""

FLOOR = 2.5
"""Up to so many times the honest floor nothing but rounding is left. Of 107 faults on the designed checkpoint, computed
with other rounding, all but two ended below 2.2 floors in f32 and below 1.9 in bf16."""

FACTOR, MARGIN = 20.0, 2.0
"""A fault that is FACTOR times nearer than the truth and MARGIN times nearer than any other explains the candidate
although more than rounding is left. Of twelve mistakes outside the catalogue none came 3.3 times nearer to a fault than
to the truth, and sin in the place of a sigmoid 4.4 times nearer to tanh. A state that is kept in bf16 does not repeat
bit by bit and comes only 4.6 times nearer: it is named the nearest, not the cause."""

HINT = 2.0
"""A fault this many times nearer than the truth is worth combining with a second one."""


@dataclass(frozen=True)
class Feed:
    """What candidate and faults are fed alike.

    Attributes:
        tokens: (B, T).
        edge: tokens of the first of two calls; 0 for one call.
    """

    tokens: Ids
    edge: int

    def logits(self, session: Session) -> Array:
        """Logits (B, T, V) of both calls, or (B, 1, V) from a session that only gives the last."""
        every = "logits-all" in session.info.abilities
        parts = [self.tokens[:, : self.edge], self.tokens[:, self.edge :]] if self.edge else [self.tokens]
        found, state = [], None
        for part in parts:
            want = Want(logits="all" if every else "last", state=len(parts) > 1)
            out = session.forward(part, state, want)
            if out.logits is None:
                raise BackendError(f"{session.info.backend} gave no logits")
            found.append(out.logits)
            state = out.state
        return np.concatenate(found, axis=1) if every else found[-1]

    def covers(self, kind: str) -> bool:
        """Whether a fault of that kind can show in what is fed."""
        return kind == EQUATION or (kind == CARRY and self.edge > 0) or (kind == BATCH and len(self.tokens) > 1)


@dataclass(frozen=True)
class Suspect:
    """One fault, or two at once.

    Attributes:
        names: of `backends.fault_list`.
        distance: RMS of candidate minus fault, in logits.
    """

    names: Names
    distance: float


@dataclass(frozen=True)
class Lineup:
    """All suspects, nearest first.

    Attributes:
        truth: distance of the candidate from the truth.
        floor: largest distance of an honest run in the candidate's number format.
        suspects: nearest first; empty where nothing had to be explained.
    """

    truth: float
    floor: float
    suspects: tuple[Suspect, ...]

    @property
    def astray(self) -> bool:
        """Whether the candidate is farther from the truth than rounding."""
        return not self.truth <= ASTRAY * self.floor

    @property
    def best(self) -> Suspect | None:
        """The nearest suspect."""
        return self.suspects[0] if self.suspects else None

    @property
    def nearer(self) -> float:
        """How many times nearer than the truth the best suspect is."""
        return _ratio(self.truth, self.best.distance) if self.best else 0.0

    @property
    def margin(self) -> float:
        """How many times farther the next best is, the best one's own pairs apart."""
        if self.best is None:
            return 0.0
        other = next((s for s in self.suspects[1:] if not set(s.names) & set(self.best.names)), None)
        return _ratio(other.distance, self.best.distance) if other else float("inf")

    @property
    def at_floor(self) -> bool:
        """Whether the best suspect leaves nothing but rounding."""
        return self.best is not None and self.best.distance <= FLOOR * self.floor

    @property
    def explained(self) -> bool:
        """Whether the best suspect is the cause, as far as logits can tell."""
        clear = self.nearer >= FACTOR and self.margin >= MARGIN
        return self.astray and self.best is not None and (clear or (self.at_floor and self.nearer >= ASTRAY))


def _ratio(far: float, near: float) -> float:
    return far / near if near > 0 else float("inf")


class Suspects:
    """The faults on one checkpoint and one prompt; what was computed once serves every candidate.

    Args:
        opened: opens faults and honest runs.
        truth: the reference's session.
        feed: what everybody is fed.
    """

    def __init__(self, opened: Open, truth: Session, feed: Feed) -> None:
        self.opened, self.session, self.feed = opened, truth, feed
        self._logits: dict[Names, Array | None] = {}
        self._floors: dict[str, float] = {}

    @cached_property
    def truth(self) -> Array:
        """Logits of the reference."""
        return self.feed.logits(self.session)

    def floor(self, dtype: str) -> float:
        """How far honest runs in a number format land from the truth, at most."""
        if dtype not in self._floors:
            rows = len(self.feed.tokens)
            fed = Feed(np.tile(self.feed.tokens, (HONEST_ROWS, 1)), self.feed.edge)
            with closing(self.opened(f"honest:0@{dtype}")) as session:
                runs = fed.logits(session)
            far = [distance(runs[i : i + rows], self.truth) for i in range(0, len(runs), rows)]
            self._floors[dtype] = max(far)
        return self._floors[dtype]

    def line_up(self, logits: Array, dtype: str, *, thorough: bool = False, cause: tuple[str, ...] = ()) -> Lineup:
        """Rank all faults by their distance from a candidate.

        Args:
            logits: the candidate's, (B, T, V), or (B, 1, V) for the last position only.
            dtype: its number format, which decides what rounding may do.
            thorough: also combine the nearest faults with every other where no single one explains.
            cause: known from elsewhere; only it, its rivals in the same tensor and its pairs are run then.
        """
        floor = self.floor("f32" if dtype == "f64" else dtype)
        found = Lineup(distance(logits, self.truth), floor, ())
        if not found.astray or not finite_prefix(logits):
            return found
        singles = self._ranked(logits, self._singles(cause))
        suspects = [*singles, *self._ranked(logits, (pair for pair in PAIRS if set(cause) <= set(pair)))]
        found = Lineup(found.truth, floor, _nearest_first(suspects, floor))
        if thorough and not found.explained and found.nearer >= HINT:
            names = [suspect.names[0] for suspect in _nearest_first(singles, floor)]
            suspects += self._ranked(logits, _combined(names))
            found = Lineup(found.truth, floor, _nearest_first(suspects, floor))
        return found

    def _singles(self, cause: Names) -> list[Names]:
        tensors = {FAULTS[name].tensor for name in cause}
        rows = (row for row in FAULTS.values() if not cause or row.tensor in tensors)
        return [(row.name,) for row in rows if self.feed.covers(row.kind)]

    def _ranked(self, logits: Array, names: Iterable[Names]) -> list[Suspect]:
        found = [(each, self._of(each)) for each in names]
        return [Suspect(each, distance(logits, planted)) for each, planted in found if planted is not None]

    def _of(self, names: Names) -> Array | None:
        """Logits with faults planted; None where they cannot be (another RWKV version)."""
        if names not in self._logits:
            try:
                with closing(self.opened(f"fault:{'+'.join(names)}@f32")) as session:
                    self._logits[names] = self.feed.logits(session)
            except HarnessError:
                self._logits[names] = None
        return self._logits[names]


def _combined(nearest: Sequence[str], most: int = 3) -> Iterator[Names]:
    """The nearest faults, each with every other."""
    for at, one in enumerate(nearest[:most]):
        yield from ((one, other) for other in nearest[at + 1 :])


def _nearest_first(suspects: Iterable[Suspect], floor: float) -> tuple[Suspect, ...]:
    """By distance, which is luck below the floor and must halve for every further fault."""

    def key(suspect: Suspect) -> tuple[float, float]:
        return max(suspect.distance, 1.5 * floor) * 2.0 ** (len(suspect.names) - 1), suspect.distance

    return tuple(sorted(suspects, key=key))


def distance(got: Array, want: Array) -> float:
    """RMS over the positions that both have and that are finite in `got`; infinity where there are none.

    A state that explodes ends in NaN; what came before still tells why.

    Args:
        got: the candidate's logits, (B, T, V).
        want: likewise; (B, 1, V) stands for the last position.
    """
    reach = min(got.shape[1], want.shape[1])
    got, want = got[:, -reach:], want[:, -reach:]
    sound = finite_prefix(got)
    if got.shape != want.shape or not sound:
        return float("inf")
    with np.errstate(all="ignore"):
        rms = float(np.sqrt(np.mean((got[:, :sound].astype(np.float64) - want[:, :sound]) ** 2)))
    return rms if np.isfinite(rms) else float("inf")


def finite_prefix(logits: Array) -> int:
    """Positions before the first at which a row of (B, T, V) is not finite."""
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=(0, 2)))
    return int(broken[0]) if broken.size else logits.shape[1]


def summaries(names: Names) -> str:
    """What the faults are, in words."""
    return "; and ".join(FAULTS[name].summary for name in names)
