"""Evaluates equations on recorded inputs: what each tensor should have been, given what it was computed from.

A difference between the result and the recorded output was contributed by that equation alone; what its
inputs had wrong is inherited and does not count. Where an input was not recorded, it is computed from
recorded ones inside the same sub-layer, and the difference belongs to the whole span.
"""

from collections.abc import Collection, Iterator, Mapping

from torch import Tensor

from backends.base import Gap
from backends.reference.equations import Carry, Equation, Model, Scope, Sublayer, Walk, parameters, source


def gaps(model: Model, recorded: Collection[str]) -> dict[str, Gap]:
    """What a replay has to bridge, see `Session.gaps`."""
    found: dict[str, Gap] = {}
    for part in model.sublayers():
        own: dict[str, Gap] = {}
        for name, equation in part.table.items():
            own[name] = _gap(part, name, model.equation(part.prefix + name, equation), recorded, own)
        found |= {part.prefix + name: gap for name, gap in own.items() if part.prefix + name in recorded}
    return found


def _gap(part: Sublayer, name: str, equation: Equation, recorded: Collection[str], own: Mapping[str, Gap]) -> Gap:
    spanned: dict[str, None] = {}
    lacking: dict[str, None] = {}
    for read in sources(equation):
        full = _full(part, read)
        if full is None or full in recorded or read == name:  # a recurrence begins with the state before
            continue
        if read in part.table:
            before = own[read]
            spanned |= dict.fromkeys([*before.spanned, full])
            lacking |= dict.fromkeys(before.lacking)
        else:
            lacking[full] = None
    return Gap(tuple(spanned), tuple(lacking))


def sources(equation: Equation) -> list[str]:
    """The names that an equation reads, without `_prev` and `_all`."""
    return list(dict.fromkeys(map(source, parameters(equation))))


def _full(part: Sublayer, read: str) -> str | None:
    """Full name of a tensor that an equation reads; None for weights and what is known without a recording."""
    return part.prefix + read if read in part.table else part.outside.get(read)


def replay(
    model: Model,
    recorded: Mapping[str, Tensor],
    tokens: Tensor,
    before: Carry | None = None,
    only: Collection[str] | None = None,
) -> Iterator[tuple[str, Tensor]]:
    """Evaluate the equations of recorded tensors on recorded inputs, see `Session.replay`.

    Args:
        model: whose equations.
        recorded: full tensor name -> (B, T, ...).
        tokens: (B, T).
        before: the state that the recording began with.
        only: recorded tensors to evaluate; None is all.

    Yields:
        Full tensor name and what it should have been.
    """
    bridged = gaps(model, recorded)
    targets = {name for name, gap in bridged.items() if not gap.lacking and (only is None or name in only)}
    needed = targets.union(*(bridged[name].spanned for name in targets))
    walk = Walk(tokens, before or Carry(), ())
    for part in model.sublayers():
        if any(part.prefix + name in needed for name in part.table):
            yield from _replay_part(model, part, recorded, walk, targets, needed)


def _replay_part(
    model: Model,
    part: Sublayer,
    recorded: Mapping[str, Tensor],
    walk: Walk,
    targets: Collection[str],
    needed: Collection[str],
) -> Iterator[tuple[str, Tensor]]:
    """One sub-layer; unrecorded tensors that something needs take the place of a recording."""
    scope, values = inputs(model, part, recorded, walk.tokens)
    equations = {
        name: model.equation(part.prefix + name, equation)
        for name, equation in part.table.items()
        if part.prefix + name in needed
    }
    walked: Scope = {}
    for name, equation in equations.items():
        if name + "_prev" in parameters(equation) and name not in values:
            walked |= model.recur(walk, part, name, equations, scope, values)
            continue
        value = walked[name] if name in walked else model.evaluate(walk, part, equation, {**scope, **values})
        if part.prefix + name in targets:
            yield part.prefix + name, value
        values.setdefault(name, value)


def inputs(model: Model, part: Sublayer, recorded: Mapping[str, Tensor], tokens: Tensor) -> tuple[Scope, Scope]:
    """What the equations of a sub-layer read: weights and what comes from outside; its own recorded tensors."""
    scope = {**model.read(part.group), "tokens": tokens, "heads": model.heads}
    for short, full in part.outside.items():
        if full in recorded:
            scope[short] = recorded[full].to(model.dtype)
    names = [name for name in part.table if part.prefix + name in recorded]
    return scope, {name: recorded[part.prefix + name].to(model.dtype) for name in names}
