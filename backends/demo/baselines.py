"""What simple means reach on the same split: an n-gram model and gzip, both in bits per byte.

The n-gram model is interpolated Kneser-Ney with one discount per order (Chen and Goodman, 1998): the longest context
has the counts of the text, every shorter one counts in how many different places its continuations were seen.
"""

import gzip
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.demo.corpus import END, Bytes, stream

ORDER = 5
"""Preceding bytes that the n-gram model looks at."""

_Array = npt.NDArray[Any]


def gzip_bits(files: Sequence[bytes]) -> float:
    """Bits per byte of all files in one gzip stream at its best level."""
    text = b"".join(files)
    return 8 * len(gzip.compress(text, compresslevel=9, mtime=0)) / len(text)


@dataclass(frozen=True)
class _Level:
    """Counts of one order, sorted: n-grams with how often they count; contexts with the sum and the number of kinds."""

    grams: _Array
    counts: _Array
    contexts: _Array
    totals: _Array
    kinds: _Array
    discount: float

    def probability(self, grams: _Array, shorter: _Array) -> _Array:
        """Probability of each n-gram's last byte after the others, given that of the order below."""
        place, known = _find(self.contexts, grams >> 8)
        total = np.where(known, self.totals[place], 1.0)
        own, seen = _find(self.grams, grams)
        count = np.where(seen, self.counts[own] - self.discount, 0.0)
        left = self.discount * np.where(known, self.kinds[place], 0.0)
        return np.where(known, (count + left * shorter) / total, shorter)


class NGram:
    """The model.

    Args:
        files: what to count.
        order: how many preceding bytes the longest context has, at most 7.
    """

    def __init__(self, files: Sequence[bytes], order: int = ORDER) -> None:
        self._order, self._levels = order, [_level(*np.unique(_grams(stream(files), order), return_counts=True))]
        for length in range(order - 1, -1, -1):
            mask = np.uint64(2 ** (8 * length + 8) - 1)
            self._levels.append(_level(*np.unique(self._levels[-1].grams & mask, return_counts=True)))

    def bits_per_byte(self, files: Sequence[bytes]) -> float:
        """Mean cost of the files' bytes; the bytes between files are context only."""
        text = stream(files)
        grams = _grams(text, self._order)
        probability = np.full(len(grams), 1.0 / 256)
        for length, level in enumerate(reversed(self._levels)):
            probability = level.probability(grams & np.uint64(2 ** (8 * length + 8) - 1), probability)
        return float(-np.log2(probability[text != END]).mean())


def _level(grams: _Array, counts: _Array) -> _Level:
    contexts, starts = np.unique(grams >> np.uint64(8), return_index=True)
    ones, twos = max(1, int((counts == 1).sum())), int((counts == 2).sum())  # 1: what was never seen costs, but not ∞
    kinds = np.diff(np.append(starts, len(grams)))
    return _Level(grams, counts, contexts, np.add.reduceat(counts, starts), kinds, ones / (ones + 2 * twos))


def _grams(text: Bytes, order: int) -> npt.NDArray[np.uint64]:
    """Every byte with its `order` predecessors as one number; before the first stands the byte between files."""
    padded = np.concatenate([np.full(order, END, dtype=np.uint8), text])
    found = np.zeros(len(text), dtype=np.uint64)
    for offset in range(order + 1):
        found = (found << np.uint64(8)) | padded[offset : offset + len(text)]
    return found


def _find(sorted_keys: _Array, keys: _Array) -> tuple[_Array, npt.NDArray[np.bool_]]:
    """Place of each key, and whether it is there."""
    place = np.minimum(np.searchsorted(sorted_keys, keys), len(sorted_keys) - 1)
    return place, sorted_keys[place] == keys
