"""The C functions that Python calls, and the two that need no model: scans and the memory probe."""

import ctypes
import weakref
from functools import cache

import torch
from torch import Tensor

from backends.native import build
from backends.native.packing import on_huge_pages, pointer


@cache
def typed(instructions: str, dtype: str) -> ctypes.CDLL:
    """The C program of an instruction set and a number format, with the types of what is called.

    Raises:
        NoProgramError: it cannot be had.
    """
    lib, handle = build.library(instructions, dtype), ctypes.c_void_p
    lib.pool_new.argtypes, lib.pool_new.restype = [ctypes.c_int], handle
    lib.pool_free.argtypes, lib.pool_free.restype = [handle], None
    lib.buffers_new.argtypes, lib.buffers_new.restype = [], handle
    lib.buffers_free.argtypes, lib.buffers_free.restype = [handle], None
    lib.read_memory.argtypes, lib.read_memory.restype = [handle, handle, ctypes.c_size_t], None
    lib.skipped.argtypes, lib.skipped.restype = [handle], ctypes.c_double
    lib.unread.argtypes, lib.unread.restype = [handle], ctypes.c_double
    lib.rwkv7.argtypes = [handle, handle, *[handle] * 4, *[ctypes.c_int] * 3, handle]
    lib.wkv.argtypes, lib.wkv.restype = [handle, *[ctypes.c_int] * 4, *[handle] * 10], None
    return lib


@cache
def _pool(instructions: str, threads: int) -> int:
    """Threads for scans, which belong to no model; they stay."""
    pool: int = typed(instructions, "f32").pool_new(threads)
    return pool


def scan(parts: dict[str, Tensor], S: Tensor) -> tuple[Tensor, Tensor]:
    """A recurrence over a prompt.

    Args:
        parts: r, w, k, v (B, T, H, N) float32, and kk, b likewise for RWKV-7 or u (H, N) for RWKV-5 and 6.
        S: (B, H, N, N), the state before; not written to.

    Returns:
        y (B, T, H, N) and the state after the last token.
    """
    instructions = build.chosen()
    held = {name: part.contiguous() for name, part in parts.items()}  # kept until the call is over
    S = S.contiguous()
    y, after = torch.empty_like(held["r"]), torch.empty_like(S)
    pointers = [pointer(held.get(name)) for name in ("r", "w", "k", "v", "kk", "b", "u")]
    pool = _pool(instructions, torch.get_num_threads())
    typed(instructions, "f32").wkv(pool, *held["r"].shape, *pointers, *map(pointer, (S, y, after)))
    return y, after


class MemoryProbe:
    """How fast memory is read: what decode is measured against.

    Attributes:
        nbytes: what one `read` reads; far more than caches hold.
    """

    nbytes = 1 << 28

    def __init__(self, threads: int) -> None:
        self._lib = typed(build.chosen(), "f32")
        self._memory = on_huge_pages(self.nbytes).fill_(1)
        self._pool = self._lib.pool_new(threads)
        weakref.finalize(self, self._lib.pool_free, self._pool)

    def read(self) -> None:
        """Read all of it once, with every thread."""
        self._lib.read_memory(self._pool, pointer(self._memory), self.nbytes)
