"""The limits of a machine, probed: how fast it reads memory, copies it, and multiplies matrices.

A limit holds for a moment only: the same two cores of a shared server read 40 or 80 GB/s for minutes at a time. So a
probe is opened once and asked again and again, between the timings that it is held against. Light to import; torch
comes with `open_probe`.
"""

import importlib
import mmap
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from backends.errors import BackendError, HarnessError

if TYPE_CHECKING:
    import torch

LEAST_BYTES = 128 << 20
"""Of the buffer that is read; four times the last-level cache where that is more."""

GPU_BYTES = 1 << 30
EDGES = {"cpu": (1024, 2048, 1024), "cuda": (8192, 8192, 8192)}
"""Rows, columns and depth of the product: 4.3 GFLOP on a CPU, 1.1 TFLOP on a GPU."""

TURNS = {"copy": 8, "gemm": 2}
"""Of a kernel in a row on a GPU, where a copy takes half a millisecond and a product some."""

Kernel = tuple[Callable[[], object], int]
"""What is timed, and how much it does: bytes or operations."""


def cache_bytes() -> int:
    """Size of the processor's last-level cache; 0 where the system does not tell."""
    folder = Path("/sys/devices/system/cpu/cpu0/cache")
    try:
        texts = [file.read_text().strip() for file in folder.glob("index*/size")]
    except OSError:
        return 0
    factors = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
    sizes = [int(text.rstrip("KMG")) * factors.get(text[-1:], 1) for text in texts if text.rstrip("KMG").isdecimal()]
    return max(sizes, default=0)


class Probe:
    """The limits of one device. Every question is answered anew, by the fastest of several kernels.

    Args:
        device: "cpu", or "cuda:N".
    """

    def __init__(self, device: str) -> None:
        import torch

        self.device = torch.device(device)
        self._kernels: dict[tuple[str, str], list[Kernel]] = {}
        self._cuda = self.device.type == "cuda"
        self._memory = torch.ones(GPU_BYTES // 4, device=self.device) if self._cuda else _huge(self.buffer_bytes)

    @property
    def buffer_bytes(self) -> int:
        """Bytes of the buffer that is read."""
        return GPU_BYTES if self._cuda else max(LEAST_BYTES, 4 * cache_bytes())

    def read(self) -> float:
        """Bytes per second at which memory can be read; on a GPU the rate of copying, which it is held against."""
        return self.copy() if self._cuda else self._best("read", "", self._reading)

    def copy(self) -> float:
        """Bytes per second of a copy, those read and those written."""
        return self._best("copy", "", self._copying)

    def gemm(self, dtype: str) -> float:
        """Operations per second of a large matrix product: two for every multiplication and addition.

        Args:
            dtype: of the factors. On a CPU, formats that it has no units for are slower than float32, into which a
                program may convert them: the faster one counts.
        """
        asked = dict.fromkeys((dtype, "f32") if not self._cuda and dtype in ("bf16", "f16") else (dtype,))
        return max(self._best("gemm", name, partial(self._products, name)) for name in asked)

    def _best(self, what: str, dtype: str, build: Callable[[], list[Kernel]]) -> float:
        """Amount per second of the fastest kernel; built, tried and warmed when first asked for."""
        if (what, dtype) not in self._kernels:
            self._kernels[what, dtype] = [kernel for kernel in build() if _runs(kernel)]
        kernels = self._kernels[what, dtype]
        if not kernels:
            raise BackendError(f"torch cannot {what} {dtype} on {self.device}.".replace("  ", " "))
        seconds = partial(_by_events, self.device, TURNS[what]) if self._cuda else _by_clock
        return max(amount / max(seconds(kernel), 1e-9) for kernel, amount in kernels)

    def _reading(self) -> list[Kernel]:
        """Reductions with all threads that torch has, and the C program where it can be had."""
        import torch

        x = self._memory
        whole = x.view(torch.int64)
        kernels: list[Kernel] = [(kernel, self.buffer_bytes) for kernel in (x.amax, whole.amax, x.norm)]
        return kernels + _native(torch.get_num_threads())

    def _copying(self) -> list[Kernel]:
        import torch

        target = torch.empty_like(self._memory)
        return [(lambda: target.copy_(self._memory), 2 * self.buffer_bytes)]

    def _products(self, dtype: str) -> list[Kernel]:
        import torch

        from backends.weights import DTYPES

        M, N, K = EDGES[self.device.type]
        x = torch.ones(M, K, dtype=DTYPES[dtype], device=self.device)
        W = torch.ones(N, K, dtype=DTYPES[dtype], device=self.device)
        products: list[Callable[[], object]] = [lambda: torch.nn.functional.linear(x, W)]
        if not self._cuda and hasattr(torch.ops.mkldnn, "_linear_pointwise"):
            products.append(lambda: torch.ops.mkldnn._linear_pointwise(x, W, None, "none", [], ""))
        return [(product, 2 * M * N * K) for product in products]


def open_probe(device: str) -> Probe:
    """A probe of a device.

    Args:
        device: as a session's `info.device`.

    Raises:
        BackendError: there are no probes for such a device, or it cannot be used here.
    """
    if device.partition(":")[0] not in EDGES:
        raise BackendError(f"there is no probe for device {device}; there are for {' and '.join(EDGES)}.")
    try:
        return Probe(device)
    except (RuntimeError, AssertionError, OSError) as error:  # torch without CUDA asserts
        raise BackendError(f"device {device} cannot be probed: {' '.join(str(error).split())}.") from error


def device_memory(device: str) -> int | None:
    """Bytes that torch has taken on a GPU at most since `forget_peak`; None on a CPU."""
    if device.partition(":")[0] != "cuda":
        return None
    import torch

    return int(torch.cuda.max_memory_allocated(device))


def forget_peak(device: str) -> None:
    """Begin a new maximum for `device_memory`."""
    if device.partition(":")[0] == "cuda":
        import torch

        if torch.cuda.is_available():  # else the backend says so itself, in words
            torch.cuda.init()  # type: ignore[no-untyped-call] # which "cuda" brings along and "cuda:0" does not
            torch.cuda.reset_peak_memory_stats(device)


def _by_clock(kernel: Callable[[], object]) -> float:
    start = time.perf_counter()
    kernel()
    return time.perf_counter() - start


def _by_events(device: "torch.device", turns: int, kernel: Callable[[], object]) -> float:
    """Seconds of one of several in a row by the GPU's own clock: launching and waiting take a share of a single one."""
    import torch

    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        begin.record()
        for _ in range(turns):
            kernel()
        end.record()
        end.synchronize()
    return float(begin.elapsed_time(end)) / 1e3 / turns


def _runs(kernel: Kernel) -> bool:
    """Whether a kernel serves here; warms it up twice."""
    try:
        kernel[0]()
        kernel[0]()
    except RuntimeError:
        return False
    return True


def _native(threads: int) -> list[Kernel]:
    """The memory probe of the C program; nothing where that cannot be had."""
    try:
        ours = importlib.import_module("backends.native.library").MemoryProbe(threads)
    except (ImportError, AttributeError, HarnessError, OSError):
        return []
    return [(ours.read, ours.nbytes)]


def _huge(size: int) -> "torch.Tensor":
    """Float32 ones in huge pages where the system grants them: fewer misses of the address cache."""
    import numpy as np
    import torch

    if not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.ones(size // 4)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has small pages
    memory.madvise(mmap.MADV_HUGEPAGE)
    values = np.frombuffer(memory, dtype=np.float32)
    values[:] = 1
    return torch.from_numpy(values)
