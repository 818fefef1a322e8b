"""Two saved things -> a Record with numbers and verdicts: dumps of other programs, or records of this one. No torch."""

import math
import textwrap
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

from backends.dumps import Dump
from backends.errors import InputError, unknown
from harness import baseline, facts, judge
from harness.agreement import Findings, agree
from harness.dumps import read
from harness.kit import is_kit
from reports.record import Outcome, Record, Subject

WIDTH = 100
"""Columns of the terminal table."""

QUESTIONS = {
    "kit": "Does a port compute what the kit expects, as nearly as honest arithmetic does?",
    "compare": "Do two programs give the same outputs for the same tokens?",
    "baseline": "Is this run as good as an earlier one?",
    "baseline-numbers": "Are the numbers of a suite that nothing judged still numbers?",
    "baseline-logits": "Are the leading logits of this run those of an earlier one?",
}


def profiles() -> list[str]:
    """Names of the profiles that can judge a comparison."""
    names = (item.name for item in (files("harness") / "comparison").iterdir())
    return sorted(name.removesuffix(".toml") for name in names if name.endswith(".toml"))


def load_profile(name: str) -> judge.Profile:
    """Read the criteria of a comparison.

    Raises:
        UsageError: no profile of that name.
    """
    if name not in profiles():
        raise unknown("profile", name, profiles())
    return judge.parse((files("harness") / "comparison" / f"{name}.toml").read_text(encoding="utf-8"), name)


def compare(a: Path, b: Path, *, profile: str | None = None) -> Record:
    """Compare two saved things.

    Args:
        a: the reference: a kit, a record, or a dump that `harness.dumps` reads.
        b: the candidate, a dump or a record.
        profile: criteria to judge by, "strict" (default) or "seed".

    Returns:
        A complete record; its exit code is 0 when all criteria hold, 1 when one does not, and 5 when the two have
        nothing in common (its notes say why).

    Raises:
        InputError: missing, unreadable, or nothing known.
        UsageError: no such profile.
    """
    criteria = load_profile(profile or "strict")
    reference, candidate = _labels(a, b)
    if is_kit(Path(a)):
        return _by_kit(Path(a), Path(b), Findings("kit", reference, candidate), criteria)
    want, got = read(Path(a)), read(Path(b))
    both = isinstance(want, Record) and isinstance(got, Record)
    found = Findings("baseline" if both else "compare", reference, candidate)
    if isinstance(want, Record) and isinstance(got, Record):
        baseline.compare_records(want, got, found)
    else:
        pair = _matching(want, got, found)
        if pair:
            agree(*pair, found)
    return _assembled(found, criteria, (_said(want), _said(got)))


def _by_kit(kit: Path, path: Path, found: Findings, criteria: judge.Profile) -> Record:
    """A port's dump judged by what a kit expects."""
    from harness.kitcheck import check

    got = read(path)
    if isinstance(got, Record):
        raise InputError(f"{path} is a record, where a kit is compared with a dump; see docs/kit.md.")
    check(kit, got, found.candidate, found)
    said = {"format": "kit", "model": str(found.model.get("name", ""))}
    return _assembled(found, criteria, (said, _said(got) | {"dtype": got.dtype or "f32"}))


def table(record: Record) -> str:
    """The comparison for a terminal, at most 100 columns: files, numbers, criteria, notes, and one line of verdict."""
    lines = [f"{s.role:<10} {_cut(s.id, 56)}  ({_cut(str(s.info.get('format', '?')), 28)})" for s in record.subjects]
    numbers = [(_cut(m.case, 28), m.name, _number(m.value), m.unit, _cut(m.where, 28)) for m in record.measurements]
    judged = [
        (v.outcome.value.upper(), _cut(v.case, 28), v.criterion.rpartition(".")[2], _number(v.value), _cut(v.limit, 20))
        for v in sorted(record.verdicts, key=lambda v: v.outcome is not Outcome.FAIL)
    ]
    lines += _aligned("", ("case", "number", "value", "unit", "where"), numbers)
    lines += _aligned("", ("outcome", "case", "criterion", "value", "allowed"), judged)
    for note in record.notes:
        lines += ["", *textwrap.wrap(_shown(note), WIDTH)]
    return "\n".join([*lines, "", verdict_line(record)])


def verdict_line(record: Record) -> str:
    """What it came to, in one line."""
    counts, name = record.counts(), record.profile.get("name", "")
    untested = f", {counts['unsupported']} untested" if counts["unsupported"] else ""
    judged = counts["pass"] + counts["fail"]
    if not judged:
        return "NOTHING JUDGED: the two have nothing in common that a criterion looks at."
    if counts["fail"]:
        return f"FAIL: {counts['fail']} of {judged} criteria not met{untested} (profile {name})."
    return f"PASS: {judged} of {judged} criteria met{untested} (profile {name})."


def _labels(a: Path, b: Path) -> tuple[str, str]:
    """Subject ids: the files' names, or as much of the paths as tells them apart."""
    for parts in range(1, max(len(Path(a).parts), len(Path(b).parts)) + 1):
        names = ["/".join(Path(p).parts[-parts:]) for p in (a, b)]
        if names[0] != names[1]:
            return names[0], names[1]
    return Path(a).name, f"{Path(b).name} (again)"


def _matching(want: Dump | Record, got: Dump | Record, into: Findings) -> tuple[Dump, Dump] | None:
    """Both as dumps; of a record, the case whose prompt has the other's tokens."""
    if isinstance(want, Dump) and isinstance(got, Dump):
        return want, got
    record, dump = (want, got) if isinstance(want, Record) else (got, want)
    assert isinstance(record, Record)
    assert isinstance(dump, Dump)
    kept = baseline.dumps_of(record, candidate=record is got)
    same = [part for part in kept.values() if dump.tokens and part.tokens == dump.tokens]
    if not same:
        prompts = ", ".join(kept) or "none"
        reason = "records no tokens" if not dump.tokens else "has other tokens"
        into.notes.append(f"Nothing in common: the dump {reason}; the record keeps logits of the prompts {prompts}.")
        return None
    return (same[0], dump) if record is want else (dump, same[0])


def _said(thing: Dump | Record) -> dict[str, Any]:
    """What is known about the program that saved it."""
    if isinstance(thing, Dump):
        return {"format": thing.format, "model": thing.model}
    told = {"format": f"record {thing.id}", "model": str(thing.model.get("name", "")), "created": thing.created}
    return told | {"commit": str(thing.environment.get("commit", ""))}


def _assembled(found: Findings, criteria: judge.Profile, said: tuple[dict[str, Any], dict[str, Any]]) -> Record:
    now = datetime.now(UTC)
    abilities = sorted(found.abilities)
    suites = dict.fromkeys(found.cases.values())
    criteria = replace(criteria, criteria=tuple(c for c in criteria.criteria if c.suite in suites))
    if not found.cases and not any("Nothing in common" in note for note in found.notes):
        found.notes.append("Nothing in common that could be compared.")
    record = Record(
        id=f"{now:%Y%m%dT%H%M%SZ}-{uuid.uuid4().hex[:8]}",
        created=now.isoformat(timespec="seconds"),
        finished=now.isoformat(timespec="seconds"),
        status="complete",
        model=found.model,
        environment=facts.environment(),
        subjects=(
            Subject(found.reference, "reference", said[0]),
            Subject(found.candidate, "candidate", said[1] | {"abilities": abilities}),
        ),
        suites=tuple(_suite(name, found) for name in suites),
        measurements=tuple(found.measurements),
        observations=tuple(found.observations),
        notes=tuple(found.notes),
    )
    return judge.again(record, criteria)


def _suite(name: str, found: Findings) -> dict[str, Any]:
    cases = [{"name": case, "prompt": ""} for case, suite in found.cases.items() if suite == name]
    return {"name": name, "version": 1, "question": QUESTIONS[name], "cases": cases}


def _aligned(title: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A block of columns, numbers to the right; nothing where there are no rows."""
    block = [head, *rows]
    if len(block) == 1:
        return []
    widths = [max(len(row[n]) for row in block) for n in range(len(head))]
    right = head.index("value")
    cells = [
        [c.rjust(w) if n == right else c.ljust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True))]
        for row in block
    ]
    return [title, *("  ".join(row)[:WIDTH].rstrip() for row in cells)]


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if math.isfinite(value) and value == round(value) and abs(value) < 1e6 else f"{value:.4g}"


def _cut(text: str, width: int) -> str:
    """The end of a text that is too long: that is where paths differ."""
    shown = _shown(text)
    return shown if len(shown) <= width else "..." + shown[3 - width :]


def _shown(text: str) -> str:
    """Text that a terminal does not obey; names come from foreign files."""
    return "".join(c if c.isprintable() else "?" for c in text)
