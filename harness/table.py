"""What a run prints on the terminal: one row a subject, one column a suite, one line of verdict."""

from collections import Counter
from collections.abc import Iterator

from reports.record import Outcome, Record, Verdict

MOST = 12
"""Failures that are printed; the report has all."""

MARKS = {Outcome.ERROR: "ERROR", Outcome.FAIL: "FAIL", Outcome.UNSUPPORTED: "unsup.", Outcome.SKIPPED: "skipped"}
"""How a cell says the worst that is in it."""

WORDS = {0: "PASSED", 1: "FAILED", 4: "BROKEN", 5: "NOTHING WAS JUDGED"}


def matrix(record: Record) -> str:
    """Subject x suite: how many criteria passed of how many, and the worst outcome."""
    suites = [suite["name"] for suite in record.suites]
    subjects = [subject.id for subject in record.subjects if subject.role == "candidate"]
    rows = [["", *suites]]
    rows += [[subject, *(_cell(record, subject, suite) for suite in suites)] for subject in subjects]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _cell(record: Record, subject: str, suite: str) -> str:
    own = [v.outcome for v in record.verdicts if v.subject == subject and v.suite == suite]
    if suite == "speed" and not own:
        return _speed(record, subject)
    if not own:
        return "-"
    counts = Counter(own)
    judged = len(own) - counts[Outcome.UNSUPPORTED] - counts[Outcome.SKIPPED]
    worst = next((mark for outcome, mark in MARKS.items() if counts[outcome]), "")
    if worst in ("unsup.", "skipped"):
        rest = len(own) - judged
        return f"{counts[Outcome.PASS]}/{judged}, {rest} {worst}" if judged else worst
    return f"{counts[Outcome.PASS]}/{judged} {worst}".strip()


def _speed(record: Record, subject: str) -> str:
    """Decode speed, where it was timed."""
    found = [
        m for m in record.measurements if m.suite == "speed" and m.subject == subject and m.name.startswith("decode")
    ]
    return f"{found[0].value:.0f} tok/s" if found and found[0].value is not None else "-"


def failures(record: Record) -> Iterator[str]:
    """The worst failures, one line each, and who could not be timed."""
    bad = [v for v in record.verdicts if v.outcome in (Outcome.ERROR, Outcome.FAIL)]
    seen: set[tuple[str, ...]] = set()
    lines = []
    for verdict in sorted(bad, key=lambda v: v.outcome is not Outcome.ERROR):
        key = _key(verdict)
        if key not in seen:  # one line a criterion: the report has every case
            seen.add(key)
            lines.append(_line(verdict, sum(_key(other) == key for other in bad)))
    yield from lines[:MOST]
    if len(lines) > MOST:
        yield f"... and {len(lines) - MOST} more; the report has all"
    for verdict in record.verdicts:
        if verdict.suite == "speed" and verdict.outcome is Outcome.UNSUPPORTED:  # who asks for speed wants to know why
            yield f"unsup. {verdict.subject}: speed: {verdict.detail}"


def diagnoses(record: Record) -> Iterator[str]:
    """What was found out about those that failed."""
    for seen in record.observations:
        if seen.kind == "diagnosis":
            yield f"DIAGNOSIS {seen.subject}: {' '.join(filter(None, seen.data['sentences']))}"


def _key(verdict: Verdict) -> tuple[str, ...]:
    """What is told once: a failed criterion of a subject, an error of the same words."""
    detail = verdict.detail if verdict.outcome is Outcome.ERROR else ""
    return verdict.subject, verdict.criterion, verdict.outcome.value, detail


def _line(verdict: Verdict, same: int) -> str:
    others = f" (and {same - 1} more case{'s' * (same > 2)})" if same > 1 else ""
    what = f"{MARKS[verdict.outcome]} {verdict.subject}: {verdict.criterion}, case {verdict.case}"
    return f"{what}: {verdict.detail}{others}"


def verdict_line(record: Record) -> str:
    """The last line: the verdict and the five outcomes."""
    counts = ", ".join(f"{number} {outcome}" for outcome, number in record.counts().items())
    name = record.profile.get("name")
    word = WORDS[record.exit_code()]
    if record.status in ("running", "interrupted"):
        word = f"UNFINISHED ({record.status}), so far {word}"
    return f"{word}: {record.model.get('name')} under profile {name}: {counts}{_why_nothing(record)}"


def _mostly(record: Record) -> str:
    """The most frequent reason; an ability that is missing only where nothing else is."""
    reasons = Counter(v.detail for v in record.verdicts if v.detail)
    most = max(reasons, key=lambda words: (not words.startswith("the suite needs"), reasons[words]), default="")
    return f", mostly because: {most}" if most else ""


def _why_nothing(record: Record) -> str:
    """Why nothing was judged, if so."""
    if record.exit_code() != 5:
        return ""
    if record.verdicts:
        return f"; what was asked is not supported, or was skipped{_mostly(record)}"
    return "; no criterion of this profile looks at these suites"
