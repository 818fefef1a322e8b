"""The plots of a report, each from a Record to a `Figure`, or nothing where there is no data."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from reports import views
from reports.document import Figure
from reports.record import Observation, Record
from reports.svg import Axis, Bar, Series, bar_chart, line_chart, linear_axis, log_axis, named_axis, shorten
from reports.text import finite, listed, num, number_of, share

SHOWN = 0.25
"""Share of the machine's limit from which on a bar chart shows the limit."""

RUNGS = ("mean", "p50", "p90", "p99", "p99.9", "max")
"""Percentiles of a ladder, in order."""


def numbers(values: Iterable[Any]) -> list[float]:
    """A list out of JSON as floats; NaN for what is no number."""
    return [math.nan if (number := number_of(value)) is None else number for value in values]


def _points(data: Mapping[str, Any], x: str, y: str) -> tuple[tuple[float, float], ...]:
    return tuple(zip(numbers(data[x]), numbers(data[y]), strict=True))


def _series(name: str, points: tuple[tuple[float, float], ...], log: bool = True) -> Series:
    """A line whose legend says what a logarithmic axis cannot show."""
    broken = sum(not math.isfinite(y) for _, y in points)
    hidden = " (zero everywhere)" if log and points and all(y == 0 for _, y in points) else ""
    return Series(shorten(name, 28) + (f" ({broken} not finite)" if broken else hidden), points)


def _ys(series: Sequence[Series]) -> list[float]:
    ys = [y for line in series for _, y in line.points]
    return ys + [y for line in series for _, low, high in line.band for y in (low, high)]


def _xs(series: Sequence[Series]) -> list[float]:
    return [x for line in series for x, _ in line.points] + [row[0] for line in series for row in line.band]


def _largest(series: Sequence[Series]) -> str:
    """How far each line goes: the summary of a plot of errors."""
    tops = [(line.name, max((y for _, y in line.points if math.isfinite(y)), default=None)) for line in series]
    return listed([f"{name} reaches {num(top)}" for name, top in tops if top is not None])


def error_by_rank(record: Record, case: str) -> Figure | None:
    """Absolute logit error over the rank of the token in the reference."""
    lists = views.by_subject(record, "error_by_rank", "logits", case)
    series = [_series(name, _points(data, "rank", "abs_err")) for name, data in lists.items()]
    if not series:
        return None
    summary = f"Mean absolute logit error by rank: {_largest(series)}."
    x, y = log_axis("rank of the token in the reference", _xs(series)), log_axis("|error| (logit)", _ys(series))
    title = f"Logit error by rank, {case}"
    return Figure(line_chart(x, y, series, title, summary), title, summary)


def errors_by_step(record: Record, case: str) -> list[Figure]:
    """Logit and state error over forced steps, a pair of plots for each number format: their scales lie far apart."""
    dtypes = {subject.id: str(subject.info.get("dtype") or "") for subject in record.subjects}
    formats = dict.fromkeys(dtypes.get(name, "") for name in views.by_subject(record, "series", "stepwise", case))
    found = [_error_by_step(record, case, dtypes, dtype, what) for dtype in formats for what in _STEP_COLUMNS]
    return [figure for figure in found if figure]


_STEP_COLUMNS = {"rms": ("RMS logit error", "logit"), "state": ("State error", "relative")}
_STEPS_OF = {"rms": "step", "state": "state_step"}
"""States are looked at less often than logits."""


def _error_by_step(record: Record, case: str, dtypes: Mapping[str, str], dtype: str, column: str) -> Figure | None:
    """One of `errors_by_step`; the band is what honest arithmetic reaches."""
    lists = views.by_subject(record, "series", "stepwise", case)
    mine = {name: data for name, data in lists.items() if dtypes.get(name, "") == dtype and data.get(column)}
    if not mine:
        return None
    lines = [_series(name, _points(data, _STEPS_OF[column], column)) for name, data in mine.items()]
    bands = views.by_subject(record, "band", "stepwise", case)
    honest = [_band(name, data, column) for name, data in bands.items() if name.partition("@")[2] == dtype]
    series = [*lines, *(band for band in honest if band)]
    what, unit = _STEP_COLUMNS[column]
    title = f"{what} by step, {case}" + (f", {dtype.upper()}" if dtype else "")
    summary = f"{what} over forced steps: {_largest(lines)}."
    x, y = linear_axis("step", _xs(series)), log_axis(f"{what} ({unit})", _ys(series))
    return Figure(line_chart(x, y, series, title, summary), title, summary)


def _band(name: str, data: Mapping[str, Any], column: str) -> Series | None:
    """From the honest median up to the largest honest run."""
    highs = numbers(data.get(f"{column}_max") or ())
    steps = numbers(data[_STEPS_OF[column]])
    middle = numbers(data.get(f"{column}_median") or ())
    if not highs:
        return None
    lows = middle or highs
    band = tuple(zip(steps, lows, highs, strict=True))
    words = "median to largest" if middle else "largest"
    edge = tuple(zip(steps, highs, strict=True)) if not middle else tuple(zip(steps, middle, strict=True))
    return Series(f"{name}: {words}", edge, band, honest=True)


def kl_ladder(record: Record, case: str) -> Figure | None:
    """Percentiles of the divergence over positions."""
    lists = views.by_subject(record, "ladder", "distribution", case)
    rungs = RUNGS[1:]
    series = [
        _series(name, tuple((float(i), numbers([data["kl"].get(rung)])[0]) for i, rung in enumerate(rungs)))
        for name, data in lists.items()
    ]
    if not series:
        return None
    title = f"KL divergence by percentile of positions, {case}"
    summary = f"KL divergence from the reference's distribution: {_largest(series)}."
    x = named_axis("percentile of positions", rungs)
    return Figure(line_chart(x, log_axis("KL (nat)", _ys(series)), series, title, summary), title, summary)


def throughput(record: Record, what: str) -> Figure | None:
    """Tokens per second with intervals, one bar a subject, grouped by length and batch.

    Args:
        record: where the samples are.
        what: "prefill" or "decode".
    """
    rows = [seen for seen in views.evidence(record, "samples", "speed") if seen.data["what"] == what]
    rows = [seen for seen in rows if finite(seen.data["median"])]
    if not rows:
        return None
    order = list(dict.fromkeys(seen.subject for seen in views.evidence(record, "samples", "speed")))
    groups = list(dict.fromkeys(_group(seen.data) for seen in rows))
    rows.sort(key=lambda seen: (groups.index(_group(seen.data)), order.index(seen.subject)))
    bars = [_bar(seen, order.index(seen.subject)) for seen in rows]
    marks = [bar.mark for bar in bars if bar.mark is not None]
    words = "tokens/s; dashed: the machine's limit" if marks else "tokens/s, median with interval"
    axis = linear_axis(words, [*(bar.high for bar in bars), *marks])
    title = f"{what[0].upper()}{what[1:]} speed"
    summary = "; ".join(f"{bar.name}, {bar.group}: {bar.words}" for bar in bars)
    return Figure(bar_chart(bars, axis, title, summary), title, f"Tokens per second: {summary}.")


def _group(data: Mapping[str, Any]) -> str:
    return f"{num(data['tokens'])} tokens, batch {num(data['batch'])}"


def _bar(seen: Observation, colour: int) -> Bar:
    data = seen.data
    median, low, high = numbers([data["median"], data["low"], data["high"]])
    low, high = (median if math.isnan(end) else end for end in (low, high))
    words = f"{num(median)} ({num(low)}–{num(high)})"
    fraction = number_of(data.get("fraction"))
    if not fraction or not math.isfinite(fraction):
        return Bar(seen.subject, words, median, low, high, _group(data), colour)
    limit = median / fraction if fraction > SHOWN else None  # a line far outside would leave no room for the bars
    return Bar(seen.subject, f"{words}, {share(fraction)}", median, low, high, _group(data), colour, limit)


def latency(record: Record, case: str) -> Figure | None:
    """Milliseconds a token over the position; flat is what constant state promises."""
    lists = views.by_subject(record, "latency", "speed", case)
    series = []
    for name, data in lists.items():
        lows, highs = (numbers(data.get(key) or data["ms"]) for key in ("low", "high"))
        band = tuple(zip(numbers(data["position"]), lows, highs, strict=True))
        series.append(Series(name, _points(data, "position", "ms"), band))
    if not series:
        return None
    title = f"Latency by position, {case}"
    summary = f"Time for one token by position: {_largest(series)} ms."
    x = _positions(_xs(series))
    return Figure(line_chart(x, linear_axis("ms per token", _ys(series)), series, title, summary), title, summary)


def _positions(xs: Sequence[float]) -> Axis:
    """Positions over more than two decades need a logarithm."""
    wide = min(xs) > 0 and max(xs) / min(xs) > 100
    return log_axis("position", xs) if wide else linear_axis("position", xs)
