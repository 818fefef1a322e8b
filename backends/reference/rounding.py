"""Random rounding: an honest implementation in a given number format, many times.

Every named tensor is rounded up or down at random, with the probability that makes the mean exact
(Monte Carlo arithmetic: D. S. Parker, UCLA CSD-970002, 1997). The spread of many such runs is how far
honest arithmetic of that format may land from the truth, on this model and these tokens.
"""

from collections.abc import Callable, Collection, Mapping
from functools import partial

import torch
from torch import Tensor

from backends.reference import noise

DROPPED_BITS = 16  # of float32's significand, in bfloat16
F16_BITS, F16_SMALLEST = 11, -24  # significand with its hidden bit; exponent of the smallest subnormal


def to_bf16(x: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 to bfloat16, up or down at random, unbiased: random bits are added below the cut."""
    noise = torch.randint(0, 1 << DROPPED_BITS, x.shape, generator=generator, dtype=torch.int32)
    bits = noise.add_(x.view(torch.int32)).bitwise_and_(-(1 << DROPPED_BITS))
    return _where_finite(x, bits.view(torch.float32))


def to_f16(x: Tensor, generator: torch.Generator) -> Tensor:
    """Round float32 to float16's grid, up or down at random, unbiased; its range is not applied."""
    exponent = (torch.frexp(x).exponent - F16_BITS).clamp_min(F16_SMALLEST)
    unit = torch.ldexp(torch.ones_like(x), exponent)
    steps = x / unit
    below = steps.floor()
    up = torch.rand(x.shape, generator=generator) < steps - below  # added up, they would lose what is on the grid
    return _where_finite(x, (below + up) * unit)


def jitter(x: Tensor, generator: torch.Generator) -> Tensor:
    """Move float32 by up to its last bit: what another order of summation may do to it."""
    noise = torch.rand(x.shape, generator=generator).sub_(0.5)
    return noise.mul_(2.0**-23).mul_(x).add_(x)


def _where_finite(x: Tensor, rounded: Tensor) -> Tensor:
    """What is not finite stays as it is; a finite sum tells in one pass that nothing is."""
    return rounded if x.sum().isfinite() else torch.where(x.isfinite(), rounded, x)


ROUNDED = {"bf16": to_bf16, "f16": to_f16, "f32": jitter}
"""Number format -> its random rounding of a float32 tensor."""


def honest(
    dtype: str, seed: int, keep: Collection[str], apart: Mapping[str, str] | None = None
) -> Callable[[str, Tensor], Tensor]:
    """The rounding of an honest implementation whose activations are `dtype`.

    Everything is evaluated in float32, so that sums carry that format's own error, and rounded where a
    tensor has a name. The tensors in `keep` stay in float32, as every sound port holds them; the
    recurrence rounds itself at every token and is left to that.

    Args:
        dtype: "f32", "bf16" or "f16".
        seed: of the random rounding.
        keep: last part of the names that a low-precision port holds in float32.
        apart: last part of a name -> the format that it is held in instead of `dtype` or float32.
    """
    formats = dict.fromkeys(keep, "") | dict(apart or {})
    rounded = _stream(seed, {dtype, *formats.values()} - {""})

    def rounding(name: str, value: Tensor) -> Tensor:
        form = formats.get(name.rpartition(".")[2], dtype)
        return rounded[form](value) if form else value

    return rounding


def _stream(seed: int, forms: Collection[str]) -> Mapping[str, Callable[[Tensor], Tensor]]:
    """What rounds to each of some formats, all from one stream; C, where it can, draws what torch does."""
    generator = torch.Generator().manual_seed(seed)
    in_c = noise.stream(seed) if noise.FORMATS.keys() >= set(forms) else {}
    return in_c or {form: partial(ROUNDED[form], generator=generator) for form in forms}
