"""Random rounding in C: the numbers that torch draws from the same seed and the same results, in a tenth of the time.

A third of an honest run's time goes into drawing random numbers. Where there is no compiler, `rounding` does without.
"""

import ctypes
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor

from backends.errors import UsageError
from backends.native import build

FORMATS = {"f32": "jitter", "bf16": "to_bf16"}
"""Number format -> the function in noise.c that does what the one of that name in rounding.py does."""

EXACT = "-ffp-contract=off"  # a product is rounded before it is added, as in torch


def stream(seed: int) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """What rounds float32 tensors, by number format, all from one stream of random numbers; empty without a compiler.

    Args:
        seed: as of `torch.Generator.manual_seed`.
    """
    try:
        program = _program(build.chosen())
    except (build.NoProgramError, UsageError):  # what cannot be had, or asked for, is told where speed hangs on it
        return {}
    state = ctypes.create_string_buffer(program.stream_bytes())
    program.stream_seed(state, seed & 0xFFFFFFFF)
    return {form: partial(_applied, getattr(program, name), state) for form, name in FORMATS.items()}


def _applied(function: Callable[..., None], state: object, x: Tensor) -> Tensor:
    assert x.dtype is torch.float32  # memory is read as that
    x = x.contiguous()
    rounded = torch.empty_like(x)
    function(state, x.data_ptr(), rounded.data_ptr(), x.numel())
    return rounded


@cache
def _program(instructions: str) -> ctypes.CDLL:
    """The program for an instruction set.

    Raises:
        NoProgramError: it cannot be had.
    """
    told = [*build.options(instructions, "f32"), EXACT]
    program = build.loaded(Path(__file__).with_name("noise.c"), instructions, told)
    program.stream_bytes.restype = ctypes.c_int64
    program.stream_seed.argtypes = [ctypes.c_char_p, ctypes.c_uint32]
    for name in FORMATS.values():
        getattr(program, name).argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return program
