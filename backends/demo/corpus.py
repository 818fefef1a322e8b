"""The corpus: the running Python's own standard library, split by file into training and held-out text.

The sources are under the Python Software Foundation License. What is left out is no code (tables of encodings, the
text behind `help()`) or repeats itself (tests). The split hashes names, so that it is the same on every machine with
the same Python version.
"""

import hashlib
import re
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from backends.errors import InputError

END = 0
"""The byte between files, which no source contains; ends a document, as id 0 of the World vocabulary does."""

HELD_OUT = 20
"""One file in so many is held out."""

_STATEMENT = re.compile(rb"\0|(?<=\n)(?:(?=(?:def|class|import|from|if|for|try|with|async)\b)|(?=@|# |[A-Za-z_]+ = ))")
"""Where a file or a statement that is not indented begins."""

_SKIPPED = {"site-packages", "dist-packages", "test", "tests", "idle_test", "encodings", "pydoc_data", "__pycache__"}

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Corpus:
    """Training and held-out files as bytes, ordered by name."""

    training: tuple[bytes, ...]
    held_out: tuple[bytes, ...]

    def fingerprint(self) -> str:
        """A hash of every byte and of the split, to tell whether two runs saw the same."""
        digest = hashlib.sha256()
        for part in (self.training, self.held_out):
            for text in part:
                digest.update(hashlib.sha256(text).digest())
            digest.update(b"|")
        return digest.hexdigest()[:16]


def read(root: Path | None = None) -> Corpus:
    """Every source file below `root`, default the running Python's standard library.

    Raises:
        InputError: there are too few sources for a split.
    """
    root = root or Path(sysconfig.get_paths()["stdlib"])
    parts: tuple[list[bytes], list[bytes]] = ([], [])
    for name in names(root):
        text = (root / name).read_bytes()
        if text and END not in text:
            parts[held_out(name)].append(text)
    if not all(parts):
        raise InputError(f"{root} holds too few Python sources to train on; is the standard library installed there?")
    return Corpus(tuple(parts[0]), tuple(parts[1]))


def names(root: Path) -> list[str]:
    """The sources below `root` that belong to the corpus, as sorted POSIX names relative to it."""
    found = (path.relative_to(root) for path in root.rglob("*.py") if path.is_file())
    return sorted(name.as_posix() for name in found if not _SKIPPED & set(name.parts[:-1]))


def held_out(name: str) -> bool:
    """Whether the file of that name is held out."""
    return hashlib.sha256(name.encode()).digest()[0] % HELD_OUT == 0


def stream(files: Sequence[bytes], order: Sequence[int] | None = None) -> Bytes:
    """Files one behind another, `END` before each and at the very end."""
    chosen = [files[i] for i in order] if order is not None else files
    end = bytes([END])
    return np.frombuffer(end + end.join(chosen) + end, dtype=np.uint8)


class Rows:
    """Batches in a fixed order: every epoch the files are shuffled, joined and cut into rows that are read in step.

    Segments of a row follow one another, so that the state can be carried from each to the next.

    Args:
        files: the training files.
        rows: of a batch.
        tokens: of a batch.
        carried: segments after which a row begins with the zero state again.
        seed: of the shuffles.
    """

    def __init__(self, files: Sequence[bytes], rows: int, tokens: int, carried: int, seed: int) -> None:
        self._files, self._rows, self._tokens, self._carried, self._seed = files, rows, tokens, carried, seed
        self.per_epoch = (sum(map(len, files)) + len(files)) // rows // tokens
        if self.per_epoch < 1:
            raise InputError(f"the corpus is too small for one batch of {rows} x {tokens} bytes.")
        self._epoch, self._stream = -1, np.zeros(0, dtype=np.uint8)

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Ids (rows, tokens + 1) of a step; the last id of each row is the first of the next step's."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            order = np.random.default_rng((self._seed, epoch)).permutation(len(self._files))
            self._epoch, self._stream = epoch, stream(self._files, order.tolist())
        starts = np.arange(self._rows) * (self.per_epoch * self._tokens) + place * self._tokens
        ids: npt.NDArray[np.int64] = self._stream[starts[:, None] + np.arange(self._tokens + 1)].astype(np.int64)
        return ids

    def fresh(self, step: int) -> npt.NDArray[np.bool_]:
        """Rows (rows,) that begin with the zero state at this step: each after `carried` segments, not all at once."""
        place = step % self.per_epoch
        found: npt.NDArray[np.bool_] = (np.arange(self._rows) + place) % self._carried == 0
        return found | (place == 0)


class Starts:
    """Batches for the end of a training: each row begins, from the zero state, where a file or a statement begins.

    Rows of `Rows` begin anywhere, in the middle of a line too, and a model that knows only those takes the first line
    of a prompt for the rest of an indented one.

    Args:
        files: the training files.
        rows: of a batch.
        tokens: of a batch.
        carried: segments of a row.
        seed: of the choice.
    """

    def __init__(self, files: Sequence[bytes], rows: int, tokens: int, carried: int, seed: int) -> None:
        self._stream = stream(files)
        self._rows, self._tokens, self._carried, self._seed = rows, tokens, carried, seed
        found = np.array([match.start() for match in _STATEMENT.finditer(self._stream.tobytes())])
        self._starts = found[found < len(self._stream) - carried * tokens]
        if not len(self._starts):
            raise InputError(f"the corpus is too small for rows of {carried * tokens} bytes.")

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """Ids (rows, tokens + 1) of a step, counted from the first batch of this kind."""
        turn, place = divmod(step, self._carried)
        starts = np.random.default_rng((self._seed, turn)).choice(self._starts, self._rows) + place * self._tokens
        ids: npt.NDArray[np.int64] = self._stream[starts[:, None] + np.arange(self._tokens + 1)].astype(np.int64)
        return ids

    def fresh(self, step: int) -> npt.NDArray[np.bool_]:
        """Rows (rows,) that begin with the zero state at this step: all or none."""
        return np.full(self._rows, step % self._carried == 0)
