"""What a walk through named equations is made of: tables at their places, what is asked, what is carried on."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from typing import Any

from torch import Tensor

Equation = Callable[..., Tensor]
Table = Mapping[str, Equation]
Rounding = Callable[[str, Tensor], Tensor]
Scope = dict[str, Any]


@dataclass(frozen=True)
class Carry:
    """What one token leaves behind for the next; never written to.

    Attributes:
        tensors: full name ("blocks.0.att.ln1") -> (B, ...), the value at the last token; of a tensor that grows,
            (B, S, ...), the values at all tokens.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Walk:
    """One evaluation: what it was asked for and what it collects.

    Attributes:
        tokens: (B, T).
        before: what the tokens before left behind.
        patterns: of the tensors to keep in `trace`.
        logits: which logits were asked for; they end up in `head`.
        live: full name -> tensor, as long as a later sub-layer reads it.
        past: full name -> (B, S, ...), the values before this call, where they had to be computed again.
    """

    tokens: Tensor
    before: Carry
    patterns: tuple[str, ...]
    logits: str = "all"
    trace: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)
    live: dict[str, Tensor] = field(default_factory=dict)
    head: Tensor | None = None
    past: dict[str, Tensor] = field(default_factory=dict)

    def keep(self, name: str, value: Tensor) -> None:
        """Put a tensor into the trace if it was asked for."""
        if any(fnmatchcase(name, pattern) for pattern in self.patterns):
            self.trace[name] = value


@dataclass(frozen=True)
class Sublayer:
    """One table of equations at its place in the model.

    Attributes:
        prefix: what stands before its tensors' names ("blocks.3.att.").
        table: tensor name -> equation.
        group: whose weights it reads.
        outside: parameter -> full name of the tensor of another sub-layer that it stands for; `x` is the stream.
        carried: its tensors whose last value the next token needs.
        growing: its tensors whose every value later tokens need.
        start: recurrent tensor -> equation of its value before the first token, without the batch axis.
    """

    prefix: str
    table: Mapping[str, Equation]
    group: str
    outside: Mapping[str, str]
    carried: frozenset[str] = frozenset()
    growing: frozenset[str] = frozenset()
    start: Mapping[str, Equation] = field(default_factory=dict)


@cache
def parameters(equation: Equation) -> tuple[str, ...]:
    """The names that an equation reads."""
    return tuple(inspect.signature(equation).parameters)


@cache
def source(parameter: str) -> str:
    """The tensor that a parameter speaks of: "state_prev" -> "state", "kn_all" -> "kn"."""
    return parameter.removesuffix("_prev").removesuffix("_all")


@cache
def sources(equation: Equation) -> frozenset[str]:
    """The tensors that an equation reads, at whichever token."""
    return frozenset(map(source, parameters(equation)))


def readers(name: str, equations: Mapping[str, Equation]) -> dict[str, Equation]:
    """The equations that read a tensor or its value at the token before; a tensor is no reader of its own."""
    return {n: e for n, e in equations.items() if n != name and name in sources(e)}


def _unchanged(weights: Scope) -> Scope:
    return weights


@dataclass(frozen=True)
class Version:
    """What the walker has to know of a version.

    Attributes:
        embed, head: the tables before and behind the blocks, tensor name -> equation.
        block: kind of sub-layer ("att", "ffn") -> its table, in the order of evaluation.
        first_block: what differs in the first block.
        kept_f32: tensors that a low-precision port must not round, by the last part of their names.
        start: recurrent tensor ("att.state") -> equation of its value before the first token, without the batch axis.
        carried: component of the agreed state -> the tensor of each block whose last value it is.
        growing: likewise, where every value is kept; "tokens" are the ids.
        outside: parameter -> full name of the tensor of another sub-layer, "{layer}" standing for the own layer.
        unused: weights that files may carry and nothing reads.
        prepared: weights of a sub-layer as files have them -> as equations read them.
    """

    embed: Table
    block: Mapping[str, Table]
    head: Table
    kept_f32: frozenset[str]
    start: Table
    carried: Mapping[str, str]
    growing: Mapping[str, str] = field(default_factory=dict)
    first_block: Mapping[str, Table] = field(default_factory=dict)
    outside: Mapping[str, str] = field(default_factory=dict)
    unused: frozenset[str] = frozenset()
    prepared: Callable[[Scope], Scope] = _unchanged

    def parts(self) -> dict[str, str]:
        """Component of the agreed state -> the tensor that it holds."""
        return {**self.carried, **self.growing}

    def equations(self) -> Iterator[Equation]:
        """All equations, those of the first block too."""
        for table in (self.embed, *self.block.values(), *self.first_block.values(), self.head):
            yield from table.values()


def sublayers(version: Version, layers: int) -> Iterator[Sublayer]:
    """Everything that a model of so many layers evaluates, in that order."""
    yield Sublayer("", version.embed, "embed", {})
    stream = "ln0"
    for layer in range(layers):
        outside = {name: full.format(layer=layer) for name, full in version.outside.items()}
        for kind, usual in version.block.items():
            table = version.first_block.get(kind, usual) if layer == 0 else usual
            group = f"blocks.{layer}.{kind}"
            carried, growing = (
                frozenset(name for name in table if f"{kind}.{name}" in parts.values())
                for parts in (version.carried, version.growing)
            )
            start = {name: version.start[f"{kind}.{name}"] for name in table if f"{kind}.{name}" in version.start}
            yield Sublayer(group + ".", table, group, {"x": stream, **outside}, carried, growing, start)
            stream = f"{group}.res" if "res" in table else stream
    yield Sublayer("", version.head, "head", {"x": stream})
