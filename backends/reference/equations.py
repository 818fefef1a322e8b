"""Walks the named equations of a version: run, trace, override, round; `replay` walks a recording.

The walker resolves each parameter of an equation by name: first the tensors of the sub-layer, then the
weights of the block, then what the walk carries along (`x`, `tokens`, `heads`, `v_first`). A parameter
`NAME_prev` is tensor NAME at the previous token; an equation that reads its own `_prev` is the
recurrence and is walked token by token.
"""

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from backends.errors import InputError
from backends.weights import DTYPES, Weights

Equation = Callable[..., Tensor]
Rounding = Callable[[str, Tensor], Tensor]
Scope = dict[str, Any]

BLOCK = 64  # tokens whose WKV states are held at once while the recurrence walks


@dataclass(frozen=True)
class Carry:
    """What one token leaves behind for the next; never written to.

    Attributes:
        tensors: full name ("blocks.0.att.ln1") -> (B, ...), the value at the last token.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass
class Walk:
    """One evaluation: what it was asked for and what it collects."""

    tokens: Tensor
    before: Carry
    patterns: tuple[str, ...]
    trace: dict[str, Tensor] = field(default_factory=dict)
    after: dict[str, Tensor] = field(default_factory=dict)

    def keep(self, name: str, value: Tensor) -> None:
        """Put a tensor into the trace if it was asked for."""
        if any(fnmatchcase(name, pattern) for pattern in self.patterns):
            self.trace[name] = value

    def previous(self, name: str, value: Tensor) -> Tensor:
        """`value` (B, T, ...) one token earlier; its first token comes from the state before, else zero."""
        first = self.before.tensors.get(name)
        if first is None:
            first = torch.zeros_like(value[:, 0])
        self.after[name] = value[:, -1]
        return torch.cat([first[:, None], value[:, :-1]], dim=1)


@dataclass(frozen=True)
class Sublayer:
    """One table of equations at its place in the model.

    Attributes:
        prefix: what stands before its tensors' names ("blocks.3.att.").
        table: tensor name -> equation.
        group: whose weights it reads.
        stream: full name of the tensor that enters it as `x`; empty before the first.
    """

    prefix: str
    table: Mapping[str, Equation]
    group: str
    stream: str


@cache
def parameters(equation: Equation) -> tuple[str, ...]:
    """The names that an equation reads."""
    return tuple(inspect.signature(equation).parameters)


class Model:
    """A version's equations on one checkpoint in one number format.

    Args:
        weights: the checkpoint.
        version: module with the tables EMBED, TIME_MIX, TIME_MIX_LAYER0, CHANNEL_MIX, HEAD.
        dtype: short name of the format that everything is evaluated in.
        overrides: full tensor name or pattern ("blocks.*.att.w") -> the equation to use instead.
        rounding: applied to every named tensor as (name, value); None leaves it alone.
        weight_dtype: weights pass through this format first ("bf16": as a bf16 file would hold them).
        keep: hold converted weights in memory; False reads each block again when it is its turn.
    """

    def __init__(
        self,
        weights: Weights,
        version: ModuleType,
        dtype: str = "f64",
        overrides: Mapping[str, Equation] | None = None,
        rounding: Rounding | None = None,
        weight_dtype: str = "",
        keep: bool = True,
    ) -> None:
        self.weights, self.version, self.dtype = weights, version, DTYPES[dtype]
        self.overrides, self.rounding, self.weight_dtype = dict(overrides or {}), rounding, weight_dtype
        self.heads, self.layers = weights.facts.n_head, weights.facts.n_layer
        self._kept: dict[str, Scope] | None = {} if keep else None

    def run(
        self, tokens: Tensor, before: Carry | None = None, logits: str = "all", trace: tuple[str, ...] = ()
    ) -> tuple[Tensor | None, Carry, dict[str, Tensor]]:
        """Evaluate all equations in order, layer by layer, all tokens of a layer at once.

        Args:
            tokens: (B, T) int64.
            before: what the tokens before left behind; None is the zero state.
            logits: "none", "last" or "all".
            trace: patterns of full tensor names to return.

        Returns:
            Logits (B, T or 1, V) or None, the carry after the last token, the traced tensors (B, T, ...).
        """
        walk = Walk(tokens, before or Carry(), trace)
        x = self._walk_table(walk, "", self.version.EMBED, self.read("embed"))["ln0"]
        v_first: Tensor | None = None
        for layer in range(self.layers):
            scope = {**self.read(f"blocks.{layer}.att"), "x": x, "v_first": v_first}
            done = self._walk_table(walk, f"blocks.{layer}.att.", self._time_mix(layer), scope)
            v_first = done["v"] if layer == 0 else v_first
            scope = {**self.read(f"blocks.{layer}.ffn"), "x": done["res"]}
            x = self._walk_table(walk, f"blocks.{layer}.ffn.", self.version.CHANNEL_MIX, scope)["res"]
        result = None
        if logits != "none":
            x = x[:, -1:] if logits == "last" else x
            result = self._walk_table(walk, "", self.version.HEAD, {**self.read("head"), "x": x})["head"]
        return result, Carry(walk.after), walk.trace

    def sublayers(self) -> Iterator[Sublayer]:
        """Everything, in the order of evaluation."""
        yield Sublayer("", self.version.EMBED, "embed", "")
        stream = "ln0"
        for layer in range(self.layers):
            for part, table in (("att", self._time_mix(layer)), ("ffn", self.version.CHANNEL_MIX)):
                yield Sublayer(f"blocks.{layer}.{part}.", table, f"blocks.{layer}.{part}", stream)
                stream = f"blocks.{layer}.{part}.res"
        yield Sublayer("", self.version.HEAD, "head", stream)

    def names(self) -> list[str]:
        """Full names of all tensors, in order of evaluation."""
        return [part.prefix + name for part in self.sublayers() for name in part.table]

    def _time_mix(self, layer: int) -> Mapping[str, Equation]:
        table: Mapping[str, Equation] = self.version.TIME_MIX_LAYER0 if layer == 0 else self.version.TIME_MIX
        return table

    def equation(self, name: str, equation: Equation) -> Equation:
        """The equation of a tensor, or what overrides it."""
        for pattern, other in self.overrides.items():
            if fnmatchcase(name, pattern):
                return other
        return equation

    def _walk_table(self, walk: Walk, prefix: str, table: Mapping[str, Equation], scope: Scope) -> Scope:
        """Evaluate one sub-layer; returns its tensors (the recurrence's only where traced)."""
        scope = {"tokens": walk.tokens, "heads": self.heads, **scope}
        equations = {name: self.equation(prefix + name, equation) for name, equation in table.items()}
        done: Scope = {}
        for name, equation in equations.items():
            if name in done:  # a reader of the recurrence, evaluated with it
                continue
            if name + "_prev" in parameters(equation):
                readers = {n: e for n, e in equations.items() if name in parameters(e)}
                done |= self.recur(walk, prefix, name, equation, readers, scope, done)
            else:
                done[name] = self._evaluate(walk, prefix, name, equation, {**scope, **done})
        return done

    def _evaluate(self, walk: Walk, prefix: str, name: str, equation: Equation, scope: Scope) -> Tensor:
        arguments = {}
        for parameter in parameters(equation):
            source = parameter.removesuffix("_prev")
            arguments[parameter] = (
                walk.previous(prefix + source, scope[source]) if source != parameter else scope[parameter]
            )
        value = self._rounded(prefix + name, equation(**arguments))
        walk.keep(prefix + name, value)
        return value

    def recur(
        self,
        walk: Walk,
        prefix: str,
        name: str,
        equation: Equation,
        readers: Mapping[str, Equation],
        scope: Scope,
        timed: Scope,
    ) -> Scope:
        """Walk the recurrence in blocks of tokens; its readers follow block by block, so that memory stays flat.

        `timed` holds the tensors of the sub-layer so far, (B, T, ...); `scope` what has no time axis.
        """
        B, T = walk.tokens.shape
        inputs = {p: {**scope, **timed}[p] for p in parameters(equation) if p != name + "_prev"}
        S = walk.before.tensors.get(prefix + name)
        if S is None:
            N = self.weights.facts.head_size
            S = torch.zeros(B, self.heads, N, N, dtype=self.dtype)
        pieces: dict[str, list[Tensor]] = {n: [] for n in (name, *readers)}
        traced = any(fnmatchcase(prefix + name, pattern) for pattern in walk.patterns)
        for start in range(0, T, BLOCK):
            states, before = [], S
            for t in range(start, min(start + BLOCK, T)):
                now = {p: z[:, t] if p in timed else z for p, z in inputs.items()}
                S = self._rounded(prefix + name, equation(**{name + "_prev": S}, **now))
                states.append(S)
            block = {**scope, **{n: z[:, start : start + BLOCK] for n, z in timed.items()}}
            block[name] = torch.stack(states, dim=1)
            if any(name + "_prev" in parameters(read) for read in readers.values()):
                block[name + "_prev"] = torch.stack([before, *states[:-1]], dim=1)
            if traced:
                pieces[name].append(block[name])
            for reader, read in readers.items():
                value = read(**{p: block[p] for p in parameters(read)})
                pieces[reader].append(self._rounded(prefix + reader, value))
        walk.after[prefix + name] = S
        done = {n: torch.cat(parts, dim=1) for n, parts in pieces.items() if parts}
        for n, value in done.items():
            walk.keep(prefix + n, value)
        return done

    def _rounded(self, name: str, value: Tensor) -> Tensor:
        return value if self.rounding is None else self.rounding(name, value)

    def read(self, group: str) -> Scope:
        """The weights of a group under the names that equations use ("receptance_weight")."""
        if self._kept is not None and group in self._kept:
            return self._kept[group]
        scope = {short: self._weight(name) for short, name in self._names(group)}
        if self._kept is not None:
            self._kept[group] = scope
        return scope

    def _names(self, group: str) -> Iterator[tuple[str, str]]:
        """(name in equations, official name) of a group's weights."""
        if group == "embed":
            yield "emb_weight", "emb.weight"
            yield from ((f"ln0_{part}", f"blocks.0.ln0.{part}") for part in ("weight", "bias"))
        elif group == "head":
            yield from ((f"ln_out_{part}", f"ln_out.{part}") for part in ("weight", "bias"))
            yield "head_weight", "head.weight"
        else:
            norm = "ln1" if group.endswith("att") else "ln2"
            block = group.rpartition(".")[0]
            yield from ((f"{norm}_{part}", f"{block}.{norm}.{part}") for part in ("weight", "bias"))
            for name in self.weights:
                if name.startswith(group + ".") and name not in self._unused:
                    yield name.removeprefix(group + ".").replace(".", "_"), name

    @property
    def _unused(self) -> frozenset[str]:
        return frozenset(f"blocks.0.att.v{i}" for i in range(3))  # training code saves them, nothing reads them

    def _weight(self, name: str) -> Tensor:
        if name not in self.weights:
            raise InputError(
                f"{self.weights.facts.name} has no tensor {name!r}, which RWKV-{self.weights.facts.version} needs."
            )
        tensor = self.weights.get(name)
        return (tensor.to(DTYPES[self.weight_dtype]) if self.weight_dtype else tensor).to(self.dtype)
