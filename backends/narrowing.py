"""What is lost where numbers are stored in a narrower format: counted, and refused where a value becomes infinite."""

import math
from dataclasses import dataclass, replace

import torch

from backends.errors import InputError
from backends.weights import DTYPES, Tensor

_LOSSLESS = {("f32", "f64"), ("bf16", "f64"), ("f16", "f64"), ("bf16", "f32"), ("f16", "f32")}
_PIECE = 1 << 22  # values compared at a time


@dataclass
class Loss:
    """What a conversion changed so far.

    Attributes:
        values: how many were written.
        changed: how many of them are other numbers now.
        largest: largest relative change, |new - old| / |old|.
        where: name of the tensor that holds it.
    """

    values: int = 0
    changed: int = 0
    largest: float = 0.0
    where: str = ""

    def sentence(self) -> str:
        """It in words."""
        if not self.changed:
            return "no value changed"
        share = f"{self.changed:,} of {self.values:,} values changed"
        return f"{share}, by at most {self.largest:.3g} of themselves ({self.where})"


def cast(name: str, tensor: Tensor, dtype: str, loss: Loss) -> Tensor:
    """A tensor in another number format; what that costs is added to `loss` whenever it is read.

    Raises:
        InputError: on reading, where a finite value is beyond the format's range.
    """
    if not dtype or dtype == tensor.dtype:
        return tensor

    def read(device: str) -> torch.Tensor:
        value = tensor.read(device)
        narrowed = value.to(DTYPES[dtype])
        if (tensor.dtype, dtype) not in _LOSSLESS:
            _count(name, value.reshape(-1), narrowed.reshape(-1), loss)
        return narrowed

    return replace(tensor, dtype=dtype, read=read)


def _count(name: str, before: torch.Tensor, after: torch.Tensor, loss: Loss) -> None:
    loss.values += before.numel()
    for begin in range(0, before.numel(), _PIECE):
        a, b = (value[begin : begin + _PIECE].double() for value in (before, after))
        lost = int((a.isfinite() & ~b.isfinite()).sum())
        if lost:
            most = f"{float(a.abs().max()):.3g}"
            raise InputError(
                f"{lost} values of {name} (up to {most}) are beyond the number format: choose bf16 or f32."
            )
        different = (a != b) & ~(a.isnan() & b.isnan())
        if not bool(different.any()):
            continue
        loss.changed += int(different.sum())
        worst = float(((b - a).abs() / a.abs())[different].max())
        if worst > loss.largest or not loss.where:
            loss.largest, loss.where = worst if math.isfinite(worst) else loss.largest, name
