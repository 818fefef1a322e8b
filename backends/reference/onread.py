"""Matrices that are converted as they are used: what keeps a model of any size within a few gigabytes.

An embedding is read row by row for the tokens at hand, a head in slices of rows; neither exists in the number format of
the evaluation as a whole. To equations they look like tensors; an equation that does anything else with one (a planted
fault that rolls its rows) gets the whole matrix.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.functional import linear

SLICE = 64 << 20
"""Bytes of converted rows that exist at a time."""


class OnRead:
    """A matrix (rows, columns) of a checkpoint.

    Args:
        read: gives the stored matrix, without a copy where the file is mapped.
        convert: stored values -> values in the number format of the evaluation.
        itemsize: bytes of one converted value.
    """

    def __init__(self, read: Callable[[], Tensor], convert: Callable[[Tensor], Tensor], itemsize: int) -> None:
        self.read, self.convert, self.itemsize = read, convert, itemsize

    def __getitem__(self, index: Any) -> Tensor:
        """The rows of some tokens, (..., columns)."""
        return self.convert(self.read()[index])

    def __len__(self) -> int:
        """Rows."""
        return len(self.read())

    def whole(self) -> Tensor:
        """All of it, converted."""
        return self.convert(self.read())

    def applied(self, x: Tensor) -> Tensor:
        """(..., columns) -> (..., rows), a slice of rows at a time."""
        stored = self.read()
        step = max(1, SLICE // (stored.shape[1] * self.itemsize))
        out = x.new_empty(*x.shape[:-1], stored.shape[0])
        for begin in range(0, stored.shape[0], step):
            rows = slice(begin, begin + step)
            out[..., rows] = linear(x, self.convert(stored[rows]))
        return out

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        _: Sequence[type],
        args: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        """What torch calls instead of its own function where one of these is an argument."""
        if function is linear and len(args) == 2 and isinstance(args[1], cls) and not named:
            return args[1].applied(args[0])
        whole = {key: _whole(value) for key, value in (named or {}).items()}
        return function(*map(_whole, args), **whole)

    def __getattr__(self, name: str) -> Any:
        """Everything else that a tensor has."""
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.whole(), name)


def _whole(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return type(value)(map(_whole, value))
    return value.whole() if isinstance(value, OnRead) else value
