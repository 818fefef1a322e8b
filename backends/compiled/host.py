"""Where a session computes: devices checked in words, and named."""

import platform
from pathlib import Path

import torch

from backends.errors import BackendError


def checked_device(device: str) -> torch.device:
    """The device of that name.

    Raises:
        BackendError: torch knows no such device, or cannot use it here.
    """
    try:
        found = torch.device(device)
    except RuntimeError as error:
        raise BackendError(f"torch knows no device {device!r}; use cpu, cuda or cuda:N.") from error
    if found.type not in ("cpu", "cuda"):
        raise BackendError(f"this backend computes on cpu and cuda, not on {device!r}.")
    if found.type == "cuda" and not torch.cuda.is_available():
        raise BackendError(
            f"device {device!r} was asked for, but torch {torch.__version__} finds no usable CUDA device here."
        )
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        raise BackendError(
            f"device {device!r} was asked for; there are {torch.cuda.device_count()} CUDA devices, from cuda:0."
        )
    return found


def device_name(device: torch.device) -> str:
    """The product name of the GPU or the processor, or the processor's family where nothing says more."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
