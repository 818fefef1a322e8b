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
"""Times the honest band from which a tensor is out of it.

Of 64 honest runs in f32, bf16 and f16 on two checkpoints, the farthest reached 2.34 x the band of 16 others, 2.63 x
that of 8, 3.16 x that of 4.
"""

LEAST_RUNS = 8
"""A band of fewer honest runs is too thin for LIMIT."""

REACH = 2
"""A token's band also holds what honest runs do at this many tokens to either side."""

ULP = 2.0**-24
"""Where honest arithmetic is exact (a copy, a lookup), a float32 rounding of the largest entry is allowed."""

AVERAGED = 16
"""A tensor's factor may be off by this part of its relative rounding error, even where honest runs average out more."""

TINY = 1e-300


@dataclass(frozen=True)
class Error:
    """Error of one tensor by token.

    Attributes:
        rms: (T,), over everything behind the time axis.
        largest: (T,), largest magnitude.
        size: (T,), largest magnitude of the expected tensor itself.
        factor: by how much the tensor as a whole is too large or small, a share of it. Random errors average out
            in it, a wrong factor does not.
        share: RMS of the error over all tokens, as a share of the tensor's.
    """

    rms: Vector
    largest: Vector
    size: Vector
    factor: float = 0.0
    share: float = 0.0


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
        signed = (got.astype(np.float64) - want).reshape(len(want), -1)
        d = np.abs(signed)
        d[~np.isfinite(d)] = np.inf
        largest, squares = d.max(axis=1), np.square(d, out=d)
        rms, total = np.sqrt(squares.mean(axis=1)), squares.sum()
        power = max(float(np.square(want, dtype=np.float64).sum()), TINY)
        factor = abs(float(np.multiply(signed, want.reshape(signed.shape), out=signed).sum())) / power
        share = float(np.sqrt(total / power))
    return Error(rms, largest, np.abs(want).reshape(len(want), -1).max(axis=1), factor, share)


def errors(trace: Mapping[str, Array], expected: Mapping[str, Array]) -> dict[str, Error]:
    """Contributed error of every tensor that was both recorded and replayed, in the order of `expected`."""
    return {name: error(trace[name], want) for name, want in expected.items() if name in trace}


def band(runs: Iterable[Mapping[str, Error]]) -> dict[str, Error]:
    """The largest error of several honest runs, by tensor and token."""
    merged: dict[str, Error] = {}
    for run in runs:
        for name, found in run.items():
            merged[name] = _larger(merged.get(name, found), found)
    return merged


def _larger(a: Error, b: Error) -> Error:
    by_token = (np.maximum(a.rms, b.rms), np.maximum(a.largest, b.largest), np.maximum(a.size, b.size))
    return Error(*by_token, max(a.factor, b.factor), max(a.share, b.share))


def ratios(found: Mapping[str, Error], honest: Mapping[str, Error]) -> dict[str, Vector]:
    """Error by tensor and token in units of the band: the larger of its RMS and its largest entry.

    Args:
        found: of one run.
        honest: the band. At a token it also holds its neighbours' (`REACH`) and is never below its own median
            over all tokens: small tensors scatter from token to token, and luck of all honest runs at one of
            them is no trap.

    Returns:
        (T,) by tensor; infinity where something is not finite.
    """
    return {name: _ratio(error_, honest[name]) for name, error_ in found.items() if name in honest}


def _ratio(found: Error, honest: Error) -> Vector:
    floor = ULP * honest.size
    with np.errstate(all="ignore"):
        by_rms = found.rms / allowed(honest.rms, floor)
        by_largest = found.largest / allowed(honest.largest, floor)
    ratio: Vector = np.nan_to_num(np.maximum(by_rms, by_largest), nan=np.inf, posinf=np.inf)
    if ratio.max() <= LIMIT:  # too small to be seen at any one token, but perhaps the same at every one
        ratio = np.maximum(ratio, found.factor / max(honest.factor, honest.share / AVERAGED, ULP))
    return ratio


def allowed(honest: Vector, floor: Vector) -> Vector:
    """One honest band by token, smoothed as `ratios` says; `floor` where it is zero."""
    smooth = _smooth(honest)
    result: Vector = np.maximum(np.where(smooth > 0, smooth, _smooth(floor)), TINY)
    return result


def _smooth(x: Vector) -> Vector:
    near = x.copy()
    for away in range(1, min(REACH, len(x) - 1) + 1):
        np.maximum(near[away:], x[:-away], out=near[away:])
        np.maximum(near[:-away], x[away:], out=near[:-away])
    smooth: Vector = np.maximum(near, np.median(near))
    return smooth


def reach(runs: Sequence[Mapping[str, Error]]) -> float:
    """How far one honest run comes from the band of the others, at most, in units of it; NaN of fewer than two."""
    worst = float("nan")
    before, after = _bands(runs), _bands(runs[::-1])[::-1]
    for run, *sides in zip(runs, before, after, strict=True):
        tops = [float(ratio.max()) for ratio in ratios(run, band(sides)).values()]
        worst = float(np.fmax(worst, max(tops))) if tops else worst
    return worst


def _bands(runs: Sequence[Mapping[str, Error]]) -> list[dict[str, Error]]:
    """The band of all runs in front of each."""
    bands, widest = [], dict[str, Error]()
    for run in runs:
        bands.append(widest)
        widest = band([widest, run])
    return bands


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
