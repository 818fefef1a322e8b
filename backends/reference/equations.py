"""Walks the named equations of a version: run, trace, override, round; `replay` walks a recording.

The walker resolves each parameter of an equation by name: first the tensors of the sub-layer, then the
weights of the block, then what comes from elsewhere (`x`, `tokens`, `heads`, and what the version says lies
outside, like `v_first`). A parameter `NAME_prev` is tensor NAME at the previous token; an equation that reads
its own `_prev` is the recurrence and is walked token by token. `NAME_all` is NAME at every token since the start,
(B, S + T, ...): only versions whose state grows have it.
"""

from collections.abc import Iterator, Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor

from backends.errors import InputError
from backends.reference.onread import OnRead
from backends.reference.rows import in_time, shared, together
from backends.reference.walk import (
    Carry,
    Equation,
    Rounding,
    Scope,
    Sublayer,
    Version,
    Walk,
    parameters,
    readers,
    source,
    sublayers,
)
from backends.weights import DTYPES, Weights

__all__ = ["Carry", "Equation", "Model", "Rounding", "Scope", "Sublayer", "Version", "Walk", "parameters", "source"]

BLOCK = 16  # tokens whose WKV states are held at once while the recurrence walks: what a core's cache holds
ROUNDED = 64  # tokens whose readers of the state are rounded together; random numbers come in that order
NORMS = {"att": "ln1", "ffn": "ln2"}  # the norm in front of a sub-layer is stored beside it


class Model:
    """A version's equations on one checkpoint in one number format.

    Args:
        weights: the checkpoint.
        version: the equations.
        dtype: short name of the format that everything is evaluated in.
        overrides: full tensor name or pattern ("blocks.*.att.w") -> the equation to use instead.
        rounding: applied to every named tensor as (name, value); None leaves it alone.
        weight_dtype: weights pass through this format first ("bf16": as a bf16 file would hold them).
        keep: hold converted weights in memory; False reads each block again when it is its turn.
        arranged: recurrence, or equation that reads its states -> one that gives the same in less time.
    """

    def __init__(
        self,
        weights: Weights,
        version: Version,
        dtype: str = "f64",
        overrides: Mapping[str, Equation] | None = None,
        rounding: Rounding | None = None,
        weight_dtype: str = "",
        keep: bool = True,
        arranged: Mapping[Equation, Equation] | None = None,
    ) -> None:
        self.weights, self.version, self.dtype = weights, version, DTYPES[dtype]
        self.arranged = arranged or {}
        self.overrides, self.rounding, self.weight_dtype = overrides or {}, rounding, weight_dtype
        self.heads, self.layers = weights.facts.n_head, weights.facts.n_layer
        self._kept: dict[str, Scope] | None = {} if keep else None
        self._parts = tuple(sublayers(version, self.layers))
        self._last_reader = {full: at for at, part in enumerate(self._parts) for full in part.outside.values()}

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
        walk = Walk(tokens, before or Carry(), trace, logits)
        self.advance([walk])
        return walk.head, Carry(walk.after), walk.trace

    def advance(self, walks: Sequence[Walk]) -> None:
        """Take walks through the model together: a sub-layer's weights are read once for all of them."""
        for at, part in enumerate(self._parts):
            asked = [walk for walk in walks if part.group != "head" or walk.logits != "none"]
            weights = self.read(part.group) if asked else {}
            for walk in asked:
                self._step(walk, at, weights)
            if self._kept is None:  # memory holds one sub-layer at a time
                weights = {}
                self.weights.forget()

    def _step(self, walk: Walk, at: int, weights: Scope) -> None:
        """One sub-layer; what no later one reads is let go."""
        part = self._parts[at]
        if at == 0 and "tokens" in self.version.growing.values():
            past = walk.before.tensors.get("tokens")
            walk.after["tokens"] = walk.tokens if past is None else torch.cat([past, walk.tokens], dim=1)
        outside = {name: walk.live[full] for name, full in part.outside.items() if full in walk.live}
        if part.group == "head" and walk.logits == "last":
            outside["x"] = outside["x"][:, -1:]
        done = self._walk_table(walk, part, {**weights, **outside})
        walk.head = done.get("head")
        walk.live |= {part.prefix + name: value for name, value in done.items()}
        walk.live = {full: value for full, value in walk.live.items() if self._last_reader.get(full, 0) > at}

    def sublayers(self) -> tuple[Sublayer, ...]:
        """Everything, in the order of evaluation."""
        return self._parts

    def names(self) -> list[str]:
        """Full names of all tensors, in order of evaluation."""
        return [part.prefix + name for part in self._parts for name in part.table]

    def locate(self, full: str) -> tuple[Sublayer, str] | None:
        """The sub-layer of a tensor and its name there; None where there is no such tensor."""
        for part in self._parts:
            name = full.removeprefix(part.prefix)
            if full.startswith(part.prefix) and name in part.table:
                return part, name
        return None

    @property
    def overrides(self) -> Mapping[str, Equation]:
        """Full tensor name or pattern -> the equation to use instead; the first that fits counts."""
        return self._overrides

    @overrides.setter
    def overrides(self, overrides: Mapping[str, Equation]) -> None:
        self._overrides = dict(overrides)
        self._found: dict[str, Equation] = {}  # full name -> what was found for it

    def equation(self, name: str, equation: Equation) -> Equation:
        """The equation of a tensor, or what overrides it."""
        if name not in self._found:
            fitting = (other for pattern, other in self._overrides.items() if fnmatchcase(name, pattern))
            self._found[name] = next(fitting, equation)
        return self._found[name]

    def _walk_table(self, walk: Walk, part: Sublayer, scope: Scope) -> Scope:
        """Evaluate one sub-layer; returns its tensors (the recurrence's only where traced)."""
        scope = {"tokens": walk.tokens, "heads": self.heads, **scope}
        equations = {name: self.equation(part.prefix + name, equation) for name, equation in part.table.items()}
        done: Scope = {}
        seen = dict(scope)
        for name, equation in equations.items():
            if name in done:  # a reader of the recurrence, evaluated with it
                continue
            if name + "_prev" in parameters(equation):
                done |= self.recur(walk, part, name, equations, scope, done)
                seen |= done
                continue
            value = self._rounded(part.prefix + name, self.evaluate(walk, part, equation, seen))
            walk.keep(part.prefix + name, value)
            self._carry(walk, part, name, value)
            seen[name] = done[name] = value
        return done

    def evaluate(self, walk: Walk, part: Sublayer, equation: Equation, scope: Scope) -> Tensor:
        """One equation on what is in scope, not rounded; `NAME_prev` and `NAME_all` reach into the tokens before."""
        arguments = {}
        for parameter in parameters(equation):
            name = source(parameter)
            value = scope[name]
            if parameter.endswith("_prev"):
                value = self._previous(walk, part, name, scope)
            elif parameter.endswith("_all"):
                past = self._past(walk, part, name)
                value = value if past is None else torch.cat([past, value], dim=1)
            arguments[parameter] = value
        return equation(**arguments)

    def _previous(self, walk: Walk, part: Sublayer, name: str, scope: Scope) -> Tensor:
        """A tensor in scope (B, T, ...) one token earlier."""
        value: Tensor = scope[name]
        if name not in part.carried and not part.growing:  # an override may need what the version does not carry
            walk.after[part.prefix + name] = value[:, -1]
        first = self._first(walk, part, name, scope)
        if first is None:
            past = self._past(walk, part, name)
            first = torch.zeros_like(value[:, 0]) if past is None else past[:, -1]
        return torch.cat([first[:, None], value[:, :-1]], dim=1)

    @staticmethod
    def _first(walk: Walk, part: Sublayer, name: str, scope: Scope) -> Tensor | None:
        """What stood before the first token (B, ...): from the state before, or what a recurrence begins with."""
        found = walk.before.tensors.get(part.prefix + name)
        if found is None and name in part.start:
            start = part.start[name]
            value = start(**{parameter: scope[parameter] for parameter in parameters(start)})
            found = value.expand(len(walk.tokens), *value.shape)
        return found

    def _past(self, walk: Walk, part: Sublayer, name: str) -> Tensor | None:
        """A tensor at all tokens before this call (B, S, ...), computed from what grows; None if there are none."""
        ids = walk.before.tensors.get("tokens")
        if ids is None:
            return None
        full = part.prefix + name
        if name in part.growing:
            return walk.before.tensors[full]
        if full not in walk.past:
            equation = self.equation(full, part.table[name])
            scope = {**self.read(part.group), "heads": self.heads, "tokens": ids}
            for parameter in parameters(equation):
                self._past_of(walk, part, parameter, scope)
            walk.past[full] = self._rounded(full, equation(**{p: scope[p] for p in parameters(equation)}))
        return walk.past[full]

    def _past_of(self, walk: Walk, part: Sublayer, parameter: str, scope: Scope) -> None:
        """Put what a parameter was in the past into scope, unless it is a weight."""
        name = source(parameter)
        found = (part, name) if name in part.table else self.locate(part.outside.get(name, ""))
        if found is None:
            return
        value = self._past(walk, *found)
        assert value is not None
        if parameter.endswith("_prev"):
            value = torch.cat([torch.zeros_like(value[:, :1]), value[:, :-1]], dim=1)
        scope[parameter] = value

    @staticmethod
    def _carry(walk: Walk, part: Sublayer, name: str, value: Tensor) -> None:
        """Leave behind what later tokens need of a tensor (B, T, ...)."""
        full = part.prefix + name
        if name in part.growing:
            past = walk.before.tensors.get(full)
            walk.after[full] = value if past is None else torch.cat([past, value], dim=1)
        elif name in part.carried:
            walk.after[full] = value[:, -1]

    def recur(
        self,
        walk: Walk,
        part: Sublayer,
        name: str,
        equations: Mapping[str, Equation],
        scope: Scope,
        timed: Scope,
    ) -> Scope:
        """Walk the recurrence in blocks of tokens; its readers follow block by block, so that memory stays flat.

        `equations` are those of the sub-layer, `timed` its tensors so far, (B, T, ...), `scope` has no time axis.
        """
        full, own = part.prefix + name, {name: equations[name], **readers(name, equations)}
        read = {p for equation in own.values() for p in parameters(equation)}
        S = self._first(walk, part, name, scope)
        assert S is not None  # a version states what its recurrences begin with
        B, T = walk.tokens.shape
        shares = [(torch.arange(B), own)] if self._rounds(full, S) else list(shared(own, B, self.arranged))
        states = [S[at] for at, _ in shares] if len(shares) > 1 else [S]
        traced = any(fnmatchcase(full, pattern) for pattern in walk.patterns)
        pieces: dict[str, list[Tensor]] = {n: [] for n in own if n != name or traced}
        fresh: dict[str, list[Tensor]] = {n: [] for n in own if n != name}
        for start in range(0, T, BLOCK):
            block = {p: timed[p][:, start : start + BLOCK] for p in read if p in timed}
            parts = []
            for share, (at, mine) in enumerate(shares):
                rows = block if len(shares) == 1 else {p: z[at] for p, z in block.items()}
                states[share], done = self._block(full, mine, scope, states[share], rows, traced)
                parts.append((at, done))
            for n, found in {**pieces, **fresh}.items():
                found.append(together([(at, done[n]) for at, done in parts], B))
            if (start + BLOCK) % ROUNDED == 0 or start + BLOCK >= T:
                for n, found in fresh.items():
                    pieces[n].append(self._rounded(part.prefix + n, torch.cat(found, dim=1)))
                    found.clear()
        walk.after[full] = together([(at, S) for (at, _), S in zip(shares, states, strict=True)], B).contiguous()
        done = {n: torch.cat(found, dim=1) for n, found in pieces.items()}
        for n, value in done.items():
            walk.keep(part.prefix + n, value)
        return done

    def _block(
        self, full: str, own: Mapping[str, Equation], scope: Scope, S: Tensor, timed: Scope, traced: bool
    ) -> tuple[Tensor, Scope]:
        """The recurrence `full` from S (b, ...) over a block of tokens: its last state, and what reads its states.

        `own` are the recurrence and its readers, `timed` their other inputs at these tokens, (b, n, ...). Where the
        recurrence is `traced` its states (b, n, ...) are among the tensors.
        """
        name = full.rpartition(".")[2]
        prev, equation, rest = name + "_prev", own[name], {n: e for n, e in own.items() if n != name}
        inputs = [p for p in parameters(equation) if p != prev]
        fixed = {p: scope[p] for p in inputs if p not in timed}
        moving = {p: timed[p].unbind(1) for p in inputs if p in timed}
        states = [S]
        for t in range(len(next(iter(moving.values())))):
            now = {p: z[t] for p, z in moving.items()}
            states.append(self._rounded(full, equation(**{prev: states[t]}, **now, **fixed)))
        done, read = {**scope, **timed}, {p for reader in rest.values() for p in parameters(reader)}
        kept = {name: states[1:]} if traced or name in read else {}
        kept |= {prev: states[:-1]} if prev in read else {}
        done |= {n: in_time(found) for n, found in kept.items()}
        reading = {n: reader(**{p: done[p] for p in parameters(reader)}) for n, reader in rest.items()}
        return states[-1], reading | ({name: done[name]} if traced else {})

    def _rounds(self, name: str, value: Tensor) -> bool:
        """Whether a tensor is rounded at all; no rows draw no random numbers."""
        none = value[:0]
        return self._rounded(name, none) is not none

    def _rounded(self, name: str, value: Tensor) -> Tensor:
        return value if self.rounding is None else self.rounding(name, value)

    def read(self, group: str) -> Scope:
        """The weights of a group under the names that equations use ("receptance_weight")."""
        if self._kept is not None and group in self._kept:
            return self._kept[group]
        scope = self.version.prepared({short: self._weight(name) for short, name in self._names(group)})
        if self._kept is not None:
            self._kept[group] = scope
        return scope

    def _names(self, group: str) -> Iterator[tuple[str, str]]:
        """(name in equations, official name) of a group's weights."""
        ends = {"embed": ("emb.weight", "blocks.0.ln0"), "head": ("head.weight", "ln_out")}
        block, _, kind = group.rpartition(".")
        matrix, norm = ends.get(group, ("", f"{block}.{NORMS[kind]}" if kind in NORMS else ""))
        for name in (matrix, norm and f"{norm}.weight", norm and f"{norm}.bias"):
            if name:
                yield "_".join(name.split(".")[-2:]), name
        for name in self.weights:
            if block and name.startswith(group + ".") and name not in self.version.unused:
                yield name.removeprefix(group + ".").replace(".", "_"), name

    def _weight(self, name: str) -> Any:
        if name not in self.weights:
            raise InputError(
                f"{self.weights.facts.name} has no tensor {name!r}, which RWKV-{self.weights.facts.version} needs."
            )
        shape = self.weights.tensors[name].shape
        if self._kept is None and len(shape) == 2 and shape[0] == self.weights.facts.vocab_size:
            return OnRead(partial(self.weights.get, name), self._converted, self.dtype.itemsize)
        return self._converted(self.weights.get(name))

    def _converted(self, tensor: Tensor) -> Tensor:
        return (tensor.to(DTYPES[self.weight_dtype]) if self.weight_dtype else tensor).to(self.dtype)
