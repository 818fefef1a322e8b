"""Weights: version, sizes and the named tensors of one checkpoint, read when asked for.

Names and orientations are the official ones (`blocks.3.att.receptance.weight`), whatever the file
used. Shapes are canonical: vectors are (C,) although official files store (1, 1, C); `att.r_k` is
(H, N); projections are (out, in); low-rank pairs are (in, rank) and (rank, out).
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

import torch

from backends.base import ModelFacts
from backends.errors import InputError

DTYPES = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16, "f16": torch.float16}
"""Short name -> torch dtype."""

SHORT = {dtype: short for short, dtype in DTYPES.items()}
"""torch dtype -> short name."""


@dataclass(frozen=True)
class Tensor:
    """One tensor that has not been read yet.

    Attributes:
        shape: canonical shape.
        dtype: short name of the stored number format.
        read: device -> the tensor in its stored format and canonical shape.
    """

    shape: tuple[int, ...]
    dtype: str
    read: Callable[[str], torch.Tensor]


@dataclass
class Weights:
    """A checkpoint, opened. A mapping from official names to tensors.

    Attributes:
        facts: identity and sizes, as detected from the tensors.
        tensors: official name -> unread tensor.
        path: the file or folder that was opened, for engines that open it themselves; None when
            the checkpoint is made by code.
        on_close: what gives the file back.
        forget: gives back the memory of what was read so far, where the file is mapped; tensors that are still held
            stay valid.
    """

    facts: ModelFacts
    tensors: Mapping[str, Tensor]
    path: Path | None = None
    on_close: Callable[[], None] = field(default=lambda: None)
    forget: Callable[[], None] = field(default=lambda: None)

    def __contains__(self, name: object) -> bool:
        return name in self.tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)

    def get(self, name: str, dtype: str = "", device: str = "cpu") -> torch.Tensor:
        """Read one tensor.

        Args:
            name: official name.
            dtype: short name to convert to; empty keeps the stored format.
            device: where the tensor shall lie.

        Raises:
            InputError: the checkpoint has no such tensor.
        """
        if name not in self.tensors:
            raise InputError(f"{self.facts.name} has no tensor {name!r}.")
        tensor = self.tensors[name].read(device)
        return tensor.to(DTYPES[dtype]) if dtype else tensor

    def block(self, layer: int) -> list[str]:
        """Official names of one block's tensors."""
        prefix = f"blocks.{layer}."
        return [name for name in self.tensors if name.startswith(prefix)]

    def close(self) -> None:
        """Give the file back."""
        self.on_close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
