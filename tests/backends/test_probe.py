"""The machine's limits: that they are numbers of the right kind, and that kernels which do not serve are dropped."""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from backends import probe
from backends.errors import BackendError
from backends.native import library
from backends.native.build import NoProgramError


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> probe.Probe:
    monkeypatch.setattr(probe, "LEAST_BYTES", 1 << 16)
    monkeypatch.setattr(probe, "cache_bytes", lambda: 0)
    monkeypatch.setattr(probe, "EDGES", {"cpu": (8, 16, 32), "cuda": (8, 8, 8)})
    return probe.open_probe("cpu")


def timed(monkeypatch: pytest.MonkeyPatch, *seconds: float) -> None:
    """Every kernel takes the next of these times, over and over."""
    now, order = [0.0], list(seconds)

    def perf_counter() -> float:
        now[0] += order[0] / 2
        order.append(order.pop(0))
        return now[0]

    doubled = [second for second in seconds for _ in range(2)]
    order[:] = [2 * second for second in doubled]
    for index in range(0, len(order), 2):
        order[index] = 0.0  # time passes between two looks, not before the first
    monkeypatch.setattr(probe, "time", SimpleNamespace(perf_counter=perf_counter))


def test_reading_is_bytes_over_the_time_of_the_fastest_kernel(
    small: probe.Probe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(probe, "_native", lambda threads: [])
    timed(monkeypatch, 4.0, 2.0, 8.0)
    assert small.buffer_bytes == 1 << 16
    assert small.read() == pytest.approx((1 << 16) / 2.0)


def test_a_copy_counts_both_ways(small: probe.Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 2.0)
    assert small.copy() == pytest.approx(2 * (1 << 16) / 2.0)


def test_a_product_is_two_operations_an_entry(small: probe.Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    timed(monkeypatch, 2.0)
    assert small.gemm("f32") == pytest.approx(2 * 8 * 16 * 32 / 2.0)
    assert small.gemm("bf16") == pytest.approx(2 * 8 * 16 * 32 / 2.0)


def test_a_format_without_units_is_as_fast_as_float32(small: probe.Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {"f32": 5.0, "f16": 1.0, "bf16": 9.0, "f64": 2.0}
    monkeypatch.setattr(small, "_best", lambda what, dtype, build: rates[dtype])
    assert (small.gemm("f16"), small.gemm("bf16"), small.gemm("f64")) == (5.0, 9.0, 2.0)


def test_kernels_that_break_are_dropped(small: probe.Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("no primitive")

    monkeypatch.setattr(small, "_copying", lambda: [(broken, 1), (lambda: None, 1)])
    assert small.copy() > 0
    monkeypatch.setattr(small, "_products", lambda dtype: [(broken, 1)])
    with pytest.raises(BackendError, match=r"torch cannot gemm f64 on cpu\."):
        small.gemm("f64")


class Ours:
    """The C program's probe, in a twentieth of a second."""

    nbytes = 1 << 20
    threads: int

    def __init__(self, threads: int) -> None:
        Ours.threads = threads

    def read(self) -> None:
        """Nothing."""


def test_the_c_program_takes_part_where_it_can_be_had(small: probe.Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "MemoryProbe", Ours)
    timed(monkeypatch, 4.0)
    assert small.read() == pytest.approx((1 << 20) / 4.0)
    assert Ours.threads == torch.get_num_threads()


def test_without_the_c_program_torch_reads(small: probe.Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(threads: int) -> None:
        raise NoProgramError("no C compiler")

    monkeypatch.setattr(library, "MemoryProbe", absent)
    timed(monkeypatch, 4.0)
    assert small.read() == pytest.approx((1 << 16) / 4.0)


def test_the_buffer_is_four_times_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "LEAST_BYTES", 1 << 12)
    monkeypatch.setattr(probe, "cache_bytes", lambda: 1 << 14)
    found = probe.open_probe("cpu")
    assert found.buffer_bytes == found._memory.nbytes == 1 << 16


def test_the_largest_cache_is_the_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for index, text in enumerate(("32K", "1024K", "33792K", "odd")):
        folder = tmp_path / f"index{index}"
        folder.mkdir()
        (folder / "size").write_text(text + "\n")
    monkeypatch.setattr(probe, "Path", lambda _: tmp_path)
    assert probe.cache_bytes() == 33792 << 10
    monkeypatch.setattr(probe, "Path", lambda _: tmp_path / "absent")
    assert probe.cache_bytes() == 0


def test_devices_without_a_probe_are_refused_in_words() -> None:
    with pytest.raises(BackendError, match="there is no probe for device mps; there are for cpu and cuda"):
        probe.open_probe("mps")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_an_error_in_words() -> None:
    with pytest.raises(BackendError, match="device cuda cannot be probed: "):
        probe.open_probe("cuda")


def test_a_processor_has_no_device_memory() -> None:
    assert probe.device_memory("cpu") is None
    probe.forget_peak("cpu")


def test_a_gpu_without_a_driver_is_not_asked_for_its_peak() -> None:
    if not torch.cuda.is_available():
        probe.forget_peak("cuda:0")


def test_a_gpu_is_woken_before_its_peak_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch wakes it for "cuda", and refuses "cuda:0" while it sleeps."""
    calls: list[str] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "init", lambda: calls.append("awake"))
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", calls.append)
    probe.forget_peak("cuda:0")
    assert calls == ["awake", "cuda:0"]


def test_a_gpu_times_several_turns_by_its_own_clock(small: probe.Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each turn takes 2 ms there; the host's clock, on which a launch and a wait would be, is not looked at."""
    now = [0.0]

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = now[0]

        def synchronize(self) -> None:
            now[0] += 1000.0

        def elapsed_time(self, end: "Event") -> float:
            return end.at - self.at

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    monkeypatch.setattr(probe, "time", None)
    calls: list[int] = []

    def kernel() -> None:
        calls.append(1)
        now[0] += 2.0

    monkeypatch.setattr(small, "_cuda", True)
    monkeypatch.setattr(small, "_copying", lambda: [(kernel, 1 << 30)])
    assert small.copy() == pytest.approx((1 << 30) / 2e-3)
    assert len(calls) == 2 + probe.TURNS["copy"], "twice to warm up"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_a_gpu_copies_and_multiplies() -> None:
    found = probe.open_probe("cuda")
    probe.forget_peak("cuda")
    assert found.read() > 1e10
    assert found.gemm("bf16") > 1e12
    assert (probe.device_memory("cuda") or 0) >= probe.GPU_BYTES
