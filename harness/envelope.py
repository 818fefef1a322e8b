"""The rounding envelope: how far honest arithmetic of a number format may land from the truth.

Taken on *this* checkpoint and *these* tokens, from runs of the `honest` backend whose every named tensor
is randomly rounded. A limit that hangs on it needs no guess: a near tie is explained and not blamed,
and a bug smaller than anybody's threshold is still seen.
"""

import math
from collections.abc import Mapping
from typing import Any

from backends.base import Session
from harness.measures.base import Context, Measure, Sample, Spread

SMALL, MANY, FEW = 50_000_000, 16, 4
"""Up to SMALL parameters MANY honest runs are affordable, beyond that FEW."""

FORMATS = ("f32", "bf16", "f16")
"""Number formats that have honest runs; float64 is the truth itself."""


def runs(asked: int, parameters: int) -> int:
    """How many honest runs to take: what was asked for, else what the model's size affords."""
    return asked or (MANY if parameters <= SMALL else FEW)


def honest_id(dtype: str) -> str:
    """Id under which a record keeps the honest runs of a number format."""
    return f"honest@{dtype}"


def measure_envelope(
    measure: Measure, session: Session, context: Context, truth: Sample, count: int
) -> tuple[dict[str, Spread], list[tuple[str, dict[str, Any]]]]:
    """Run a case many times with honest rounding.

    Args:
        measure: the suite's module.
        session: of the `honest` backend.
        context: of the case.
        truth: the reference's sample.
        count: how many runs.

    Returns:
        Number -> spread over the runs; and the evidence to keep.
    """
    samples = measure.collect(session, context, truth, count)
    values: dict[str, list[float]] = {}
    for sample in samples:
        for number in measure.compare(sample, truth, context):
            values.setdefault(number.name, []).append(number.value)
    spreads = {name: _spread(found) for name, found in values.items() if "unexplained" not in name}
    evidence: list[tuple[str, dict[str, Any]]] = [("envelope", {"runs": len(samples), "measures": _plain(spreads)})]
    if hasattr(measure, "band"):
        evidence.append(("band", measure.band(samples, truth)))
    return spreads, evidence


def _spread(values: list[float]) -> Spread:
    """Median and largest magnitude; infinity if any run was not finite, which no limit can hang on."""
    magnitudes = sorted(abs(value) if math.isfinite(value) else math.inf for value in values)
    return Spread(magnitudes[len(magnitudes) // 2], magnitudes[-1])


def _plain(spreads: Mapping[str, Spread]) -> dict[str, dict[str, float]]:
    return {name: {"median": spread.median, "max": spread.largest} for name, spread in spreads.items()}
