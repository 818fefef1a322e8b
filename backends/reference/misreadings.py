"""Plausible misreadings of one equation, made mechanically: what a tensor would be if an input were mistaken.

Every input of the equation is in turn left out, taken from the token before, negated, transposed where
that has the same shape, replaced by another tensor of the sub-layer or another weight of that shape, and
exchanged with another input. No catalogue can hold every slip of the pen; these follow from the signature alone.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from backends.reference.equations import Carry, Model, Scope, Walk
from backends.reference.replay import inputs, sources

Misreading = tuple[str, Scope]
"""In words; what the equation reads instead, by the names in its scope."""


def misreadings(
    model: Model, recorded: Mapping[str, Tensor], tokens: Tensor, name: str
) -> Iterator[tuple[str, Tensor]]:
    """What each misreading makes of a tensor, see `Session.misread`.

    Args:
        model: whose equations.
        recorded: full tensor name -> (B, T, ...); nothing is found where an input of the equation is missing.
        tokens: (B, T).
        name: full name of the tensor.

    Yields:
        The misreading in words, and the tensor.
    """
    found = model.locate(name)
    if found is None:
        return
    part, short = found
    equation = model.equation(name, part.table[short])
    outside, own = inputs(model, part, recorded, tokens)
    read = sources(equation)
    scope = {**outside, **own}
    if any(source not in scope for source in read):
        return
    names = list(part.table)
    known = {*names[: names.index(short)], *part.outside}
    for words, mistaken in _mistaken(read, scope, known, timed={*own, *part.outside}):
        yield words, model.evaluate(Walk(tokens, Carry(), ()), part, equation, {**scope, **mistaken})


def _mistaken(read: list[str], scope: Scope, known: set[str], timed: set[str]) -> Iterator[Misreading]:
    """Every way in which one input, or two of them, may be mistaken; `known` is what has been computed before."""
    for at, source in enumerate(read):
        value = scope[source]
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        yield from _changed(source, value, source in timed)
        for other, found in scope.items():
            fits = isinstance(found, Tensor) and found.shape == value.shape and (other in timed) == (source in timed)
            if fits and other != source and (other in known or other not in timed):
                yield f"{other} is read in the place of {source}", {source: found}
                if other in read[at:]:
                    yield f"{source} and {other} are exchanged", {source: found, other: value}


def _changed(source: str, value: Tensor, timed: bool) -> Iterator[Misreading]:
    """Every way in which one input may be mistaken by itself."""
    if timed:
        yield f"{source} is that of the token before", {source: _late(value)}
    yield f"{source} is left out", {source: torch.zeros_like(value)}
    yield f"{source} is taken as 1", {source: torch.ones_like(value)}
    yield f"{source} has the wrong sign", {source: -value}
    if _square(value, timed):
        yield f"{source} is transposed", {source: value.transpose(-1, -2)}
    elif not timed and value.dim() == 2:
        rows, columns = value.shape
        yield f"{source} is read as if it lay transposed in memory", {source: value.t().reshape(rows, columns)}
        yield f"{source} lies transposed in memory", {source: value.reshape(columns, rows).t()}


def _late(value: Tensor) -> Tensor:
    """(B, T, ...) one token later, beginning with zero."""
    return torch.cat([torch.zeros_like(value[:, :1]), value[:, :-1]], dim=1)


def _square(value: Tensor, timed: bool) -> bool:
    least = 4 if timed else 2  # (B, T, ..., N, N) or (N, N)
    return value.dim() >= least and value.shape[-1] == value.shape[-2]
