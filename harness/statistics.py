"""Intervals and verdicts for timings and for errors that grow. Seeded, numpy only.

Timings are skewed and have outliers, so everything rests on medians; every number comes with its 95% interval.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Vector = npt.NDArray[np.float64]
Speed = Literal["faster", "slower", "equivalent", "inconclusive"]
Cost = Literal["constant", "grows", "shrinks", "inconclusive"]
Trend = Literal["flat", "saturates", "accumulates", "unknown"]

LEVEL = 0.95
Z = 1.959963984540054
"""Normal quantile of a two-sided 95% interval."""

MARGIN = 0.03
"""Speeds within 3% count as equal: what an A/A comparison on a quiet machine stays within."""

RESAMPLES = 2000
_CHUNK = 1 << 20  # elements of a block of resamples: bounds memory at 8 MB


@dataclass(frozen=True)
class Interval:
    """A number and its 95% interval."""

    value: float
    low: float
    high: float

    def within(self, low: float, high: float) -> bool:
        """Whether the whole interval lies in [low, high]; never for NaN."""
        return low <= self.low and self.high <= high


@dataclass(frozen=True)
class Drift:
    """How an error develops over steps.

    Attributes:
        kind: "flat" (does not grow), "saturates" (grows, then stays), "accumulates" (grows to the end), "unknown"
            (fewer than 8 steps, or values that are not finite).
        slope: of ln(error) over ln(step) over all steps; 0.5 is a random walk, 1 a constant bias. `low` and
            `high` are its 95% interval.
        z: slope / standard error.
        knee: the step from which on a saturating error stays; 0 otherwise.
    """

    kind: Trend
    slope: float
    low: float
    high: float
    z: float
    knee: int = 0


def order_statistic(values: npt.ArrayLike, share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; NaN if any is NaN.

    Raises:
        ValueError: no values.
    """
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    if not ordered.size:
        raise ValueError("no samples, so no percentile.")
    if np.isnan(ordered[-1]):  # numpy sorts NaN to the end
        return math.nan
    return float(ordered[max(0, math.ceil(share * ordered.size - 1e-9) - 1)])


def percentiles(values: npt.ArrayLike, shares: Sequence[float] = (0.5, 0.9, 0.99)) -> dict[str, float]:
    """Percentiles by name ("p50"), each a value that occurred."""
    return {f"p{100 * share:g}": order_statistic(values, share) for share in shares}


def median(samples: npt.ArrayLike, seed: int = 0) -> Interval:
    """Median with its bootstrap interval.

    Raises:
        ValueError: no samples, or samples that are not finite.
    """
    values = _samples(samples)
    return _bootstrap(lambda rows: np.median(values[rows], axis=-1), values.size, seed)


def speed_ratio(candidate: npt.ArrayLike, baseline: npt.ArrayLike, seed: int = 0) -> Interval:
    """Speed of the candidate relative to the baseline: median(baseline) / median(candidate), above 1 is faster.

    Args:
        candidate: seconds, one per round.
        baseline: seconds; sample i was taken next to candidate's i (interleaved). Pairs are resampled
            together, so that what slows both down cancels.
        seed: of the resampling.

    Raises:
        ValueError: unequal numbers, none, or times that are not finite and positive.
    """
    mine, other = _samples(candidate), _samples(baseline)
    if mine.size != other.size:
        raise ValueError(f"samples must come in pairs: {mine.size} of the candidate, {other.size} of the baseline.")
    if min(mine.min(), other.min()) <= 0:
        raise ValueError("a time that is not positive was measured; the clock is too coarse for this.")
    return _bootstrap(lambda rows: np.median(other[rows], axis=-1) / np.median(mine[rows], axis=-1), mine.size, seed)


def speed_verdict(ratio: Interval, margin: float = MARGIN) -> Speed:
    """Which of four claims the whole interval of a speed ratio supports.

    "equivalent": inside [1 / (1 + margin), 1 + margin]; "faster", "slower": outside of it on one side;
    "inconclusive": across an edge, take more samples.
    """
    low, high = 1 / (1 + margin), 1 + margin
    if ratio.within(low, high):
        return "equivalent"
    if ratio.low > high:
        return "faster"
    return "slower" if ratio.high < low else "inconclusive"


def slope(x: npt.ArrayLike, y: npt.ArrayLike) -> Interval:
    """Theil-Sen slope of y over x: the median of the slopes of all pairs, blind to outliers.

    Its interval is Sen's (1968), from the spread of Kendall's statistic. Beyond 400 points, medians of runs are used.

    Raises:
        ValueError: unequal numbers, values that are not finite, or fewer than two different x.
    """
    at, value = _samples(x), _samples(y)
    if at.size != value.size or np.unique(at).size < 2:
        raise ValueError(f"a slope needs pairs at two different x: got {at.size} x and {value.size} y.")
    at, value = _thinned(at, value)
    i, j = np.triu_indices(at.size, k=1)
    apart = at[i] != at[j]
    slopes = np.sort((value[j] - value[i])[apart] / (at[j] - at[i])[apart])
    n = at.size
    reach = Z * math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    low, high = math.floor((slopes.size - reach) / 2), math.ceil((slopes.size + reach) / 2)
    low, high = max(low, 0), min(high, slopes.size - 1)
    return Interval(float(np.median(slopes)), float(slopes[low]), float(slopes[high]))


def growth(x: npt.ArrayLike, y: npt.ArrayLike) -> Interval:
    """Change of y over the whole span of x, as a share of its median: 0.03 is 3% more at the far end."""
    line = slope(x, y)
    span = float(np.ptp(np.asarray(x, dtype=np.float64))) / float(np.median(np.asarray(y, dtype=np.float64)))
    return Interval(line.value * span, line.low * span, line.high * span)


def cost_verdict(change: Interval, margin: float = MARGIN) -> Cost:
    """What the interval of `growth` supports: "constant" (within the margin), "grows", "shrinks", "inconclusive"."""
    if change.within(-margin, margin):
        return "constant"
    if change.low > margin:
        return "grows"
    return "shrinks" if change.high < -margin else "inconclusive"


def steady_from(samples: npt.ArrayLike, window: int = 5, tolerance: float = 0.05) -> int | None:
    """Index from which on a warming-up series is steady; None if it is not yet.

    The series is steady from the first sample after which the median of every window lies within the tolerance of
    the last window's; two windows that do not overlap must agree at least. Ask again after each new sample.
    """
    values = _samples(samples) if np.size(samples) else np.zeros(0)
    if values.size < 2 * window:
        return None
    medians = np.median(np.lib.stride_tricks.sliding_window_view(values, window), axis=-1)
    off = np.abs(medians - medians[-1]) > tolerance * abs(medians[-1])
    start = int(np.flatnonzero(off)[-1]) + 1 if off.any() else 0
    near = np.abs(values[start:] - medians[-1]) <= tolerance * abs(medians[-1])
    start += int(near.argmax())  # a window's median forgives the slow samples it begins with
    return start if start <= values.size - 2 * window else None


def drift(series: npt.ArrayLike) -> Drift:
    """Whether an error per step (positive, in order) stays flat, saturates or accumulates.

    Three curves of ln(error) over ln(step) compete by the Bayesian information criterion: constant, straight line,
    and a line that ends in a plateau. Neighbouring errors are correlated; the number of steps is corrected for
    that by the residuals' lag-1 correlation. A curve that falls is flat: it does not grow.
    """
    errors = np.asarray(series, dtype=np.float64).ravel()
    if errors.size < 8 or not np.isfinite(errors).all():
        return Drift("unknown", math.nan, math.nan, math.nan, math.nan)
    if not errors.any():
        return Drift("flat", 0.0, 0.0, 0.0, 0.0)
    y = np.log(np.maximum(np.abs(errors), np.abs(errors[errors != 0]).min()))  # exact steps count as the smallest error
    x = np.log(np.arange(1, errors.size + 1))
    line, residual = _fit(x, y)
    n = _independent(residual)
    error = math.sqrt(float(residual @ residual) / (errors.size - 2) / (n * float(x.var())))
    interval = (line, line - Z * error, line + Z * error, line / error if error else math.copysign(math.inf, line))
    knee, bent = _plateau(x, y)
    scores = {"flat": _bic(y - y.mean(), n, 1), "accumulates": _bic(residual, n, 2), "saturates": _bic(bent, n, 3)}
    kind = min(scores, key=lambda name: scores[name])
    if kind == "flat" or line <= 0:
        return Drift("flat", *interval)
    return Drift("saturates", *interval, knee) if kind == "saturates" else Drift("accumulates", *interval)


def _samples(values: npt.ArrayLike) -> Vector:
    array = np.asarray(values, dtype=np.float64).ravel()
    if not array.size or not np.isfinite(array).all():
        raise ValueError(f"{array.size} samples, {int((~np.isfinite(array)).sum())} of them not finite.")
    return array


def _bootstrap(statistic: Callable[[npt.NDArray[np.int64]], Vector], n: int, seed: int) -> Interval:
    """Percentile interval of a statistic of resampled indices (resamples, n)."""
    random = np.random.default_rng(seed)
    step = max(1, _CHUNK // n)
    sizes = [min(step, RESAMPLES - done) for done in range(0, RESAMPLES, step)]
    drawn = np.concatenate([statistic(random.integers(0, n, size=(size, n))) for size in sizes])
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(statistic(np.arange(n))), float(low), float(high))


def _thinned(x: Vector, y: Vector, most: int = 400) -> tuple[Vector, Vector]:
    """Points in order of x, as medians of equal runs where there are too many for all pairs."""
    order = np.argsort(x, kind="stable")
    x, y = x[order], y[order]
    if x.size <= most:
        return x, y
    runs = np.array_split(np.arange(x.size), most)
    return np.array([np.median(x[run]) for run in runs]), np.array([np.median(y[run]) for run in runs])


def _fit(x: Vector, y: Vector) -> tuple[float, Vector]:
    """Slope and residuals of the least-squares line."""
    dx, dy = x - x.mean(), y - y.mean()
    line = float(dx @ dy) / float(dx @ dx)
    return line, dy - line * dx


def _plateau(x: Vector, y: Vector) -> tuple[int, Vector]:
    """The best line that ends in a plateau: its knee (a step) and its residuals."""
    knees = range(2, max(3, 3 * x.size // 4))
    fits = {knee: _fit(np.minimum(x, x[knee]), y)[1] for knee in knees}
    best = min(fits, key=lambda knee: float(fits[knee] @ fits[knee]))
    return best + 1, fits[best]


def _independent(residual: Vector) -> float:
    """How many independent values these residuals are worth."""
    power = float(residual @ residual)
    lag = float(residual[1:] @ residual[:-1]) / power if power else 0.0
    lag = min(max(lag, 0.0), 0.95)
    return max(residual.size * (1 - lag) / (1 + lag), 4.0)


def _bic(residual: Vector, n: float, parameters: int) -> float:
    """Bayesian information criterion of a fit with normal residuals; the floor keeps a perfect fit finite."""
    variance = max(float(residual @ residual) / residual.size, 1e-24)
    return n * math.log(variance) + parameters * math.log(n)
