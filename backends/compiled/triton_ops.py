"""The recurrence in Triton as an operator of torch, so that its compiler fuses around it. Imports no Triton."""

import importlib
import importlib.util
import os
import warnings
from contextlib import AbstractContextManager, nullcontext
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from backends.compiled.switches import Switches
from backends.errors import UsageError

HEADS = (16, 32, 64)
"""Head sizes that the kernels serve: powers of two from the least product up to what registers hold."""

FEW = 48
"""Tokens up to which a prompt is fed token by token: below, chunks have more launches than work."""


def obstacle(device: torch.device, switches: Switches) -> str:
    """Why kernels in Triton do not run on a device, in words; empty if they do."""
    if not switches.triton:
        return "switched off by RWKV_TRITON=0"
    if device.type != "cuda" and switches.triton != "interpret":
        return "Triton's kernels run on CUDA"
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        return "Triton's interpreter runs with TRITON_INTERPRET=1, set before Python starts"
    if importlib.util.find_spec("triton") is None:
        return "the Python package 'triton' is not installed"
    return tried(str(device))


@cache
def tried(device: str) -> str:
    """Why a first launch fails on a device; empty if it does not. Triton needs a C compiler and Python's headers."""
    x, S = torch.zeros(1, 2, 1, 16, device=device), torch.zeros(1, 1, 16, 16, device=device)
    try:
        with on(S.device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a compiler that warns has not failed, also where warnings are errors
            kernels = module("triton_wkv")
            found = kernels.scan((x,) * 6, S)[0] + kernels.chunks((x,) * 6, S, exact=False)[0]
        return "" if bool((found == 0).all()) else "Triton's kernels compute something else here"
    except Exception as error:  # a compiler fails in its own ways
        lines = str(error).strip().splitlines() or [""]
        return f"Triton's kernels do not run here ({type(error).__name__}: {lines[0]})"[:200]


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _ready(device: str) -> bool:
    try:
        return not obstacle(torch.device(device), Switches.of())
    except UsageError:
        return False  # said when the session was opened


def serves(S: Tensor) -> bool:
    """Whether the recurrence can go through Triton for states like S, (B, H, N, N)."""
    return S.dtype == torch.float32 and S.shape[-1] in HEADS and _ready(S.device.type)


def on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on torch's current device."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def module(name: str) -> ModuleType:
    """One of the modules that import Triton."""
    return importlib.import_module(f"backends.compiled.{name}")


@torch.library.custom_op("rwkv_harness::wkv7_triton", mutates_args=())
def wkv7(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor, S: Tensor, exact: bool
) -> tuple[Tensor, Tensor]:
    """RWKV-7: vectors (B, T, H, N) and S (B, H, N, N), float32 -> y (B, T, H, N) and the new S; see `wkv.wkv`.

    `exact` keeps products of chunks in float32, where tensor cores would keep 21 bits.
    """
    kernels = module("triton_wkv")
    inputs = (r, log_w, k, v, kk, a)
    with on(S.device):
        y, after = kernels.scan(inputs, S) if r.shape[1] <= FEW else kernels.chunks(inputs, S, exact)
    return y, after


@wkv7.register_fake
def _(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor, S: Tensor, exact: bool
) -> tuple[Tensor, Tensor]:
    del log_w, k, v, kk, a, exact
    return r.new_empty(r.shape), S.new_empty(S.shape)
