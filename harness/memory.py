"""Memory of this process and of its children, as Linux tells it; nothing where it does not."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

from backends import probe

PROC = Path("/proc")


@dataclass(frozen=True)
class Memory:
    """Resident memory at one moment.

    Attributes:
        now: bytes of this process.
        peak: the most since `forget_peak`.
        children: process id -> its own peak.
        device: bytes that torch took on a GPU at most since `forget_peak`; None on a CPU.
    """

    now: int
    peak: int
    children: dict[int, int]
    device: int | None = None


def look(device: str = "cpu", root: Path = PROC) -> Memory | None:
    """Memory now, of a GPU too where `device` is one; None where the system does not tell."""
    own = _status(root, os.getpid())
    if own is None:
        return None
    family = {pid: found for pid in _descendants(root, os.getpid()) if (found := _status(root, pid))}
    return Memory(*own, {pid: peak for pid, (_, peak) in family.items()}, probe.device_memory(device))


def forget_peak(device: str = "cpu", root: Path = PROC) -> None:
    """Begin a new maximum where that is allowed; elsewhere the peak stays the process's own."""
    probe.forget_peak(device)
    try:
        (root / "self" / "clear_refs").write_text("5")
    except OSError:
        return


def grown(before: Memory | None, after: Memory | None) -> dict[str, int]:
    """Bytes that something took at most between two looks, here and in children that it started; {} if unknown."""
    if before is None or after is None:
        return {}
    new = {pid: peak for pid, peak in after.children.items() if pid not in before.children}
    found = {"own": max(0, after.peak - before.now)}
    if before.device is not None and after.device is not None:
        found["device"] = max(0, after.device - before.device)
    return found | ({"children": sum(new.values()), "processes": len(new)} if new else {})


def _status(root: Path, pid: int) -> tuple[int, int] | None:
    """Resident bytes and their maximum."""
    try:
        text = (root / str(pid) / "status").read_text(errors="replace")
    except OSError:
        return None
    found = {name: int(kb) * 1024 for name, kb in re.findall(r"^Vm(RSS|HWM):\s+(\d+) kB", text, re.MULTILINE)}
    return (found["RSS"], found["HWM"]) if {"RSS", "HWM"} <= found.keys() else None


def _descendants(root: Path, pid: int) -> list[int]:
    """Children and theirs."""
    found: list[int] = []
    queue = [pid]
    for parent in queue:
        for task in (root / str(parent) / "task").glob("*/children"):
            try:
                queue += map(int, task.read_text().split())
            except OSError:
                continue
        found = queue[1:]
    return found
