"""A dump as a session: what another program saved answers like a backend, but only what was asked of that program."""

from collections.abc import Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from backends.base import Array, Ids, Info, ModelFacts, Output, Session, State, Want
from backends.errors import BackendError
from harness.dumps import Dump

STATE = ("att_shift", "wkv", "ffn_shift")
"""Parts of a state in the agreed layout, without the batch axis: (L, C), (L, H, N, N), (L, C)."""


class Recorded(Session):
    """Outputs of a program on one prompt, fed whole from the zero state.

    Args:
        dump: what it saved; logits (T, V) or (V,), named tensors (T, ...).
        tokens: the prompt, (T,).
        model: sizes of the checkpoint.
        name: for `info`.
    """

    def __init__(self, dump: Dump, tokens: Ids, model: ModelFacts, name: str) -> None:
        self.dump, self.tokens = dump, tokens
        logits = None if dump.logits is None else np.atleast_2d(dump.logits)
        self.logits = logits
        abilities = {"trace"} if dump.tensors else set()
        if logits is not None and len(logits) == len(tokens):
            abilities.add("logits-all")
        self.info = Info(name, model, dtype=dump.dtype or "f32", abilities=frozenset(abilities))

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        if tokens.shape[0] != 1 or state is not None:
            raise BackendError(f"{self.info.backend} is a recording of one row from the zero state.")
        if want.logits == "none" and tokens.shape[1] < len(self.tokens):
            return Output(trace=self._trace(want, tokens.shape[1]))
        if not np.array_equal(tokens[0], self.tokens):
            raise BackendError(f"{self.info.backend} is a recording of other tokens.")
        logits = self.logits if want.logits != "none" else None
        if logits is not None and want.logits == "last":
            logits = logits[-1:]
        return Output(None if logits is None else logits[None], trace=self._trace(want, len(self.tokens)))

    def _trace(self, want: Want, tokens: int) -> Mapping[str, Array]:
        chosen = (n for n in self.dump.tensors if any(fnmatchcase(n, pattern) for pattern in want.trace))
        return {name: self.dump.tensors[name][None, :tokens] for name in chosen}

    def export_state(self, state: Any) -> State:
        """A recording has no state to go on from."""
        del state
        raise BackendError(f"{self.info.backend} is a recording; nothing can go on from it.")

    def import_state(self, state: State) -> Any:
        """A recording has no state to go on from."""
        del state
        raise BackendError(f"{self.info.backend} is a recording; nothing can go on from it.")


def settled(dump: Dump, expected: Mapping[str, Array]) -> tuple[Dump, dict[str, str]]:
    """A dump whose tensors have the expected shapes, and what had to be left aside with the reason.

    A leading axis of length 1 (a batch) is dropped, and trailing axes may be split or joined, (T, H, N) for
    (T, C), since the order in memory is the same. Nothing else is bent.

    Args:
        dump: as read.
        expected: name -> array whose shape is due; `logits`, `state.NAME`, named tensors.
    """
    wrong: dict[str, str] = {}
    tensors = _shaped(dump.tensors, expected, "", wrong)
    state = _shaped(dump.state, expected, "state.", wrong)
    logits = dump.logits
    if logits is not None:
        logits = _logits(logits, expected["logits"], wrong)
    return replace(dump, tensors=tensors, state=state, logits=logits), wrong


def _shaped(
    found: Mapping[str, Array], expected: Mapping[str, Array], prefix: str, wrong: dict[str, str]
) -> dict[str, Array]:
    kept = {}
    for name, value in found.items():
        if prefix + name not in expected:
            wrong[prefix + name] = "no tensor of this model has that name"
            continue
        due = expected[prefix + name].shape
        shape = value.shape[1:] if len(value.shape) > 1 and value.shape[0] == 1 != due[0] else value.shape
        same_order = shape[:1] == due[:1] and value.size == np.prod(due) and _refines(shape, due)
        if shape == due or same_order:
            kept[name] = value.reshape(due)
        else:
            wrong[prefix + name] = f"shape {value.shape}, where {due} is expected"
    return kept


def _refines(shape: tuple[int, ...], due: tuple[int, ...]) -> bool:
    """Whether one shape splits the last axis of the other."""
    shorter, longer = sorted((shape, due), key=len)
    return longer[: len(shorter) - 1] == shorter[:-1]


def _logits(logits: Array, want: Array, wrong: dict[str, str]) -> Array | None:
    """(T, V) or the last position (1, V)."""
    T, V = want.shape
    if logits.ndim == 1 and logits.size in (T * V, V):  # a bare file has no shape
        logits = logits.reshape(-1, V)
    if logits.ndim == 2 and logits.shape in ((T, V), (1, V)):
        return logits
    wrong["logits"] = f"shape {logits.shape}, where {(T, V)}, or {(V,)} for the last position, is expected"
    return None
