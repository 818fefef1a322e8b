"""Equations that are others from row to row of a batch: many honest programs in one walk."""

from collections.abc import Callable, Iterator, Mapping
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor

from backends.reference.walk import Equation

Share = tuple[Tensor, dict[str, Equation]]
"""Row numbers (b,) and the equations, by tensor, that all of them follow."""


class ByRow:
    """An equation that is another one from row to row of a batch.

    Args:
        shown: one of them; its parameters are everybody's.
        choose: rows of the batch -> the equation of each.
    """

    def __init__(self, shown: Equation, choose: Callable[[int], list[Equation]]) -> None:
        update_wrapper(self, shown)  # the walker reads the parameters
        self.choose = choose
        self._shares: dict[int, list[Share]] = {}

    def __call__(self, **arguments: Any) -> Tensor:
        """Every row by its own equation."""
        rows = {name: z for name, z in arguments.items() if _has_rows(z, "state_prev" in arguments)}
        B = len(next(iter(rows.values())))
        if B not in self._shares:
            self._shares[B] = list(shared({"": self}, B))
        if len(self._shares[B]) == 1:
            return self._shares[B][0][1][""](**arguments)
        parts = [(at, own[""](**arguments | {n: z[at] for n, z in rows.items()})) for at, own in self._shares[B]]
        return together(parts, B)


def each(equation: Equation, B: int) -> list[Equation]:
    """The equation of each of B rows."""
    return equation.choose(B) if isinstance(equation, ByRow) else [equation] * B


def shared(equations: Mapping[str, Equation], B: int) -> Iterator[Share]:
    """The rows of a batch in shares whose rows follow the same equations."""
    columns = [each(equation, B) for equation in equations.values()]
    shares: dict[tuple[Equation, ...], list[int]] = {}
    for row, own in enumerate(zip(*columns, strict=True)):
        shares.setdefault(own, []).append(row)
    for own, rows in shares.items():
        yield torch.tensor(rows), dict(zip(equations, own, strict=True))


def together(shares: list[tuple[Tensor, Tensor]], B: int) -> Tensor:
    """A batch (B, ...) from row numbers (b,) and what each of those rows came to, (b, ...)."""
    first = shares[0][1]
    if len(shares) == 1:
        return first
    whole = first.new_empty(B, *first.shape[1:])
    for at, part in shares:
        whole[at] = part
    return whole


def _has_rows(argument: Any, recurrence: bool) -> bool:
    """Whether an argument is a tensor of the walk, (B, T, ...) or in the recurrence (B, ...); weights have two axes."""
    return isinstance(argument, Tensor) and (recurrence or argument.ndim > 2)
