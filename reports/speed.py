"""Section Speed: tokens a second against each other, the machine's limits and an earlier run."""

from collections.abc import Iterator, Sequence
from statistics import median
from typing import Any

from reports import plots, views
from reports.document import Block, Blocks, Bullets, Cell, Figure, cell, table
from reports.record import Observation, Record, Subject
from reports.text import MISSING, Rich, Span, code, dim, listed, num, number_of, rich, share, size

SUITE = "speed"
STYLES = {"faster": "pass", "slower": "fail", "invalid": "fail", "equivalent": "pass"}
"""Verdict -> how it is shown; all others as skipped."""


def speed(record: Record) -> Blocks:
    """Everything that was timed; nothing where nothing was."""
    samples, ratios = _seen(record, "samples"), _seen(record, "ratio")
    names = list(dict.fromkeys(seen.case for seen in _seen(record, "latency")))
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


def _seen(record: Record, kind: str) -> list[Observation]:
    return views.evidence(record, kind, SUITE)


Subjects = dict[str, Subject]


def _samples(record: Record, subjects: Subjects) -> Blocks:
    rows = [_sample(seen, subjects.get(seen.subject)) for seen in _seen(record, "samples")]
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
        _of_limit(data),
        num(len(data.get("seconds") or ())),
    ]


def _of_limit(data: dict[str, Any]) -> Cell:
    """Share of the limit with what binds; a dash where there is none."""
    if number_of(data.get("fraction")) is None:
        return dim(MISSING)
    words = f"{share(data['fraction'])} ({data['bound']})"
    return Span(f"{words}: invalid", "fail") if data.get("invalid") else words


def _ratios(record: Record, subjects: Subjects) -> Blocks:
    del subjects
    rows = [_ratio(seen, str(seen.data["versus"])) for seen in _seen(record, "ratio")]
    rows += [_ratio(seen, "itself (control)") for seen in _seen(record, "control")]
    columns = ("Subject", "What", "Tokens", "Batch", "Versus", "Ratio", "Interval", "Verdict")
    return (table(columns, rows, "Speed ratios", "llrrlrrl"),) if rows else ()


def _ratio(seen: Observation, versus: str) -> list[Cell]:
    data = seen.data
    ratio = number_of(data.get("ratio"))
    return [
        code(seen.subject),
        *_where(data),
        code(versus),
        rich(f"{num(ratio)} ×") if ratio is not None else dim(MISSING),
        f"{num(data['low'])}–{num(data['high'])}" if ratio is not None else dim(MISSING),
        _verdict(data),
    ]


def _where(data: dict[str, Any]) -> list[Cell]:
    return [str(data["what"]), num(data["tokens"]), num(data["batch"])]


def _verdict(data: dict[str, Any]) -> Span:
    verdict = str(data["verdict"])
    plain = data.get("without_control")
    without = f" (without the control: {plain})" if plain and plain != verdict else ""
    return Span(verdict + without, STYLES.get(verdict, "skipped"))


def _openings(record: Record, subjects: Subjects) -> Blocks:
    del subjects
    rows = [_opening(record, seen) for seen in _seen(record, "opening")]
    columns = ("Subject", "Open", "First answer", "Memory", "Of children", "While working", "State", "Empty call")
    return (table(columns, rows, "Opening and memory"),) if rows else ()


def _opening(record: Record, seen: Observation) -> list[Cell]:
    data = seen.data
    working = views.value(record, SUITE, seen.case, seen.subject, ("working_memory",))
    return [
        code(seen.subject),
        _unit(data.get("load_seconds"), "s"),
        _unit(data.get("first_seconds"), "s"),
        _bytes(data.get("own")),
        _bytes(data.get("children")),
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
    for seen in _seen(record, "samples"):
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
    for seen in _seen(record, "limits"):
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
    for seen in _seen(record, "history"):
        line = _ratio(seen, "")
        del line[4]
        unit = "share of the limit" if seen.data.get("normalised") else "tokens/s"
        why = str(seen.data.get("because") or (unit if number_of(seen.data.get("ratio")) is not None else ""))
        rows.append([*line, why])
    created = [str(seen.data["created"]) for seen in _seen(record, "history")][:1]
    columns = ("Subject", "What", "Tokens", "Batch", "Now / then", "Interval", "Verdict", "Compared by, or why not")
    caption = f"Against the baseline of {''.join(created)}"
    return (table(columns, rows, caption, "llrrrrll"),) if rows else ()


def terminal(record: Record) -> list[list[Rich]]:
    """The short table of the command line, heading first."""
    ratios = {(s.subject, _cell_of(s.data)): s.data for s in _seen(record, "ratio")}
    rows: list[list[Cell]] = [["", "", "tokens/s", "interval", "of the limit", "ratio", "verdict"]]
    for seen in _seen(record, "samples"):
        data, ratio = seen.data, ratios.get((seen.subject, _cell_of(seen.data)), {})
        span = f"{num(data['low'])}–{num(data['high'])}"
        times = f"{num(ratio['ratio'])}x" if ratio else ""
        of = _of_limit(data)
        rows.append([_words(data), seen.subject, num(data["median"]), span, of, times, str(ratio.get("verdict", ""))])
    return [[cell(value) for value in row] for row in rows]


def _cell_of(data: dict[str, Any]) -> tuple[Any, ...]:
    return data["what"], data["tokens"], data["batch"]


def _words(data: dict[str, Any]) -> str:
    return f"{data['what']} {num(data['tokens'])} x {num(data['batch'])}"


def sentences(record: Record) -> Iterator[str]:
    """What the tables come to: the control, who else was busy, cost by position, what cannot be true or is unknown."""
    yield from _control(record)
    yield from _noise(record)
    yield from _cost(record)
    yield from _unlimited(record)
    for seen in _seen(record, "opening"):
        if number_of(seen.data.get("round_trip_ms")) is not None:
            trip = num(seen.data["round_trip_ms"])
            yield f"{seen.subject} answers from another process: an empty call takes {trip} ms, part of every figure."
    reasons = {str(seen.data["energy"]) for seen in _seen(record, "opening") if seen.data.get("energy")}
    for reason in sorted(reasons):
        yield f"Energy: {reason}."


def _control(record: Record) -> Iterator[str]:
    controls = _seen(record, "control")
    noisy = [seen for seen in controls if seen.data["verdict"] != "equivalent"]
    if not controls:
        return
    who, count = controls[0].subject, len(controls)
    if not noisy:
        yield f"Control: {who}, timed twice in the same rounds, reads equivalent to itself in {count} of {count} cells."
        return
    worst = [f"{_words(s.data)}: {num(s.data['ratio'])}x ({num(s.data['low'])}–{num(s.data['high'])})" for s in noisy]
    yield (
        f"Too noisy: {who}, timed twice in the same rounds, does not read equivalent to itself (within 3%) in "
        f"{len(noisy)} of {count} cells ({listed(worst, 4)}); verdicts there are inconclusive."
    )


def _noise(record: Record) -> Iterator[str]:
    looks = _seen(record, "noise")
    if not looks:
        return
    seconds = sum(plots.numbers(seen.data["seconds"] for seen in looks)) or 1.0
    foreign, stolen = (
        sum(float(seen.data[key]) * float(seen.data["seconds"]) for seen in looks) / seconds
        for key in ("foreign", "stolen")
    )
    names: dict[str, float] = {}
    for seen in looks:
        for name, busy in seen.data["busiest"]:
            names[name] = max(names.get(name, 0.0), float(busy))
    busiest = sorted(names, key=names.__getitem__, reverse=True)
    who = f", the busiest: {listed(busiest, 4)}" if busiest else ", none of them visible from here"
    if foreign >= 0.1:
        yield f"Others kept {num(foreign, 2)} threads busy on average while cells were timed{who}."
    else:
        yield "Nobody else was busy while cells were timed."
    if stolen >= 0.1:
        yield f"The hypervisor gave {num(stolen, 2)} threads' worth of time to other machines."


def _cost(record: Record) -> Iterator[str]:
    for seen in _seen(record, "latency"):
        data = seen.data
        if number_of(data.get("growth")) is not None and data["position"]:
            growth, low, high = (f"{100 * float(data[key]):+.1f}%" for key in ("growth", "growth_low", "growth_high"))
            course = "constant, within 3%" if data["cost"] == "constant" else str(data["cost"])
            first, last = num(data["position"][0]), num(data["position"][-1])
            where = f"{seen.subject}: cost of a token from position {first} to {last}"
            yield f"{where}: {growth} ({low} to {high}): {course}."


def _unlimited(record: Record) -> Iterator[str]:
    """Figures that cannot be true, and why others have no limit."""
    reasons: dict[str, list[str]] = {}
    for seen in _seen(record, "samples"):
        if seen.data.get("invalid"):
            of = f"{share(seen.data['fraction'])} of what the machine can do"
            yield f"Invalid: {seen.subject}, {_words(seen.data)}: {of}, and no skipped bytes explain it."
        if seen.data.get("no_limit"):
            reasons.setdefault(str(seen.data["no_limit"]), []).append(f"{seen.subject} ({seen.data['what']})")
    for reason, names in reasons.items():
        yield f"No limit for {listed(list(dict.fromkeys(names)))}: {reason}."
