"""The rounding envelope: how far honest arithmetic of a number format may land from the truth.

Taken on *this* checkpoint and *these* tokens, from runs of the `honest` backend whose every named tensor
is randomly rounded. A limit that hangs on it needs no guess: a near tie is explained and not blamed,
and a bug smaller than anybody's threshold is still seen.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from backends.base import Session
from harness.measures.base import ROW_BYTES, Context, Measure, Sample, Spread

SMALL, MANY, FEW = 50_000_000, 16, 8
"""Up to SMALL parameters MANY honest runs are affordable, beyond that FEW."""

FORMATS = ("f32", "bf16", "f16")
"""Number formats that have honest runs; float64 is the truth itself."""


def runs(asked: int, parameters: int) -> int:
    """How many honest runs to take: what was asked for, else what the model's size affords."""
    return asked or (MANY if parameters <= SMALL else FEW)


def honest_format(dtype: str) -> str:
    """The format whose honest runs judge a subject: float64 ports are held to what float32 owes."""
    return "f32" if dtype == "f64" else dtype


def honest_id(dtype: str) -> str:
    """Id under which a record keeps the honest runs of a number format."""
    return f"honest@{honest_format(dtype)}"


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
    values: dict[str, list[float]] = {}
    banded: list[Sample] = []
    for sample in _samples(measure, session, context, truth, count):
        for number in measure.compare(sample, truth, context):
            values.setdefault(number.name, []).append(number.value)
        if hasattr(measure, "band"):
            banded.append(sample)
    spreads = {name: _spread(found) for name, found in values.items() if "unexplained" not in name}
    evidence: list[tuple[str, dict[str, Any]]] = [("envelope", {"runs": count, "measures": _plain(spreads)})]
    if banded:
        evidence.append(("band", measure.band(banded, truth)))  # type: ignore[attr-defined]
    return spreads, evidence


def _samples(measure: Measure, session: Session, context: Context, truth: Sample, count: int) -> Iterator[Sample]:
    """All honest runs, in portions whose logits fit in memory; two at least, since some are compared in pairs."""
    fitting = ROW_BYTES // (4 * len(context.tokens) * context.model.vocab_size)
    portions = max(1, count // max(2, fitting))
    for number in range(portions):
        rows = count * (number + 1) // portions - count * number // portions
        yield from measure.collect(session, context, truth, rows)


def _spread(values: list[float]) -> Spread:
    """Median and largest magnitude; infinity if any run was not finite, which no limit can hang on."""
    magnitudes = sorted(abs(value) if math.isfinite(value) else math.inf for value in values)
    return Spread(magnitudes[len(magnitudes) // 2], magnitudes[-1])


def _plain(spreads: Mapping[str, Spread]) -> dict[str, dict[str, float]]:
    return {name: {"median": spread.median, "max": spread.largest} for name, spread in spreads.items()}
