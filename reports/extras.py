"""Sections beyond the first nine: distribution, stepwise drift, consistency, state, use. Absent without data."""

from collections.abc import Callable
from functools import partial
from typing import Any

from reports import plots, views
from reports.document import Block, Blocks, Cell, Code, Figure, Fold, per_case, say, table
from reports.record import Observation, Record
from reports.text import MISSING, Span, code, listed, num, rich, share, size
from reports.trend import trend


def _cases(record: Record, kind: str, suite: str) -> list[str]:
    return list(dict.fromkeys(seen.case for seen in views.evidence(record, kind, suite)))


def _drawn(*figures: Figure | None) -> Blocks:
    return tuple(figure for figure in figures if figure)


def logit_error(record: Record) -> Blocks:
    """Where in the ranking the logit error sits; closes the section on statistics."""
    names = _cases(record, "error_by_rank", "logits")
    return _drawn(plots.error_by_rank(record, names[0])) if names else ()


def distribution(record: Record) -> Blocks:
    """How far the whole next-token distribution is off."""
    names = _cases(record, "ladder", "distribution")
    return per_case("distribution", names, partial(_distribution, record)) if names else ()


def _distribution(record: Record, case: str) -> Blocks:
    lists = views.by_subject(record, "ladder", "distribution", case)
    rows: list[list[Cell]] = []
    for title, key in (("KL(ref‖x)", "kl"), ("KL(x‖ref)", "kl_reverse"), ("JS", "js")):
        parts = {name: data.get(key) or {} for name, data in lists.items()}
        rungs = [rung for rung in plots.RUNGS if any(rung in part for part in parts.values())]
        rows += [[f"{title} {rung} (nat)", *(num(part.get(rung)) for part in parts.values())] for rung in rungs]
    rows += [[title, *(show(data) for data in lists.values())] for title, show in _LADDER_ROWS]
    columns: list[Cell] = ["", *(code(name) for name in lists)]
    return (*_drawn(plots.kl_ladder(record, case)), table(columns, rows, f"Distribution over {case}"))


_LADDER_ROWS: tuple[tuple[str, Callable[[dict[str, Any]], str]], ...] = (
    ("Same most likely token", lambda data: share(data.get("same_top"))),
    ("Perplexity", lambda data: num(data.get("ppl"), 6)),
    ("Perplexity of the reference", lambda data: num(data.get("ppl_ref"), 6)),
    ("Positions", lambda data: num(data.get("positions"))),
)


def stepwise(record: Record) -> Blocks:
    """The same forced tokens, one by one: what happens to logits and state."""
    names = _cases(record, "series", "stepwise")
    return per_case("stepwise", names, partial(_stepwise, record)) if names else ()


def _stepwise(record: Record, case: str) -> Blocks:
    lists = views.by_subject(record, "series", "stepwise", case)
    rows: list[list[Cell]] = [[code(name), *_ends(data)] for name, data in lists.items()]
    return (*plots.errors_by_step(record, case), table(_DRIFT_COLUMNS, rows, f"Drift over {case}", "lrrrrrrl"))


_DRIFT_COLUMNS = (
    *("Subject", "Steps", "RMS at start", "RMS at end", "Largest RMS", "Largest |error|", "State error at end"),
    "Course",
)


def _ends(data: dict[str, Any]) -> list[str]:
    rms, state = plots.numbers(data["rms"]), plots.numbers(data.get("state") or ())
    course = trend(plots.numbers(data["step"]), rms)
    return [
        num(len(rms)),
        num(rms[0]) if rms else MISSING,
        num(rms[-1]) if rms else MISSING,
        num(_worst(rms)),
        num(_worst(plots.numbers(data.get("max") or ()))),
        num(state[-1]) if state else MISSING,
        course.word if course else MISSING,
    ]


def _worst(values: list[float]) -> float | None:
    """The largest; NaN if any is, for `max` would hide it."""
    return next((value for value in values if value != value), max(values, default=None))  # noqa: PLR0124 - NaN


def consistency(record: Record) -> Blocks:
    """One shot against chunks, single tokens, batch rows and repeats."""
    names = _cases(record, "matrix", "consistency")
    return per_case("consistency", names, partial(_consistency, record)) if names else ()


def _consistency(record: Record, case: str) -> Blocks:
    rows: list[list[Cell]] = []
    for name, data in views.by_subject(record, "matrix", "consistency", case).items():
        for row in data["rows"]:
            same = Span("yes", "pass") if row["bit_equal"] else Span("no")
            rows.append([code(name), str(row["check"]), num(row["max_abs"]), num(row["state"]), same])
    columns = ["Subject", "Compared with one shot", "Largest |error| (logit)", "State error", "Same bits"]
    return (table(columns, rows, f"Consistency over {case}", "llrrr"),)


def state(record: Record) -> Blocks:
    """Size and growth of the recurrent state."""
    names = _cases(record, "state", "state")
    return per_case("state", names, partial(_state, record)) if names else ()


def _state(record: Record, case: str) -> Blocks:
    rows: list[list[Cell]] = [
        [code(name), size(data["bytes"]), _constant(data), _shapes(data), _growth(data)]
        for name, data in views.by_subject(record, "state", "state", case).items()
    ]
    columns = ["Subject", "Size", "Constant", "Parts", "RMS, first and last position"]
    return (table(columns, rows, f"State over {case}", "lrlll"),)


def _constant(data: dict[str, Any]) -> Span:
    sizes = list(dict.fromkeys(data.get("bytes_at") or ()))
    if len(sizes) < 2:
        return Span("yes", "pass") if sizes else Span(MISSING)
    return Span(f"no: {size(sizes[0])} to {size(sizes[-1])}", "fail")


def _shapes(data: dict[str, Any]) -> str:
    return ", ".join(f"{name} {'×'.join(map(str, shape))}" for name, shape in (data.get("shapes") or {}).items())


def _growth(data: dict[str, Any]) -> str:
    rms, at = data.get("rms") or (), data.get("positions") or ()
    if not rms or not at:
        return MISSING
    return f"{num(rms[0])} at {num(at[0])}, {num(rms[-1])} at {num(at[-1])}"


def use(record: Record) -> Blocks:
    """What the subjects write and predict on a trained checkpoint; shown, not judged."""
    found = [seen for seen in record.observations if seen.kind == "use"]
    worked = [seen for seen in found if "error" not in seen.data]
    if not found:
        return ()
    model = code(found[0].data["model"])
    blocks: list[Block] = [
        say("On ", model, ", a trained checkpoint: shown, not judged; ", code(f"validate --model {model.text}"), " is.")
    ]
    rows = [_used(seen) for seen in found]
    blocks.append(table(_USE_COLUMNS, rows, "In use", "lrrr"))
    written = dict.fromkeys(str(seen.data["prompt"]) + str(seen.data["written"]) for seen in worked)
    for text in written:
        names = [seen.subject for seen in worked if seen.data["prompt"] + seen.data["written"] == text]
        blocks += [say("Written greedily by ", listed(names), ":"), Code(text, "python")]
    return tuple(blocks)


_USE_COLUMNS = ("Subject", "Bits per byte of a text", "Mean KL(ref‖x) (nat)", "Tokens written as the reference does")


def _used(seen: Observation) -> list[Cell]:
    data = seen.data
    if "error" in data:
        return [code(seen.subject), Span(str(data["error"]), "skipped"), None, None]
    return [code(seen.subject), num(data["bits_per_byte"], 5), num(data["kl"]), f"{data['same']} of {data['tokens']}"]


_HAVE_SECTIONS = ("logits", "distribution", "stepwise", "consistency", "state", "speed", "generation", "tokenization")


def measurements(record: Record) -> Blocks:
    """Every number that no table above shows; open for suites without a section, folded for the others."""
    frame = views.measurement_frame(record)
    names = [name for name in views.suites(record) if name != "logits" and name in set(frame["suite"])]
    open_ones = [_numbers(record, name) for name in names if name not in _HAVE_SECTIONS]
    folded = [Fold(rich("Suite ", code(n)), (_numbers(record, n),)) for n in names if n in _HAVE_SECTIONS]
    return (*open_ones, *folded)


def _numbers(record: Record, suite: str) -> Block:
    """Case and measure against subjects, for one suite."""
    mine = [m for m in record.measurements if m.suite == suite]
    found = {(m.case, m.name, m.subject): m for m in mine}
    subjects = list(dict.fromkeys(m.subject for m in mine))
    rows: list[list[Cell]] = []
    for case, name in dict.fromkeys((m.case, m.name) for m in mine):
        cells = [found.get((case, name, subject)) for subject in subjects]
        unit = next((m.unit for m in cells if m and m.unit), "")
        title = name.replace("_", " ") + (f" ({unit})" if unit else "")
        rows.append([case, title, *(num(m.value, 4) if m else MISSING for m in cells)])
    columns: list[Cell] = ["Case", "Measure", *(code(subject) for subject in subjects)]
    return table(columns, rows, f"Numbers of suite {suite}", "ll" + "r" * len(subjects))


def note(text: str) -> Blocks:
    """One line in place of a section that could not be drawn."""
    return (say(Span("Not drawn: ", "strong"), text),)
