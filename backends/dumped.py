"""A dump as a session: what a program saved of one prompt answers like a backend, and only of that prompt."""

from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np

from backends.base import Array, Ids, Info, ModelFacts, Output, Session, State, Want
from backends.dumps import Dump
from backends.errors import InputError, Unsupported

SHOWN = 6
"""Tokens of the prompt that an error quotes."""


class DumpSession(Session):
    """Outputs of a program on one prompt, fed whole from the zero state.

    Logits after every token and named tensors also answer the beginnings of the prompt, for nothing in them depends on
    what comes later. Logits after the last token alone answer the whole prompt only.

    Args:
        dump: what it saved; logits (T, V) or (V,), named tensors (T, ...).
        tokens: the prompt, (T,).
        model: sizes of the checkpoint.
        name: for `info`.
    """

    timed = False

    def __init__(self, dump: Dump, tokens: Ids, model: ModelFacts, name: str) -> None:
        self.dump, self.tokens = dump, tokens
        self.logits = None if dump.logits is None else np.atleast_2d(dump.logits)
        abilities = {"trace"} if dump.tensors else set()
        if self.logits is not None and len(self.logits) == len(tokens):
            abilities.add("logits-all")
        self.info = Info(
            name,
            model,
            dtype=dump.dtype or "f32",
            attention="not stated",
            packages={dump.model or "a program": "version not stated"},
            abilities=frozenset(abilities),
            notes=(f"a dump ({dump.format}) of one prompt of {len(tokens)} tokens",),
        )

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        T = tokens.shape[1]
        if tokens.shape[0] != 1 or state is not None:
            raise Unsupported(f"{self.info.backend} is a recording of one row from the zero state.")
        if not np.array_equal(tokens[0], self.tokens[:T]):
            raise Unsupported(f"{self.info.backend} is a recording of other tokens: {self._only()}.")
        trace = {n: v[None, :T] for n, v in self.dump.tensors.items() if any(fnmatchcase(n, p) for p in want.trace)}
        return Output(self._logits(T, want), trace=trace)

    def _logits(self, T: int, want: Want) -> Array | None:
        if want.logits == "none" or not want.fetch:
            return None
        if self.logits is None:
            raise Unsupported(f"{self.info.backend} holds no logits.")
        if len(self.tokens) > T and "logits-all" not in self.info.abilities:
            raise Unsupported(f"{self.info.backend} holds logits after the last token only: {self._only()}.")
        logits = self.logits[:T]
        return logits[None] if want.logits == "all" else logits[None, -1:]

    def _only(self) -> str:
        first = ", ".join(map(str, self.tokens[:SHOWN].tolist()))
        return f"its one prompt has {len(self.tokens)} tokens, [{first}, ...]; `compare KIT DUMP` judges it"

    def export_state(self, state: Any) -> State:
        """A dump has no state to go on from."""
        del state
        raise Unsupported(f"{self.info.backend} is a recording; nothing can go on from it.")

    def import_state(self, state: State) -> Any:
        """A dump has no state to go on from."""
        del state
        raise Unsupported(f"{self.info.backend} is a recording; nothing can go on from it.")


def fitting(path: Path, dump: Dump, model: ModelFacts) -> Dump:
    """A dump that can answer for this model, heads joined.

    Raises:
        InputError: it holds nothing, does not say which tokens it is of, or is of other sizes.
    """
    T, V = len(dump.tokens), model.vocab_size
    if not T:
        raise InputError(f"{path} does not say which tokens it is of; write `tokens` into it (docs/kit.md).")
    if dump.logits is None and not dump.tensors:
        raise InputError(f"{path} holds neither logits nor named tensors, so it can answer nothing.")
    if dump.logits is not None and dump.logits.shape not in ((T, V), (1, V), (V,)):
        raise InputError(f"{path}: logits of shape {dump.logits.shape}, where {(T, V)} or {(V,)} is due.")
    if max(dump.tokens) >= V or min(dump.tokens) < 0:
        raise InputError(f"{path}: its tokens do not lie in the vocabulary of {V} that {model.name} has.")
    tensors = {name: _joined(path, name, value, T, model) for name, value in dump.tensors.items()}
    return replace(dump, tensors=tensors)


def _joined(path: Path, name: str, value: Array, T: int, model: ModelFacts) -> Array:
    """(T, C) of a tensor that may come as (T, H, N) or with a batch of one in front."""
    value = value[0] if value.ndim > 2 and value.shape[0] == 1 != T else value
    if value.shape[:1] != (T,):
        raise InputError(f"{path}: {name} has shape {value.shape}, which has to begin with {T} tokens.")
    split = value.ndim == 3 and value.shape[1:] == (model.n_head, model.head_size)
    return value.reshape(T, -1) if split else value
