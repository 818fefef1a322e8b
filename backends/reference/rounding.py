"""Random rounding: an honest implementation in a given number format, many times.

Every named tensor is rounded up or down at random, with the probability that makes the mean exact
(Monte Carlo arithmetic: D. S. Parker, UCLA CSD-970002, 1997). The spread of many such runs is how far
honest arithmetic of that format may land from the truth, on this model and these tokens.
"""

from collections.abc import Callable, Collection

import torch
from torch import Tensor

SIGNIFICAND = {"bf16": 8, "f16": 11, "f32": 24}
"""Bits of the significand, the hidden one included."""

SMALLEST = {"bf16": -133, "f16": -24, "f32": -149}
"""Exponent of the smallest subnormal: no step is finer."""


def step(x: Tensor, dtype: str) -> Tensor:
    """Distance between neighbouring numbers of a format around |x|."""
    exponent = torch.frexp(x).exponent - SIGNIFICAND[dtype]
    return torch.ldexp(torch.ones_like(x), exponent.clamp_min(SMALLEST[dtype]))


def stochastic(x: Tensor, dtype: str, generator: torch.Generator) -> Tensor:
    """Round x to a format, up or down at random, unbiased; what is not finite stays as it is."""
    unit = step(x, dtype)
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype)
    return torch.where(x.isfinite(), torch.floor(x / unit + noise) * unit, x)


def jitter(x: Tensor, dtype: str, generator: torch.Generator) -> Tensor:
    """Move x by up to half a step of a format: what another order of summation may do to its last bit."""
    noise = torch.rand(x.shape, generator=generator, dtype=x.dtype) - 0.5
    return torch.where(x.isfinite(), x + noise * step(x, dtype), x)


def honest(dtype: str, seed: int, keep: Collection[str]) -> Callable[[str, Tensor], Tensor]:
    """The rounding of an honest implementation whose activations are `dtype`.

    float32 is evaluated in float32, so its sums already carry that format's error and only the last bit
    is moved. For the 16-bit formats products are summed in float32 and the result is rounded; the
    tensors in `keep` stay in float32, as every sound port holds them.

    Args:
        dtype: "f32", "bf16" or "f16".
        seed: of the random rounding.
        keep: last part of the names that a low-precision port holds in float32.
    """
    generator = torch.Generator().manual_seed(seed)

    def rounding(name: str, value: Tensor) -> Tensor:
        if dtype == "f32" or name.rpartition(".")[2] in keep:
            return jitter(value, "f32", generator)
        return stochastic(value, dtype, generator)

    return rounding
