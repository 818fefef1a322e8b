"""Who else was busy: the machine's counters of processor time against those of this process and its children."""

import os
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

PROC = Path("/proc")
NOTICED = 0.1
"""Busy foreign threads, on average, from which on they are told."""

NAMED = 3


@dataclass(frozen=True)
class Noise:
    """What else went on during a stretch of time.

    Attributes:
        seconds: its length.
        foreign: threads of others that were busy, on average.
        stolen: threads' worth of time that the hypervisor gave to other machines.
        busiest: names of other processes that can be seen, with their busy threads, the busiest first.
    """

    seconds: float
    foreign: float
    stolen: float
    busiest: tuple[tuple[str, float], ...] = ()

    @property
    def noticed(self) -> bool:
        """Whether it is worth telling."""
        return self.foreign >= NOTICED or self.stolen >= NOTICED


@dataclass(frozen=True)
class _Process:
    name: str
    parent: int
    ticks: int
    reaped: int  # of children that have ended


@dataclass(frozen=True)
class _Look:
    """The counters at one moment, in clock ticks."""

    at: float
    busy: int
    stolen: int
    processes: dict[int, _Process]


class Watch:
    """Watches the machine while it is open; afterwards `noise` says what went on, None where no counters exist."""

    def __init__(self, root: Path = PROC) -> None:
        self.noise: Noise | None = None
        self._root = root
        self._before: _Look | None = None

    def __enter__(self) -> Self:
        self._before = _look(self._root)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        after = _look(self._root)
        if self._before is not None and after is not None:
            self.noise = _between(self._before, after)


def _look(root: Path) -> _Look | None:
    """The counters now; None where the system has none."""
    try:
        line = (root / "stat").read_text().split("\n", 1)[0].split()
        user, nice, system, _, _, irq, soft, *rest = map(int, line[1:])
    except (OSError, ValueError):
        return None
    busy, stolen = user + nice + system + irq + soft, rest[0] if rest else 0
    found = ((int(folder.name), _process(folder)) for folder in root.iterdir() if folder.name.isdecimal())
    return _Look(time.monotonic(), busy, stolen, {pid: process for pid, process in found if process})


def _process(folder: Path) -> _Process | None:
    """One process; None if it has just ended."""
    try:
        text = (folder / "stat").read_text(errors="replace")
    except OSError:
        return None
    name, _, rest = text.partition("(")[2].rpartition(")")
    fields = rest.split()  # from the state on: field 3 of proc(5)
    return _Process(name, int(fields[1]), int(fields[11]) + int(fields[12]), int(fields[13]) + int(fields[14]))


def family(processes: dict[int, _Process], root: int) -> set[int]:
    """A process and all its descendants."""
    found, grown = {root}, True
    while grown:
        more = {pid for pid, process in processes.items() if process.parent in found} - found
        found |= more
        grown = bool(more)
    return found


def _between(before: _Look, after: _Look) -> Noise:
    ticks = os.sysconf("SC_CLK_TCK") * max(after.at - before.at, 1e-9)
    mine = family(before.processes, os.getpid()) | family(after.processes, os.getpid())
    used = {pid: now.ticks - _ticks(before, pid) for pid, now in after.processes.items()}
    ended = sum(_ticks(before, pid) for pid in mine - used.keys())  # `_reaped` counts them from their start
    own = sum(used.get(pid, 0) for pid in mine) + _reaped(after) - _reaped(before) - ended
    foreign = max(0.0, (after.busy - before.busy - own) / ticks)
    others = sorted(((count, pid) for pid, count in used.items() if pid not in mine and count > 0), reverse=True)
    busiest = tuple((after.processes[pid].name, round(count / ticks, 2)) for count, pid in others[:NAMED])
    stolen = max(0.0, (after.stolen - before.stolen) / ticks)
    shown = tuple((name, busy) for name, busy in busiest if busy >= NOTICED / 2)
    return Noise(after.at - before.at, round(foreign, 2), round(stolen, 2), shown)


def _ticks(look: _Look, pid: int) -> int:
    return look.processes[pid].ticks if pid in look.processes else 0


def _reaped(look: _Look) -> int:
    """Ticks of our children that have ended; they are counted with us from then on."""
    own = look.processes.get(os.getpid())
    return own.reaped if own else 0
