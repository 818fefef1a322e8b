"""Counters of memory and energy, read from made-up folders."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from backends import probe
from harness import energy, memory

OWN = os.getpid()
ROOT = Path(__file__).parents[2]


def status(root: Path, pid: int, now: int, peak: int, children: str = "") -> None:
    (root / str(pid) / "task" / str(pid)).mkdir(parents=True, exist_ok=True)
    (root / str(pid) / "status").write_text(f"Name:\tx\nVmHWM:\t {peak} kB\nVmRSS:\t {now} kB\n")
    (root / str(pid) / "task" / str(pid) / "children").write_text(children)


def test_memory_of_this_process_and_of_children_that_are_new(tmp_path: Path) -> None:
    status(tmp_path, OWN, 100, 120, "41 ")
    status(tmp_path, 41, 10, 10)
    before = memory.look(root=tmp_path)
    status(tmp_path, OWN, 150, 180, "41 42 ")
    status(tmp_path, 42, 20, 30, "43")
    status(tmp_path, 43, 1, 2)
    found = memory.grown(before, memory.look(root=tmp_path))
    assert found == {"own": 80 * 1024, "children": 32 * 1024, "processes": 2}


def test_memory_that_shrank_is_no_growth(tmp_path: Path) -> None:
    status(tmp_path, OWN, 100, 100)
    before = memory.look(root=tmp_path)
    status(tmp_path, OWN, 50, 60)
    assert memory.grown(before, memory.look(root=tmp_path)) == {"own": 0}


def test_where_the_system_does_not_tell(tmp_path: Path) -> None:
    assert memory.look(root=tmp_path) is None
    assert memory.grown(None, None) == {}
    memory.forget_peak(root=tmp_path)  # is allowed to have no effect


def test_memory_of_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    status(tmp_path, OWN, 100, 100)
    taken = iter([1000, 5000])
    monkeypatch.setattr(probe, "device_memory", lambda device: next(taken) if device == "cuda:1" else None)
    before = memory.look("cuda:1", tmp_path)
    assert memory.grown(before, memory.look("cuda:1", tmp_path)) == {"own": 0, "device": 4000}


def test_a_child_that_ends_meanwhile_is_left_out(tmp_path: Path) -> None:
    status(tmp_path, OWN, 100, 100, "99")
    found = memory.look(root=tmp_path)
    assert found is not None
    assert found.children == {}


@pytest.mark.skipif(memory.look() is None, reason="this system does not tell")
def test_an_array_is_seen() -> None:
    """In a process of its own: one that ran other tests may give back as much in the same moment."""
    program = (
        "import numpy as np; from harness import memory; memory.forget_peak(); before = memory.look();"
        "held = np.ones(64 << 20, dtype=np.uint8); print(memory.grown(before, memory.look())['own'])"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, cwd=ROOT)
    assert 32 << 20 <= int(done.stdout) <= 128 << 20


def zone(root: Path, name: str, joules: float) -> Path:
    folder = root / name
    folder.mkdir(exist_ok=True)
    (folder / "max_energy_range_uj").write_text("100000000\n")
    (folder / "energy_uj").write_text(f"{int(1e6 * joules)}\n")
    return folder


def test_packages_are_summed_and_parts_of_them_left_out(tmp_path: Path) -> None:
    for name, joules in (("intel-rapl:0", 5.0), ("intel-rapl:1", 7.0), ("intel-rapl:0:0", 99.0)):
        zone(tmp_path, name, joules)
    read, words = energy.counter("cpu", tmp_path)
    assert read is not None
    assert "RAPL" in words
    before = read()
    zone(tmp_path, "intel-rapl:0", 8.0)
    assert read() - before == pytest.approx(3.0)
    zone(tmp_path, "intel-rapl:1", 1.0)  # begins anew at 100 J
    assert read() - before == pytest.approx(3.0 + 94.0)


def test_why_there_is_no_counter(tmp_path: Path) -> None:
    assert energy.counter("cpu", tmp_path) == (None, energy.counter("cpu", tmp_path / "absent")[1])
    broken = zone(tmp_path, "intel-rapl:0", 1.0)
    (broken / "energy_uj").unlink()
    assert "may not be read" in energy.counter("cpu", tmp_path)[1]
    assert "npu" in energy.counter("npu", tmp_path)[1]


class Library:
    """NVIDIA's management library in miniature."""

    def __init__(self, here: bool, counts: bool = True) -> None:
        self.here, self.counts, self.millijoules = here, counts, 5000

    def nvmlInit_v2(self) -> int:
        return 0

    def nvmlDeviceGetHandleByIndex_v2(self, index: int, handle: object) -> int:
        return 0 if self.here and index == 1 else 6

    def nvmlDeviceGetTotalEnergyConsumption(self, handle: object, found: object) -> int:
        found._obj.value = self.millijoules  # type: ignore[attr-defined]
        return 0 if self.counts else 3


def test_a_gpu_is_asked_for_its_own_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    library = Library(here=True)
    monkeypatch.setattr("ctypes.CDLL", lambda name: library)
    read, words = energy.counter("cuda:1")
    assert read is not None
    assert (read(), words) == (5.0, "the whole GPU (NVML)")
    assert energy.counter("cuda:0")[0] is None
    library.counts = False
    assert energy.counter("cuda:1") == (None, "this GPU has no energy counter")


def test_without_the_library_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> None:
        raise OSError(name)

    monkeypatch.setattr("ctypes.CDLL", absent)
    assert "is not here" in energy.counter("cuda")[1]
