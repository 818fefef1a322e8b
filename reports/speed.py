"""Section Speed: tokens a second against each other, the machine's limits and an earlier run."""

from collections.abc import Sequence
from statistics import median
from typing import Any

from reports import plots, views
from reports.document import Block, Blocks, Bullets, Cell, Figure, table
from reports.record import Observation, Record, Subject
from reports.text import MISSING, Span, code, dim, fixed, num, number_of, rich, size
from reports.timings import SUITE, of_limit, sentences, timed, verdict_words

STYLES = {"faster": "pass", "slower": "fail", "invalid": "fail", "equivalent": "pass"}
"""Verdict -> how it is shown; all others as skipped."""


def speed(record: Record) -> Blocks:
    """Everything that was timed; nothing where nothing was."""
    samples, ratios = timed(record, "samples"), timed(record, "ratio")
    names = list(dict.fromkeys(seen.case for seen in timed(record, "latency")))
    if not (samples or ratios or names):
        return ()
    said = tuple(rich(sentence) for sentence in sentences(record))
    blocks: list[Block] = [Bullets(said)] if said else []
    kinds = list(dict.fromkeys(str(seen.data["what"]) for seen in samples))
    figures = [plots.throughput(record, kind) for kind in kinds] + [plots.latency(record, name) for name in names]
    blocks += [figure for figure in figures if isinstance(figure, Figure)]
    subjects = {subject.id: subject for subject in record.subjects}
    for build in (_samples, _ratios, _openings, _latencies, _limits, _history):
        blocks += build(record, subjects)
    return tuple(blocks)


Subjects = dict[str, Subject]


def _samples(record: Record, subjects: Subjects) -> Blocks:
    rows = [_sample(seen, subjects.get(seen.subject)) for seen in timed(record, "samples")]
    columns = (
        "Subject",
        "What",
        "Device",
        "Dtype",
        "Tokens",
        "Batch",
        "tokens/s",
        "Interval",
        "Of the limit",
        "Samples",
    )
    return (table(columns, rows, "Speed", "llllrrrrrr"),) if rows else ()


def _sample(seen: Observation, subject: Subject | None) -> list[Cell]:
    data, info = seen.data, subject.info if subject else {}
    return [
        code(seen.subject),
        str(data["what"]),
        str(info.get("device_name") or info.get("device") or MISSING),
        str(info.get("dtype") or "").upper() or MISSING,
        num(data["tokens"]),
        num(data["batch"]),
        num(data["median"]),
        f"{num(data['low'])}–{num(data['high'])}",
        of_limit(data),
        num(len(data.get("seconds") or ())),
    ]


def _ratios(record: Record, subjects: Subjects) -> Blocks:
    del subjects
    rows = [_ratio(seen, str(seen.data["versus"])) for seen in timed(record, "ratio")]
    rows += [_ratio(seen, "itself (control)") for seen in timed(record, "control")]
    columns = ("Subject", "What", "Tokens", "Batch", "Versus", "Ratio", "Interval", "Verdict")
    return (table(columns, rows, "Speed ratios", "llrrlrrl"),) if rows else ()


def _ratio(seen: Observation, versus: str) -> list[Cell]:
    data = seen.data
    ratio = number_of(data.get("ratio"))
    return [
        code(seen.subject),
        *_where(data),
        code(versus),
        rich(f"{fixed(ratio, 3)} ×") if ratio is not None else dim(MISSING),
        f"{fixed(data['low'], 3)}–{fixed(data['high'], 3)}" if ratio is not None else dim(MISSING),
        _verdict(seen),
    ]


def _where(data: dict[str, Any]) -> list[Cell]:
    return [str(data["what"]), num(data["tokens"]), num(data["batch"])]


def _verdict(seen: Observation) -> Span:
    verdict = str(seen.data["verdict"])
    if seen.kind == "control" and verdict != "equivalent":
        return Span(f"too noisy ({verdict})", "skipped")
    return Span(verdict_words(seen.data), STYLES.get(verdict, "skipped"))


def _openings(record: Record, subjects: Subjects) -> Blocks:
    del subjects
    rows = [_opening(record, seen) for seen in timed(record, "opening")]
    columns = (
        *("Subject", "Open", "First answer", "Memory", "Of children", "On the GPU", "While working", "State"),
        "Empty call",
    )
    return (table(columns, rows, "Opening and memory"),) if rows else ()


def _opening(record: Record, seen: Observation) -> list[Cell]:
    data = seen.data
    names = ("working_memory_of_device", "working_memory")
    working = views.value(record, SUITE, seen.case, seen.subject, names)
    return [
        code(seen.subject),
        _unit(data.get("load_seconds"), "s"),
        _unit(data.get("first_seconds"), "s"),
        _bytes(data.get("own")),
        _bytes(data.get("children")),
        _bytes(data.get("device")),
        _bytes(working),
        dim(MISSING) if data.get("state_bytes") is None else size(data["state_bytes"]),
        _unit(data.get("round_trip_ms"), "ms"),
    ]


def _unit(value: Any, unit: str) -> Cell:
    return dim(MISSING) if number_of(value) is None else f"{num(value)} {unit}"


def _bytes(value: Any) -> Cell:
    return dim(MISSING) if number_of(value) is None else f"+{size(value)}"[number_of(value) == 0 :]


def _latencies(record: Record, subjects: Subjects) -> Blocks:
    """Percentiles of single tokens of generation."""
    del subjects
    rows: list[list[Cell]] = []
    for seen in timed(record, "samples"):
        told, joules = seen.data.get("token_ms"), seen.data.get("joules_per_token")
        if told or joules is not None:
            each = [num((told or {}).get(name)) for name in ("p50", "p90", "p99")]
            count = num(seen.data.get("token_count"))
            rows.append([code(seen.subject), *_where(seen.data), *each, count, _unit(joules, "J")])
    columns = ("Subject", "What", "Tokens", "Batch", "p50 (ms)", "p90 (ms)", "p99 (ms)", "Of tokens", "Energy a token")
    return (table(columns, rows, "Time of single tokens", "llrrrrrrr"),) if rows else ()


def _limits(record: Record, subjects: Subjects) -> Blocks:
    """What the machine did in the same rounds."""
    del subjects
    rows: list[list[Cell]] = []
    for seen in timed(record, "limits"):
        gemm = [f"{name.upper()} {_range(rates, 1e9)}" for name, rates in seen.data["gemm"].items()]
        read, copy = (_range(seen.data[name], 1e9) for name in ("read", "copy"))
        rows.append([*_where(seen.data), str(seen.data["device"]), read, copy, ", ".join(gemm)])
    columns = ("While timing", "Tokens", "Batch", "Device", "Read (GB/s)", "Copy (GB/s)", "Matrix product (GFLOP/s)")
    return (table(columns, rows, "The machine's limits, median and range of the rounds", "lrrlrrl"),) if rows else ()


def _range(rates: Sequence[float], unit: float) -> str:
    values = [rate / unit for rate in plots.numbers(rates)]
    return f"{num(median(values))} ({num(min(values))}–{num(max(values))})" if values else MISSING


def _history(record: Record, subjects: Subjects) -> Blocks:
    """Against an earlier run."""
    del subjects
    rows: list[list[Cell]] = []
    for seen in timed(record, "history"):
        line = _ratio(seen, "")
        del line[4]
        unit = "share of the limit" if seen.data.get("normalised") else "tokens/s"
        why = str(seen.data.get("because") or (unit if number_of(seen.data.get("ratio")) is not None else ""))
        rows.append([*line, why])
    created = [str(seen.data["created"]) for seen in timed(record, "history")][:1]
    columns = ("Subject", "What", "Tokens", "Batch", "Now / then", "Interval", "Verdict", "Compared by, or why not")
    caption = f"Against the baseline of {''.join(created)}"
    return (table(columns, rows, caption, "llrrrrll"),) if rows else ()
