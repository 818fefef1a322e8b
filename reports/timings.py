"""What was timed, in words: the table of the terminal, and sentences on control, noise, cost, limits and the past."""

from collections.abc import Iterator
from typing import Any

from reports import plots, views
from reports.document import Cell, cell
from reports.record import Observation, Record
from reports.text import MISSING, Rich, Span, dim, fixed, listed, num, number_of, share

SUITE = "speed"


def timed(record: Record, kind: str) -> list[Observation]:
    """The observations of a kind in suite speed."""
    return views.evidence(record, kind, SUITE)


def of_limit(data: dict[str, Any]) -> Cell:
    """Share of the limit with what binds; a dash where there is none."""
    if number_of(data.get("fraction")) is None:
        return dim(MISSING)
    words = f"{share(data['fraction'])} ({data['bound']})"
    return Span(f"{words}: invalid", "fail") if data.get("invalid") else words


def verdict_words(data: dict[str, Any]) -> str:
    """A verdict, with what it would be if the control had held."""
    verdict, plain = str(data["verdict"]), data.get("without_control")
    return f"{verdict} (without the control: {plain})" if plain and plain != verdict else verdict


def _cell_of(data: dict[str, Any]) -> tuple[Any, ...]:
    return data["what"], data["tokens"], data["batch"]


def cell_words(data: dict[str, Any]) -> str:
    """A cell: "decode 16 x 1" is 16 tokens of one row."""
    return f"{data['what']} {num(data['tokens'])} x {num(data['batch'])}"


def span_words(data: dict[str, Any]) -> str:
    """A ratio with its interval."""
    ratio, low, high = (fixed(data[key], 3) for key in ("ratio", "low", "high"))
    return f"{ratio}x ({low}–{high})"


def terminal(record: Record) -> list[list[Rich]]:
    """The short table of the command line, heading first."""
    ratios = {(s.subject, _cell_of(s.data)): s.data for s in timed(record, "ratio")}
    rows: list[list[Cell]] = [["", "", "tokens/s", "interval", "of the limit", "ratio", "verdict"]]
    first = next((seen.subject for seen in timed(record, "samples")), "")
    for seen in timed(record, "samples"):
        data, ratio = seen.data, ratios.get((seen.subject, _cell_of(seen.data)), {})
        span = f"{num(data['low'])}–{num(data['high'])}"
        times = f"{fixed(ratio['ratio'], 3)}x" if ratio else ""
        times += (
            f" of {ratio['versus']}" if ratio and ratio.get("versus", first) != first else ""
        )  # the first broke, or takes no batches
        of = of_limit(data)
        said = verdict_words(ratio) if ratio else ""
        rows.append([cell_words(data), seen.subject, num(data["median"]), span, of, times, said])
    return [[cell(value) for value in row] for row in rows]


def sentences(record: Record) -> Iterator[str]:
    """What the tables come to: the control, who else was busy, cost by position, what cannot be true or is unknown."""
    yield from _control(record)
    yield from _noise(record)
    yield from _cost(record)
    yield from _unlimited(record)
    yield from _past(record)
    for seen in timed(record, "opening"):
        if number_of(seen.data.get("round_trip_ms")) is not None:
            trip = num(seen.data["round_trip_ms"])
            yield f"{seen.subject} answers from another process: an empty call takes {trip} ms, part of every figure."
    many = any((number_of(seen.data.get("batch")) or 1) > 1 for seen in timed(record, "samples"))
    for seen in timed(record, "opening") if many else ():
        if seen.data.get("single_rows"):
            yield f"{seen.subject} takes the rows of a batch one after another, if at all: only single rows are timed."
    reasons = {str(seen.data["energy"]) for seen in timed(record, "opening") if seen.data.get("energy")}
    for reason in sorted(reasons):
        yield f"Energy: {reason}."


def _control(record: Record) -> Iterator[str]:
    """One sentence; one more for whoever stood in where the first subject had broken, or takes no batches."""
    for who in dict.fromkeys(seen.subject for seen in timed(record, "control")):
        yield _controlled(who, [seen for seen in timed(record, "control") if seen.subject == who])


def _controlled(who: str, controls: list[Observation]) -> str:
    noisy, count = [seen for seen in controls if seen.data["verdict"] != "equivalent"], len(controls)
    if not noisy:
        return (
            f"Control: {who}, timed twice in the same rounds, reads equivalent to itself in {count} of {count} cells."
        )
    worst = [f"{cell_words(data)}: {span_words(data)}" for data in (seen.data for seen in noisy)]
    return (
        f"Too noisy: {who}, timed twice in the same rounds, does not read equivalent to itself (within 3%) in "
        f"{len(noisy)} of {count} cells ({listed(worst, 4)}); verdicts there are inconclusive."
    )


def _noise(record: Record) -> Iterator[str]:
    looks = timed(record, "noise")
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
    for seen in timed(record, "latency"):
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
    for seen in timed(record, "samples"):
        if seen.data.get("invalid"):
            of = f"{share(seen.data['fraction'])} of what the machine can do"
            yield f"Invalid: {seen.subject}, {cell_words(seen.data)}: {of}, and nothing that it skips explains it."
        if seen.data.get("no_limit"):
            reasons.setdefault(str(seen.data["no_limit"]), []).append(f"{seen.subject} ({seen.data['what']})")
    for reason, names in reasons.items():
        yield f"No limit for {listed(list(dict.fromkeys(names)))}: {reason}."


def _past(record: Record) -> Iterator[str]:
    """What became of every cell since the baseline; the reasons why some cannot be compared once each."""
    rows = timed(record, "history")
    reasons: dict[str, int] = {}
    for seen in rows:
        if number_of(seen.data.get("ratio")) is None:
            reasons[str(seen.data["because"])] = reasons.get(str(seen.data["because"]), 0) + 1
        else:
            what = f"{seen.subject}, {cell_words(seen.data)}"
            yield f"Since the baseline: {what}: {span_words(seen.data)}, {seen.data['verdict']}."
    for reason, count in reasons.items():
        yield f"Incomparable with the baseline, {count} of {len(rows)} cells: {reason}."
