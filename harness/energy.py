"""Energy counters, where the device has one that may be read."""

import ctypes
from collections.abc import Callable
from pathlib import Path

POWERCAP = Path("/sys/class/powercap")
NVML = "libnvidia-ml.so.1"

Counter = Callable[[], float]
"""Joules since some moment."""


def counter(device: str, root: Path = POWERCAP) -> tuple[Counter | None, str]:
    """The energy counter of a device.

    Args:
        device: "cpu" or "cuda:N".
        root: where the system shows the processor's counters.

    Returns:
        The counter, or None; and what it counts, or why there is none, in words.
    """
    kind, _, index = device.partition(":")
    if kind == "cuda":
        return _nvml(int(index or 0))
    if kind == "cpu":
        return _rapl(root)
    return None, f"no energy counter is known for device {device}"


def _rapl(root: Path) -> tuple[Counter | None, str]:
    """The packages' counters, summed; RAPL as Linux shows it."""
    zones = [zone for zone in sorted(root.glob("*rapl:*")) if zone.name.count(":") == 1]
    if not zones:
        return None, "this processor shows no energy counter (no RAPL zone under /sys/class/powercap)"
    try:
        meters = [_Wrapping(zone) for zone in zones]
        for meter in meters:
            meter()
    except (OSError, ValueError):
        return None, "the processor's energy counter may not be read (energy_uj needs root)"
    return lambda: sum(meter() for meter in meters), "all processor packages, idle power included (RAPL)"


class _Wrapping:
    """One zone in joules, going on where the counter begins anew."""

    def __init__(self, zone: Path) -> None:
        self._file = zone / "energy_uj"
        self._range = int((zone / "max_energy_range_uj").read_text())
        self._last = self._total = int(self._file.read_text())

    def __call__(self) -> float:
        now = int(self._file.read_text())
        self._total += now - self._last if now >= self._last else now + self._range - self._last
        self._last = now
        return self._total / 1e6


def _nvml(index: int) -> tuple[Counter | None, str]:
    """A GPU's own counter, by NVIDIA's management library."""
    try:
        library = ctypes.CDLL(NVML)
    except OSError:
        return None, f"NVIDIA's management library ({NVML}) is not here"
    handle, millijoules = ctypes.c_void_p(), ctypes.c_ulonglong()
    if library.nvmlInit_v2() or library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
        return None, "NVIDIA's management library finds no such GPU"

    def read() -> float:
        library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules))
        return millijoules.value / 1e3

    if library.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
        return None, "this GPU has no energy counter"
    return read, "the whole GPU (NVML)"
