"""Conversion on first use: a checkpoint in a form that an engine opens itself, kept for the next time."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from backends.registry import Backend

if TYPE_CHECKING:
    from backends.weights import Weights

FILES = {"pth": "model.pth", "safetensors": "model.safetensors", "hf": "hf"}
"""Form -> name of what is written; the folder tells the model."""


def form(path: Path | None) -> str:
    """Which form of a checkpoint lies at a path: "pth", "safetensors", "hf", another suffix, or "" for none."""
    if path is None:
        return ""
    return "hf" if path.is_dir() else path.suffix.lower().removeprefix(".")


def prepared(weights: "Weights", row: Backend, tell: Callable[[str], None]) -> "Weights":
    """The checkpoint in a form that a backend reads.

    Backends that take opened weights, as all that this package computes itself do, get them as they are. For another
    that reads no such form the checkpoint is written once, into `prepared/` beside it (or in the user's
    cache, where it is made by code or its folder cannot be written), and again when it has changed.

    Args:
        weights: opened; closed if others are returned.
        row: of the backend.
        tell: told before something is written.

    Raises:
        InputError: it cannot be written.
    """
    if not row.reads or form(weights.path) in row.reads:
        return weights
    from backends.checkpoint import open_checkpoint
    from backends.convert import save

    dest = _folder(weights) / FILES[row.reads[0]]
    if not _fresh(dest, weights.path):
        tell(f"converting {weights.facts.name} to {row.reads[0]} for {row.name}, once")
        save(weights, dest, row.reads[0])
    weights.close()
    return open_checkpoint(str(dest))


def _folder(weights: "Weights") -> Path:
    name = weights.path.stem if weights.path else weights.facts.name
    safe = "".join(letter if letter.isalnum() or letter in "-._" else "_" for letter in name)
    if weights.path is not None and os.access(weights.path.parent, os.W_OK):
        return weights.path.parent / "prepared" / safe
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "rwkv-harness" / "prepared" / safe


def _fresh(dest: Path, source: Path | None) -> bool:
    """Whether what was written before is not older than what it was made from."""
    if not dest.exists():
        return False
    return source is None or dest.stat().st_mtime >= source.stat().st_mtime
