"""Compares two records of this program: same suite version, same model, or it says why not."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

from backends.dumps import Dump
from harness.agreement import Findings, top_numbers
from reports.record import Measurement, Observation, Outcome, Record, Verdict

Key = tuple[str, ...]

LOOSER = 2.0
"""Limits that hang on honest runs vary by some percent from run to run; a factor of 2 is no chance."""

SIZES = ("version", "vocab_size", "n_embd", "n_layer", "n_head")
"""Facts of a model that must agree for its numbers to be comparable."""


def compare_records(a: Record, b: Record, into: Findings) -> None:
    """Compare a run with an earlier one.

    Args:
        a: the baseline.
        b: the run in question.
        into: collects measurements and notes. Cases are written "suite: subject" and, for logits,
            "suite/case: subject".
    """
    into.model = b.model
    into.notes += loosened(a, b)
    differ = [f"{key} {a.model[key]} and {b.model[key]}" for key in SIZES if _unequal(a.model, b.model, key)]
    if differ:
        into.notes.append(f"The models differ ({'; '.join(differ)}), so no numbers were compared.")
        return
    shared, partner = set(_comparable(a, b, into)), _partners(a, b, into)
    _verdicts(a, b, shared, partner, into)
    _numbers(a, b, shared, partner, into)
    _logits(a, b, shared, partner, into)


def loosened(a: Record, b: Record) -> list[str]:
    """Limits that are looser in `b` than in `a`, or gone, in words."""
    before, after = ({_row_key(row): row for row in r.profile.get("criteria", ())} for r in (a, b))
    notes = [
        f"Limit loosened: {_name(key)} was {row.get('limit')}, is {after[key].get('limit')}."
        for key, row in before.items()
        if key in after and _looser(row, after[key])
    ]
    gone = [_name(key) for key in before if key not in after]
    if gone:
        notes.append(f"No longer judged: {', '.join(gone)}.")
    names = [str(r.profile.get("name", "none")) for r in (a, b)]
    if names[0] != names[1]:
        notes.append(f"Judged by different profiles: {names[0]} and {names[1]}.")
    return [*notes, *_wider(a, b)]


def dumps_of(record: Record, candidate: bool) -> dict[str, Dump]:
    """The leading tokens that a record kept, by case, of its candidate or of its reference.

    The first subject in that role that has any; a record without candidates gives its reference.
    """
    roles = ("candidate", "reference") if candidate else ("reference", "candidate")
    order = [s.id for role in roles for s in record.subjects if s.role == role]
    tops = {(o.subject, o.case): o.data for o in record.observations if o.kind == "topk"}
    ids = {o.case: tuple(o.data["ids"]) for o in record.observations if o.kind == "tokens"}
    chosen = next((subject for subject in order if any(key[0] == subject for key in tops)), None)
    model = str(record.model.get("name", ""))
    return {
        case: Dump("record", top=_top(data), pieces=_pieces(data), tokens=ids.get(case, ()), model=model)
        for (subject, case), data in tops.items()
        if subject == chosen and _top(data)
    }


def _comparable(a: Record, b: Record, into: Findings) -> Iterator[str]:
    """Suites of both records, of one version."""
    versions = [{s["name"]: s.get("version") for s in r.suites} for r in (a, b)]
    for name in dict.fromkeys((*versions[0], *versions[1])):
        if name not in versions[0] or name not in versions[1]:
            into.notes.append(f"Suite {name} is in one record only: not compared.")
        elif versions[0][name] != versions[1][name]:
            old, new = versions[0][name], versions[1][name]
            into.notes.append(f"Suite {name} is version {old} and {new}, which ask other things: not compared.")
        else:
            yield name


def _partners(a: Record, b: Record, into: Findings) -> dict[str, str]:
    """Subject of the baseline -> subject of the run: by id, else the one candidate of each."""
    ids = [{s.id for s in r.subjects} for r in (a, b)]
    partner = {name: name for name in sorted(ids[0] & ids[1])}
    lone = [[s.id for s in r.subjects if s.role == "candidate" and s.id not in partner] for r in (a, b)]
    if len(lone[0]) == len(lone[1]) == 1:
        partner[lone[0][0]] = lone[1][0]
        into.notes.append(f"{lone[1][0]} is compared with {lone[0][0]}, the only candidate without a namesake.")
    else:
        into.notes += [f"{name} is in one record only: not compared." for name in (*lone[0], *lone[1])]
    return partner


def _verdicts(a: Record, b: Record, shared: set[str], partner: Mapping[str, str], into: Findings) -> None:
    """Passes and numbers that are lost, and criteria that are no longer judged, by suite and subject."""
    judged = {_verdict_key(v, v.subject): v.outcome for v in b.verdicts}
    measured = {_key(m): m.value for m in b.measurements}
    losses: dict[tuple[str, str], dict[str, list[str]]] = {}
    rows: list[Verdict | Measurement] = [*a.verdicts, *a.measurements]
    for row in rows:
        if row.suite not in shared or row.subject not in partner:
            continue
        subject = partner[row.subject]
        place = losses.setdefault((row.suite, subject), {"passes_lost": [], "verdicts_missing": [], "numbers_lost": []})
        if isinstance(row, Measurement):
            if _finite(row.value) and not _finite(measured.get((row.suite, row.case, subject, row.name))):
                place["numbers_lost"].append(f"{row.case} {row.name}")
            continue
        outcome = judged.get(_verdict_key(row, subject))
        if outcome is None:
            place["verdicts_missing"].append(f"{row.case} {_measure(row)}")
        elif row.outcome is Outcome.PASS and outcome is not Outcome.PASS:
            place["passes_lost"].append(f"{row.case} {_measure(row)}")
    for (suite, subject), found in losses.items():
        judged_before = any(v.suite == suite and partner.get(v.subject) == subject for v in a.verdicts)
        case = into.case(f"{suite}: {subject}", "" if judged_before else "baseline-numbers")
        for name, lost in found.items():
            into.add(case, name, float(len(lost)), where=_some(lost))


def _numbers(a: Record, b: Record, shared: set[str], partner: Mapping[str, str], into: Findings) -> None:
    """The factor by which each number changed most, over the cases; not judged, errors of rounding vary."""
    now = {_key(m): m.value for m in b.measurements}
    changes: dict[Key, tuple[float, str]] = {}
    for m in a.measurements:
        place = (m.suite, partner.get(m.subject, ""), m.name)
        after = now.get((m.suite, m.case, place[1], m.name))
        if m.suite not in shared or not m.value or not after or not math.isfinite(m.value) or not math.isfinite(after):
            continue
        factor = after / m.value
        if factor > 0 and abs(math.log(factor)) >= abs(math.log(changes.get(place, (1.0, ""))[0])):
            changes[place] = (factor, m.case)
    for (suite, subject, name), (factor, case) in changes.items():
        into.add(into.case(f"{suite}: {subject}"), f"{name}_factor", factor, "x", where=case)


def _logits(a: Record, b: Record, shared: set[str], partner: Mapping[str, str], into: Findings) -> None:
    """The leading logits that both records kept, by token id."""
    now = {(o.suite, o.case, o.subject): o.data for o in b.observations if o.kind == "topk"}
    for o in a.observations:
        if o.kind != "topk" or o.suite not in shared or o.subject not in partner:
            continue
        there = now.get((o.suite, o.case, partner[o.subject]))
        if there is None or not _top(o.data) or not _top(there):
            into.notes.append(f"{o.suite}/{o.case} of {o.subject}: logits are in one record only, so untested.")
            continue
        case = into.case(f"{o.suite}/{o.case}: {partner[o.subject]}", "baseline-logits")
        for name, (value, where) in top_numbers(_top(o.data), _top(there)).items():
            into.add(case, name, value, "logit" if name == "top1_logit_diff" else "", where)
        into.observations.append(Observation("logits", case, into.candidate, "topk", there))


def _wider(a: Record, b: Record) -> list[str]:
    """Limits as applied that grew by more than a factor, by criterion."""
    now = {_verdict_key(v, v.subject): v for v in b.verdicts}
    grown: dict[str, tuple[float, float]] = {}
    for v in a.verdicts:
        other = now.get(_verdict_key(v, v.subject))
        if other is None or not v.bound or not other.bound or not v.limit.startswith("<") or v.bound < 0:
            continue
        if other.bound > LOOSER * v.bound:
            grown[_measure(v)] = (v.bound, other.bound)
    return [f"Limit as applied grew: {name} from {old:.3g} to {new:.3g}." for name, (old, new) in grown.items()]


def _looser(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a criterion of a profile allows more than it did; another kind of limit counts as looser."""
    kinds = [row.get("bound") for row in (before, after)]
    if kinds[0] != kinds[1] and kinds != ["max", "below"]:
        return True
    if kinds[0] is None or kinds[0] == "equals":
        return bool(before.get("limit") != after.get("limit"))
    old, new = (float(row.get("value", math.nan)) for row in (before, after))
    return not (new >= old if kinds[0] == "min" else new <= old)


def _row_key(row: Mapping[str, Any]) -> Key:
    """What a criterion looks at."""
    when = row.get("when") or {}
    conditions = sorted(f"{k}={v}" for k, v in when.items()) if isinstance(when, dict) else [str(when)]
    return (str(row.get("suite")), str(row.get("measure")), *conditions)


def _name(key: Key) -> str:
    return ".".join(key[:2]) + (f" ({', '.join(key[2:])})" if key[2:] else "")


def _measure(v: Verdict) -> str:
    """A criterion's name without its profile, so that profiles can be compared."""
    return v.criterion.partition("/")[2] or v.criterion


def _verdict_key(v: Verdict, subject: str) -> Key:
    return (v.suite, v.case, subject, _measure(v))


def _key(m: Measurement) -> Key:
    return (m.suite, m.case, m.subject, m.name)


def _top(data: Mapping[str, Any]) -> dict[int, float]:
    """Id -> logit of a table of leading tokens, best first."""
    known = {int(row["id"]): float(row["logit"]) for row in data["rows"] if row.get("logit") is not None}
    return dict(sorted(known.items(), key=lambda item: (-item[1], item[0])))


def _pieces(data: Mapping[str, Any]) -> dict[int, str]:
    return {int(row["id"]): str(row.get("piece", "")) for row in data["rows"]}


def _unequal(a: Mapping[str, Any], b: Mapping[str, Any], key: str) -> bool:
    return key in a and key in b and a[key] != b[key]


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
