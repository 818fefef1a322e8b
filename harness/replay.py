"""Contributed error: what each equation of a subject got wrong by itself, in units of what honest rounding does.

Replay evaluates every equation in float64 on the inputs that the subject recorded. The difference from the
output that it recorded is its own; what its inputs had wrong is inherited and does not count. Honest runs,
replayed the same way, give a band for every tensor and every token. numpy only.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from backends.base import Array

Vector = npt.NDArray[np.float64]

LIMIT = 3.0
"""Times the honest band from which a tensor is out of it."""

TINY = 1e-300


@dataclass(frozen=True)
class Error:
    """Error of one tensor by token.

    Attributes:
        rms: (T,), over everything behind the time axis.
        largest: (T,), largest magnitude.
    """

    rms: Vector
    largest: Vector


@dataclass(frozen=True)
class Out:
    """A tensor that left its band.

    Attributes:
        tensor: full name ("blocks.1.att.w").
        token: the first token at which it is out.
        ratio: contributed error there, in units of the band.
        worst: the largest ratio over all tokens.
    """

    tensor: str
    token: int
    ratio: float
    worst: float

    @property
    def layer(self) -> int | None:
        """The block it is in; None for embedding and head."""
        parts = self.tensor.split(".")
        return int(parts[1]) if parts[0] == "blocks" else None

    @property
    def short(self) -> str:
        """The name without its block: "att.w"."""
        return self.tensor.split(".", 2)[-1] if self.layer is not None else self.tensor


def error(got: Array, want: Array) -> Error:
    """Error of one tensor (T, ...); NaN and infinity stay visible as infinity.

    Raises:
        ValueError: the shapes differ.
    """
    if got.shape != want.shape:
        raise ValueError(f"shape {got.shape}, where {want.shape} is expected")
    with np.errstate(all="ignore"):
        d = np.abs(got.astype(np.float64) - want).reshape(len(want), -1)
    d[~np.isfinite(d)] = np.inf
    return Error(np.sqrt((d**2).mean(axis=1)), d.max(axis=1))


def errors(trace: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, Error]:
    """Contributed error of every tensor that was both recorded and replayed, in the order of `expected`."""
    return {name: error(trace[name], want) for name, want in expected.items() if name in trace}


def band(runs: Iterable[Mapping[str, Error]]) -> dict[str, Error]:
    """The largest contributed error of several honest runs, by tensor and token."""
    merged: dict[str, Error] = {}
    for run in runs:
        for name, found in run.items():
            seen = merged.get(name, found)
            merged[name] = Error(np.maximum(seen.rms, found.rms), np.maximum(seen.largest, found.largest))
    return merged


def ratios(found: Mapping[str, Error], honest: Mapping[str, Error]) -> dict[str, Vector]:
    """Contributed error by tensor and token in units of the band: the larger of its RMS and its largest entry.

    A band is smoothed over its tokens by never falling below a tenth of its own median, so that a token at
    which all honest runs were lucky is no trap.
    """
    return {name: _ratio(error_, honest[name]) for name, error_ in found.items() if name in honest}


def _ratio(found: Error, honest: Error) -> Vector:
    with np.errstate(all="ignore"):
        by_rms = found.rms / _floored(honest.rms)
        by_largest = found.largest / _floored(honest.largest)
    ratio: Vector = np.nan_to_num(np.maximum(by_rms, by_largest), nan=np.inf, posinf=np.inf)
    return ratio


def _floored(band_: Vector) -> Vector:
    floor: Vector = np.maximum(band_, max(float(np.median(band_)) / 10, TINY))
    return floor


def out_of_band(order: Sequence[str], by_tensor: Mapping[str, Vector], limit: float = LIMIT) -> list[Out]:
    """Tensors that contributed more than honest rounding does, in the order in which they are computed."""
    found = []
    for name in order:
        if name in by_tensor:
            beyond = np.flatnonzero(~(by_tensor[name] <= limit))
            if beyond.size:
                token = int(beyond[0])
                found.append(Out(name, token, float(by_tensor[name][token]), float(by_tensor[name].max())))
    return found
