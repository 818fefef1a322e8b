"""Saved things as the command line knows them: a dump of a program, or a record of this one; no torch.

Also what a dump has to look like before its numbers are compared: shapes as they are due, or left aside in words.
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from backends import dumps
from backends.base import Array
from backends.dumps import Dump
from backends.errors import InputError
from reports.record import Record, RecordError


def read(path: Path) -> Dump | Record:
    """Read a saved thing, whatever it is.

    Raises:
        InputError: missing, unreadable, or nothing that is known here.
    """
    file = dumps.located(path)
    try:
        text = file.read_text(encoding="utf-8") if file.suffix.lower() == ".json" else ""
        if "measurements" in (json.loads(text) if text else ()):
            return Record.from_json(text)
    except RecordError as error:
        raise InputError(f"{file}: {error}.") from None
    except (OSError, ValueError, TypeError):
        pass  # said below, as of any dump
    return dumps.read(file)


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
