"""Equations that are others from row to row of a batch: many honest programs in one walk."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor

from backends.reference.walk import Equation

Share = tuple[Tensor, dict[str, Equation]]
"""Row numbers (b,) and the equations, by tensor, that all of them follow."""


COMMON = 0.7
"""Share of the rows from which an equation is evaluated on all; taking rows out and putting them back costs more."""


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
        most, *others = sorted(self._shares[B], key=lambda share: -len(share[0]))
        if len(most[0]) < COMMON * B:
            return together([(at, own[""](**_taken(arguments, rows, at))) for at, own in self._shares[B]], B)
        whole = _alone(most[1][""](**arguments), rows)
        for at, own in others:
            whole[at] = own[""](**_taken(arguments, rows, at))
        return whole


def each(equation: Equation, B: int) -> list[Equation]:
    """The equation of each of B rows."""
    return equation.choose(B) if isinstance(equation, ByRow) else [equation] * B


def shared(
    equations: Mapping[str, Equation], B: int, arranged: Mapping[Equation, Equation] | None = None
) -> Iterator[Share]:
    """The rows of a batch in shares whose rows follow the same equations, or what `arranged` has for them."""
    quick = arranged or {}
    columns = [[quick.get(own, own) for own in each(equation, B)] for equation in equations.values()]
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


def in_time(states: Sequence[Tensor]) -> Tensor:
    """The states at following tokens, (b, ...) each, as one tensor (b, n, ...), laid out in memory as the last is."""
    last = states[-1]
    if last.ndim > 2 and not last.is_contiguous() and last.mT.is_contiguous():
        return torch.stack([S.mT for S in states], dim=1).mT
    return torch.stack(list(states), dim=1)


def _taken(arguments: Mapping[str, Any], rows: Mapping[str, Tensor], at: Tensor) -> dict[str, Any]:
    """Arguments of some rows alone."""
    return {**arguments, **{name: z[at] for name, z in rows.items()}}


def _alone(value: Tensor, arguments: Mapping[str, Tensor]) -> Tensor:
    """A value in memory of its own: equations may hand an argument on, or one number for many."""
    own = value.untyped_storage().data_ptr()
    mixed = any(z.untyped_storage().data_ptr() == own for z in arguments.values())
    return value.clone() if mixed or not value.is_contiguous() else value


def _has_rows(argument: Any, recurrence: bool) -> bool:
    """Whether an argument is a tensor of the walk, (B, T, ...) or in the recurrence (B, ...); weights have two axes."""
    return isinstance(argument, Tensor) and (recurrence or argument.ndim > 2)
