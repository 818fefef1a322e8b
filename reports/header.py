"""What stands above the numbered sections: the verdict, the matrix of suites, the failures."""

from collections.abc import Sequence
from itertools import groupby

from reports import power, views
from reports.document import Block, Card, Cards, Cell, Table, say, table
from reports.record import Outcome, Record, Verdict
from reports.text import MISSING, Rich, Span, code, dim, listed, num, plural, rich, times

ADVICE = {
    "tokenization": (
        "Find the first id that differs in section Tokenization; then check longest match, leading spaces and bytes "
        "that are no UTF-8."
    ),
    "logits": (
        "Run the same subject in f32 first: if that fails too, the mathematics differs and not the rounding. Then "
        "compare inner tensors layer by layer."
    ),
    "logits-f32": (
        "This is no matter of the number format: the mathematics differs. Compare inner tensors layer by layer, from "
        "the first token on."
    ),
    "distribution": (
        "Look at logits first; if they pass, the difference comes from few positions: the percentiles in section "
        "Distribution show how few."
    ),
    "stepwise": (
        "An error that is there at step 0 lies in one token's arithmetic; one that grows lies in the state: its "
        "update, its layout, its number format."
    ),
    "consistency": (
        "One shot, chunks and single tokens disagree: check what is carried across the edge of a chunk (both token "
        "shifts and the WKV state) and what a batch row reads."
    ),
    "generation": (
        "Look at the margin where the text parts, in section Autoregressive Generation: above what honest error "
        "explains, it is the logits that are wrong."
    ),
    "state": "Check that the state is a copy, complete (both shifts and the WKV state of every layer) and kept in f32.",
    "speed": "Measure again on a quiet machine; the interval in section Speed says how sure the number is.",
    "compare": "Check that both files are of the same checkpoint and tokens; then see which measure is off first.",
}
"""Per suite, what to do about a failure."""

_WORDS = {
    0: ("pass", "Passed"),
    1: ("fail", "Failed"),
    4: ("error", "Broken"),
    5: ("skipped", "Nothing judged"),
}


def outcome(record: Record) -> str:
    """The outcome of the run as a whole, for its colour."""
    return _WORDS[record.exit_code()][0]


def title(record: Record) -> Rich:
    """Who is compared with whom."""
    version = record.model.get("version")
    what = f"RWKV-{version} forward pass" if version else "RWKV forward pass"
    first = views.reference(record)
    others = [subject.id for subject in views.with_role(record, "candidate")]
    against = f" against {first.id}" if first else ""
    return rich(f"{what}: {listed(others, 3)}{against}" if others else what)


def verdict(record: Record) -> str:
    """The one line that everything comes to."""
    counts = record.counts()
    word = _WORDS[record.exit_code()][1]
    judged = counts["pass"] + counts["fail"]
    if record.exit_code() == 5:
        text = f"{word}: no criterion was applied to a number, which is not a pass"
    elif record.exit_code() == 4:
        text = f"{word}: {counts['pass']} of {plural(judged, 'verdict')} passed"
    elif counts["fail"]:
        text = f"{word}: {counts['fail']} of {plural(judged, 'verdict')}"
    else:
        text = f"{word}: {counts['pass']} of {plural(judged, 'verdict')}"
    rest = [f"{counts[name]} {words}" for name, words in _REST.items() if counts[name]]
    dead = sum(bool(subject.error) for subject in record.subjects)
    rest += [f"{plural(dead, 'subject')} dead"] if dead else []
    return ", ".join([text, *rest]) + _unfinished(record) + "."


_REST = {"error": "broke", "unsupported": "unsupported", "skipped": "skipped"}


def _unfinished(record: Record) -> str:
    if record.status == "complete":
        return ""
    return f"; the run is {record.status}, and this is what was measured until then"


def facts(record: Record) -> tuple[tuple[str, Rich], ...]:
    """Labelled one-liners under the verdict."""
    profile = [str(record.profile[key]) for key in ("name", "version") if record.profile.get(key) not in (None, "")]
    rows = [
        ("Model", rich(code(record.model.get("name") or MISSING))),
        ("Profile", rich(" ".join(profile) or MISSING)),
        ("Run", rich(code(record.id))),
        ("Started", rich(record.created)),
        ("Finished", rich(record.finished or MISSING)),
        ("This gate", rich(power.line(record))),
    ]
    return tuple(row for row in rows if row[1] != rich(""))


def opening(record: Record) -> tuple[Block, ...]:
    """Matrix, failures, broken subjects, notes."""
    blocks: list[Block] = []
    if record.verdicts:
        blocks.append(matrix(record))
    failures = cards(record)
    if failures.cards:
        blocks.append(failures)
    blocks += [say(note) for note in record.notes]
    return tuple(blocks)


def matrix(record: Record) -> Table:
    """Subject x suite: how many criteria passed of how many, or what else happened."""
    frame = views.matrix_frame(record)
    names = views.suites(record)
    seen: tuple[views.Row, ...] = (*record.measurements, *record.observations)
    measured = {(row.subject, row.suite) for row in seen}
    rows: list[list[Cell]] = []
    for subject in map(str, frame.index):
        row = frame.loc[subject].to_dict()
        counts = [{name: int(row[suite, name]) for name in views.SEVERITY} for suite in names]
        cells = [_matrix_cell(c, (subject, suite) in measured) for c, suite in zip(counts, names, strict=True)]
        rows.append([code(subject), *cells])
    return table(["Subject", *names], rows, "Criteria passed, by subject and suite")


def _matrix_cell(counts: dict[str, int], measured: bool) -> Rich:
    judged = counts["pass"] + counts["fail"]
    if not any(counts.values()):
        return rich(dim("not judged" if measured else MISSING))
    spans: list[Span] = []
    if judged:
        spans.append(Span(f"{counts['pass']}/{judged}", "fail" if counts["fail"] else "pass"))
    for name in ("error", "unsupported", "skipped"):
        if counts[name]:
            spans.append(Span(f"{' ' if spans else ''}{counts[name]} {name}", name))
    return tuple(spans)


def cards(record: Record) -> Cards:
    """Broken subjects, then failures, the same criterion of the same subject in one card, worst first."""
    broken = [
        Card("error", rich(code(subject.id), " broke"), (("What happened", rich(subject.error)),))
        for subject in record.subjects
        if subject.error
    ]
    bad = [v for v in views.worst_first(record.verdicts) if v.outcome in (Outcome.ERROR, Outcome.FAIL)]
    order = list(dict.fromkeys((v.subject, v.criterion) for v in bad))
    bad.sort(key=lambda v: order.index((v.subject, v.criterion)))
    grouped = (list(group) for _, group in groupby(bad, key=lambda v: (v.subject, v.criterion)))
    exact = {s.id for s in record.subjects if s.info.get("dtype") in ("f32", "f64")}
    return Cards((*broken, *(_card(group, exact) for group in grouped)))


def _card(group: Sequence[Verdict], exact: set[str]) -> Card:
    """One failed criterion: the worst case in full, the others by name."""
    worst = group[0]
    ratio = views.excess(worst)
    beyond = f", {times(ratio)} what is allowed" if 1 < ratio < float("inf") else ""
    lines = [("Case", rich(worst.case))]
    if len(group) > 1:
        lines[0] = ("Case", rich(f"{worst.case}; also {listed([v.case for v in group[1:]])}"))
    if worst.value is not None or worst.limit:
        lines.append(("Measured", rich(f"{num(worst.value)}{beyond}")))
        lines.append(("Allowed", rich(worst.limit or MISSING)))
    said = {"Why": worst.why, "What happened": worst.detail, "What to do": _advice(worst, exact)}
    lines += [(name, rich(words)) for name, words in said.items() if words]
    heading = rich(code(worst.criterion), " of ", code(worst.subject))
    return Card(worst.outcome.value, heading, tuple(lines))


def _advice(verdict: Verdict, exact: set[str]) -> str:
    """What to do about a failure; `exact` are the subjects whose number format is no excuse."""
    if verdict.suite == "logits" and verdict.subject in exact:
        return ADVICE["logits-f32"]
    return ADVICE.get(verdict.suite, "")
