"""Where honest runs are kept between runs: the same checkpoint, tokens and program land in the same envelope.

The key is content: the values of the checkpoint, the tokens, the case, the number formats, and the program's own
files with the libraries that it computes with. Nothing is ever out of date; deleting the folder costs only time.
"""

import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any
from zipfile import BadZipFile

import numpy as np

from harness.measures.base import Spread
from reports.store import write_atomically

if TYPE_CHECKING:
    from backends.weights import Weights

FOLDER = "cache"
"""Folder inside --out."""

Found = tuple[dict[str, Spread], list[tuple[str, dict[str, Any]]]]
"""Number -> spread over the honest runs, and the evidence beside it."""


@dataclass(frozen=True)
class Shelf:
    """The envelopes of one checkpoint.

    Attributes:
        folder: where files are.
        content: of the checkpoint; part of every key.
    """

    folder: Path
    content: str

    def key(self, **facts: Any) -> str:
        """Key of one envelope: everything that decides it.

        Args:
            facts: JSON values and integer arrays by name.
        """
        plain = {name: value.tolist() if isinstance(value, np.ndarray) else value for name, value in facts.items()}
        written = json.dumps([_program(), self.content, plain], sort_keys=True)
        return hashlib.sha256(written.encode()).hexdigest()[:24]

    def spreads(self, key: str) -> Found | None:
        """What was kept under a key; None if nothing was, or nobody can read it."""
        try:
            data = json.loads(self._file(key, "json").read_text(encoding="utf-8"))
            spreads = {name: Spread(float(row[0]), float(row[1])) for name, row in data["spreads"].items()}
            return spreads, [(str(kind), dict(evidence)) for kind, evidence in data["evidence"]]
        except (OSError, ValueError, LookupError, TypeError):
            return None

    def keep_spreads(self, key: str, found: Found) -> None:
        """Keep an envelope; a folder that cannot be written costs nothing but time."""
        spreads, evidence = found
        rows = {name: [spread.median, spread.largest] for name, spread in spreads.items()}
        text = json.dumps({"spreads": rows, "evidence": evidence})
        self._write(key, "json", text)

    def arrays(self, key: str) -> dict[str, np.ndarray[Any, Any]] | None:
        """Arrays that were kept under a key; None if nothing was, or nobody can read it."""
        try:
            with np.load(self._file(key, "npz"), allow_pickle=False) as file:
                return {name: file[name] for name in file.files}
        except (OSError, ValueError, LookupError, EOFError, BadZipFile):
            return None

    def keep_arrays(self, key: str, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Keep arrays; see `keep_spreads`."""
        path = self._file(key, "npz")
        beside = path.with_suffix(".tmp.npz")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            np.savez(beside, allow_pickle=False, **arrays)
            beside.replace(path)
        except OSError:
            return

    def _file(self, key: str, kind: str) -> Path:
        return self.folder / FOLDER / f"honest-{key}.{kind}"

    def _write(self, key: str, kind: str, text: str) -> None:
        path = self._file(key, kind)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomically(path, text)
        except OSError:
            return


def shelf(folder: Path, weights: "Weights") -> Shelf:
    """The envelopes of a checkpoint inside --out."""
    from backends.fingerprint import WHOLE, fingerprint

    path = weights.path
    if path is None:  # made by code, which is in every key
        return Shelf(folder, weights.facts.name)
    files = [path] if path.is_file() else sorted(file for file in path.iterdir() if file.is_file())
    large = weights.facts.parameters > WHOLE  # where not every value is looked at
    stamp = [(file.stat().st_size, file.stat().st_mtime_ns) for file in files] if large else []
    return Shelf(folder, f"{fingerprint(weights)} {stamp}")


@cache
def _program() -> str:
    from harness.run import code_hash

    return f"{code_hash()} torch {version('torch')} numpy {np.__version__} {platform.machine()}"
