"""The official low-precision semantics: every elementary operation rounds, products before sums.

The official inference code runs on bf16 or f16 tensors, so that each operation of an equation rounds to
that format by itself, where another honest port rounds an equation once. Three places are its own: the decay's
exponent is summed in the format and only then widened; what is written to the WKV state and removed from it are
products formed in the format, accumulated in float32; and the state is narrowed for the read-out. Ports are
compared with it, so its roundings are honest ones. Source: the `rwkv` package, RWKV_x070_TMix_one.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import wraps
from typing import Any

import torch
from torch import Tensor

from backends.reference import v7
from backends.reference.equations import Equation, Model, parameters
from backends.reference.rows import ByRow, each
from backends.reference.v7 import split
from backends.weights import DTYPES

EVERY = 4
"""One in so many honest runs in a low format follows the official semantics."""

Special = Callable[[torch.dtype], Equation]


def every_operation(equation: Equation, low: torch.dtype) -> Equation:
    """The equation on tensors of the low format, where every operation rounds to nearest; returns float32."""

    @wraps(equation)  # the walker reads the parameters
    def narrow(**arguments: Any) -> Tensor:
        return equation(**{name: _narrowed(z, low) for name, z in arguments.items()}).float()

    return narrow


def _narrowed(argument: Any, low: torch.dtype) -> Any:
    return argument.to(low) if isinstance(argument, Tensor) and argument.is_floating_point() else argument


def decay(low: torch.dtype) -> Equation:
    """RWKV-7's decay: the exponent's sum in the low format, the rest in float32."""

    def w(w_raw: Tensor, w0: Tensor) -> Tensor:
        return (-0.606531 * (w0.to(low) + w_raw.to(low)).float().sigmoid()).exp()

    return w


def write(low: torch.dtype) -> Equation:
    """RWKV-7's state: both outer products in the low format, accumulated in float32."""

    def state(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
        kk, a, k, v = (split(z.to(low), heads) for z in (kk, a, k, v))
        written = (v.unsqueeze(-1) * k.unsqueeze(-2)).float()
        removed = (-kk.unsqueeze(-1) * (kk * a).unsqueeze(-2)).float()
        return state_prev * split(w, heads).unsqueeze(-2) + state_prev @ removed + written

    return state


SPECIAL: Mapping[Equation, Special] = {v7.w: decay, v7.state: write}
"""Equations that the official code does not simply run in the low format."""


def official(equation: Equation, low: torch.dtype, kept: bool) -> Equation:
    """An equation as the official code evaluates it in a low format.

    Args:
        equation: as the version's table has it.
        low: the format of weights and activations.
        kept: whether the version holds the tensor in float32.
    """
    special = SPECIAL.get(equation)
    if special:
        return special(low)
    return equation if kept else every_operation(equation, low)


def is_official(row: int, seed: int) -> bool:
    """Whether a row of a batch of honest runs follows the official semantics: one in EVERY."""
    return (seed + row) % EVERY == EVERY - 1


def mixed(model: Model, dtype: str, seed: int, kept: Collection[str]) -> dict[str, Equation]:
    """Equations that evaluate some rows of a batch by the official semantics and the others as `model` does.

    Args:
        model: the equations, with what overrides them.
        dtype: "bf16" or "f16".
        seed: decides which row comes first; see `is_official`.
        kept: last part of the names that are held in float32.
    """
    return {
        name: _by_row(model.equation(name, equation), other, seed) for name, equation, other in _all(model, dtype, kept)
    }


def entirely(model: Model, dtype: str, kept: Collection[str]) -> dict[str, Equation]:
    """Equations that evaluate everything by the official semantics; arguments as of `mixed`."""
    return {name: other for name, _, other in _all(model, dtype, kept)}


def _all(model: Model, dtype: str, kept: Collection[str]) -> Iterator[tuple[str, Equation, Equation]]:
    """Full name, equation, official form; a lookup by token is exact in every format."""
    for part in model.sublayers():
        for name, equation in part.table.items():
            if "tokens" not in parameters(equation):
                yield part.prefix + name, equation, official(equation, DTYPES[dtype], name in kept)


def _by_row(plain: Equation, other: Equation, seed: int) -> Equation:
    def choose(B: int) -> list[Equation]:
        special = [is_official(row, seed) for row in range(B)]
        rest = iter(each(plain, special.count(False)))
        return [other if one else next(rest) for one in special]

    return ByRow(plain, choose)
