"""The recurrence by a small C program, compiled at first use: several times faster than chunks on a CPU.

The same mathematics as `network.wkv`, which is what trains where there is no C compiler.
"""

import ctypes
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from backends.errors import BackendError

SOURCE = Path(__file__).with_name("scan.c")

CHUNK = 16
"""Tokens between two kept states, as in scan.c."""


def obstacle() -> str:
    """Why the program cannot be compiled here, in words; empty when nothing known stands against it."""
    return "" if shutil.which("cc") else "no C compiler (cc not found)"


@cache
def _library(N: int) -> ctypes.CDLL:
    """The program for heads of size N.

    Raises:
        BackendError: the compiler is missing or refuses.
    """
    if obstacle():
        raise BackendError(f"{obstacle()}; train with --scan chunks.")
    wide = ("-mprefer-vector-width=512",) if platform.machine() in ("x86_64", "AMD64") else ()
    with tempfile.TemporaryDirectory() as folder:
        part, built = Path(folder) / "scan.o", Path(folder) / "scan.so"
        _cc("-O3", "-march=native", *wide, "-ffast-math", f"-DN={N}", "-fPIC", "-c", str(SOURCE), "-o", str(part))
        _cc("-shared", str(part), "-o", str(built))  # linked with -ffast-math it would flush denormals everywhere
        return ctypes.CDLL(str(built))


def _cc(*arguments: str) -> None:
    done = subprocess.run(["cc", *arguments], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), "it gives no reason")
        raise BackendError(f"cc refuses {SOURCE.name}: {said.strip()}; train with --scan chunks.")


def _call(function: Callable[..., Any], sizes: tuple[int, ...], *tensors: Tensor) -> None:
    function(*sizes, *(ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors))


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        *sequences, S = (z.detach().contiguous() for z in inputs)
        B, T, H, N = sequences[0].shape
        S, y, u = S.clone(), torch.empty_like(sequences[0]), torch.empty_like(sequences[0])
        saved = torch.empty(-(-T // CHUNK), B * H, N, N)
        _call(_library(N).forward, (B, T, H), *sequences, S, y, u, saved)
        ctx.save_for_backward(*sequences, u, saved)
        return y, S

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, ...]:
        *sequences, u, saved = ctx.saved_tensors
        B, T, H, N = u.shape
        gy, dS = gradients[0].contiguous(), gradients[1].clone(memory_format=torch.contiguous_format)
        found = [torch.empty_like(u) for _ in sequences]
        _call(_library(N).backward, (B, T, H), *sequences, u, saved, gy, dS, *found)
        return (*found, dS)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def wkv(r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """As `network.wkv`, for float32 tensors on the CPU and any T."""
    y, S = _Scan.apply(  # type: ignore[no-untyped-call]
        r, log_w.exp(), k, v, kk, kk * a, S
    )
    return y, S
