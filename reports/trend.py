"""Does an error grow over the steps, settle, or stay: a line through its logarithm, in log-spaced bins.

Neighbouring steps share their past, so points are pooled into bins before a slope is fitted; the
interval is that of the bins.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean

BINS = 8
FLAT = 0.15
"""A slope of log error over log step below this is no growth: 8 bins of honest noise rarely exceed it."""


@dataclass(frozen=True)
class Trend:
    """How an error goes with the step.

    Attributes:
        word: "accumulates", "saturates" or "stays flat".
        slope: exponent p of error ~ step^p over all steps; 0.5 is a random walk.
        spread: standard error of the slope.
        growth: last bin over first bin.
    """

    word: str
    slope: float
    spread: float
    growth: float


def trend(steps: Sequence[float], errors: Sequence[float]) -> Trend | None:
    """Fit `errors` over `steps`; None where fewer than four bins have a positive, finite error."""
    pooled = _pool(steps, errors)
    if len(pooled) < 4:
        return None
    slope, spread = _fit(pooled)
    late, _ = _fit(pooled[len(pooled) // 2 :])
    growth = math.exp(pooled[-1][1] - pooled[0][1])
    growing = "saturates" if late < FLAT else "accumulates"
    word = "stays flat" if slope <= max(FLAT, 2 * spread) else growing
    return Trend(word, slope, spread, growth)


def _pool(steps: Sequence[float], errors: Sequence[float]) -> list[tuple[float, float]]:
    """Mean log step and mean log error of each log-spaced bin that has any."""
    pairs = zip(steps, errors, strict=False)
    points = sorted((math.log(s + 1), math.log(e)) for s, e in pairs if s >= 0 and 0 < e < math.inf)
    if not points:
        return []
    low, high = points[0][0], points[-1][0]
    edges = [low + (high - low) * index / BINS for index in range(BINS)] + [math.inf]
    bins = [[point for point in points if a <= point[0] < b] for a, b in pairwise(edges)]
    return [(fmean(x for x, _ in rows), fmean(y for _, y in rows)) for rows in bins if rows]


def _fit(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Least squares: slope and its standard error."""
    mx, my = fmean(x for x, _ in points), fmean(y for _, y in points)
    sxx = sum((x - mx) ** 2 for x, _ in points)
    if sxx == 0 or len(points) < 3:
        return 0.0, math.inf
    slope = sum((x - mx) * (y - my) for x, y in points) / sxx
    rest = sum((y - my - slope * (x - mx)) ** 2 for x, y in points)
    return slope, math.sqrt(rest / (len(points) - 2) / sxx)


def tail(probabilities: Sequence[float], count: int) -> float:
    """Probability that at least `count` of independent events happen (Poisson binomial)."""
    chances = [1.0]
    for p in probabilities:
        grown = [*chances, 0.0]
        chances = [chance * (1 - p) + (grown[index - 1] * p if index else 0.0) for index, chance in enumerate(grown)]
    return min(1.0, sum(chances[count:]))
