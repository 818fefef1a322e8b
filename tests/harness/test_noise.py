"""Counters of a made-up machine: whose time is foreign, and who is named."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness import noise
from harness.noise import Watch

TICKS = os.sysconf("SC_CLK_TCK")
OWN = os.getpid()


class Machine:
    """A folder that looks like /proc, with time that passes when it is told to."""

    def __init__(self, root: Path) -> None:
        self.root, self.busy, self.stolen = root, 1000, 0
        self.processes: dict[int, list[int]] = {}
        self.names: dict[int, str] = {}

    def process(self, pid: int, parent: int, name: str, ticks: int = 0, reaped: int = 0) -> None:
        self.processes[pid] = [parent, ticks, reaped]
        self.names[pid] = name

    def work(self, pid: int, ticks: int) -> None:
        self.processes[pid][1] += ticks
        self.busy += ticks

    def write(self) -> None:
        (self.root / "stat").write_text(f"cpu {self.busy} 0 0 5000 0 0 0 {self.stolen} 0 0\ncpu0 ...\n")
        for pid, (parent, ticks, reaped) in self.processes.items():
            folder = self.root / str(pid)
            folder.mkdir(exist_ok=True)
            zeros = " ".join(["0"] * 9)
            text = f"{pid} ({self.names[pid]}) S {parent} {zeros} {ticks} 0 {reaped} 0 20 0"
            (folder / "stat").write_text(text)


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    made = Machine(tmp_path)
    made.process(OWN, 1, "python")
    made.process(7, 1, "cc1 (odd) name", ticks=500)
    times = iter([100.0, 110.0])
    monkeypatch.setattr(noise, "time", SimpleNamespace(monotonic=lambda: next(times)))
    made.write()
    return made


def test_own_work_and_that_of_children_is_not_foreign(machine: Machine) -> None:
    with Watch(machine.root) as watch:
        machine.process(50, OWN, "child")
        machine.process(51, 50, "grandchild")
        for pid, ticks in ((OWN, 10 * TICKS), (50, 3 * TICKS), (51, 2 * TICKS)):
            machine.work(pid, ticks)
        machine.write()
    assert watch.noise is not None
    assert (watch.noise.foreign, watch.noise.stolen, watch.noise.busiest) == (0.0, 0.0, ())
    assert watch.noise.seconds == 10.0
    assert not watch.noise.noticed


def test_foreign_threads_are_counted_and_named(machine: Machine) -> None:
    with Watch(machine.root) as watch:
        machine.work(OWN, 10 * TICKS)
        machine.work(7, 5 * TICKS)
        machine.busy += 2 * TICKS  # of somebody who cannot be seen from here
        machine.stolen += 4 * TICKS
        machine.write()
    assert watch.noise is not None
    assert (watch.noise.foreign, watch.noise.stolen) == (0.7, 0.4)
    assert watch.noise.busiest == (("cc1 (odd) name", 0.5),)
    assert watch.noise.noticed


def test_children_that_ended_were_ours(machine: Machine) -> None:
    machine.process(60, OWN, "compiler", ticks=100)
    machine.write()
    with Watch(machine.root) as watch:
        machine.busy += 3 * TICKS + 2 * TICKS  # ours, and somebody else's
        (machine.root / "60" / "stat").unlink()
        del machine.processes[60]
        machine.process(OWN, 1, "python", reaped=100 + 3 * TICKS)
        machine.write()
    assert watch.noise is not None
    assert watch.noise.foreign == 0.2


def test_without_counters_nothing_is_claimed(tmp_path: Path) -> None:
    with Watch(tmp_path) as watch:
        pass
    assert watch.noise is None


def test_on_this_machine() -> None:
    with Watch() as watch:
        sum(range(10**6))
    assert watch.noise is None or 0 <= watch.noise.foreign < 10_000
