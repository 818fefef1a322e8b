"""Criterion x measurement -> verdict. A criterion states what is allowed; everything else is no pass.

Judging reads a Record and nothing else, so an old one can be judged again, by another profile, elsewhere.
"""

import math
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from importlib.resources import files
from typing import Any

from backends.errors import HarnessError, unknown
from harness.envelope import honest_format, honest_id
from reports.record import Measurement, Outcome, Record, Subject, Verdict

BOUNDS = ("max", "below", "min", "equals", "envelope")
CONDITIONS = ("dtype", "device", "version")
EVENT = "event"
"""Kind of the observation that tells why a case of a subject has no numbers."""


@dataclass(frozen=True)
class Criterion:
    """What is allowed.

    Attributes:
        profile: name of the profile it stands in.
        suite: whose cases it looks at.
        measure: name of the number it looks at.
        why: the reason for the limit.
        max: pass if value <= it.
        below: pass if value < it.
        min: pass if value >= it.
        equals: pass if value == it.
        envelope: pass if value <= it x the largest of the honest runs in the subject's number format.
        floor: an envelope limit is never below this.
        when: condition -> allowed values, over dtype, device, version; all must hold.
        needs: ability without which the criterion is unsupported.
        cases: names it is restricted to; empty is all.
    """

    profile: str
    suite: str
    measure: str
    why: str
    max: float | None = None
    below: float | None = None
    min: float | None = None
    equals: float | None = None
    envelope: float | None = None
    floor: float = 0.0
    when: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    needs: str = ""
    cases: tuple[str, ...] = ()

    @property
    def id(self) -> str:
        """`profile/suite.measure`."""
        return f"{self.profile}/{self.suite}.{self.measure}"

    def bound(self) -> tuple[str, float]:
        """The one bound that is set: its kind and number."""
        return next((kind, value) for kind in BOUNDS if (value := getattr(self, kind)) is not None)

    def words(self) -> str:
        """The limit as people read it, without a run's numbers."""
        kind, value = self.bound()
        if kind == "envelope":
            return f"<= {value:g} x honest" + (f", at least {self.floor:g}" if self.floor else "")
        return f"{ {'max': '<=', 'below': '<', 'min': '>=', 'equals': '='}[kind] } {value:g}"


@dataclass(frozen=True)
class Profile:
    """A named set of criteria."""

    name: str
    version: int
    summary: str
    criteria: tuple[Criterion, ...]

    def facts(self) -> dict[str, Any]:
        """What a record keeps of it: enough to see later that a limit was loosened."""
        rows = [
            {
                "suite": c.suite,
                "measure": c.measure,
                "limit": c.words(),
                "bound": c.bound()[0],
                "value": c.bound()[1],
                "when": {k: list(v) for k, v in c.when.items()},
                "why": c.why,
            }
            for c in self.criteria
        ]
        return {"name": self.name, "version": self.version, "summary": self.summary, "criteria": rows}


def profiles() -> list[str]:
    """Every profile in the package."""
    return sorted(item.name.removesuffix(".toml") for item in (files("harness") / "profiles").iterdir())


@cache
def load(name: str) -> Profile:
    """Read a profile.

    Raises:
        UsageError: no profile of that name.
    """
    if name not in profiles():
        raise unknown("profile", name, profiles())
    return parse((files("harness") / "profiles" / f"{name}.toml").read_text(encoding="utf-8"), name)


def parse(text: str, name: str) -> Profile:
    """A profile from its TOML text.

    Raises:
        HarnessError: an unknown key, no bound or two, or no reason.
    """
    data = tomllib.loads(text)
    criteria = tuple(_criterion(name, row) for row in data.pop("criterion", ()))
    if set(data) != {"version", "summary"}:
        raise HarnessError(f"profile {name}: the keys are version, summary and [[criterion]], got {', '.join(data)}.")
    return Profile(name, int(data["version"]), data["summary"], criteria)


def _criterion(profile: str, row: dict[str, Any]) -> Criterion:
    known = {f.name for f in fields(Criterion)} - {"profile"}
    label = f"profile {profile}, criterion {row.get('suite')}.{row.get('measure')}"
    if set(row) - known:
        raise HarnessError(
            f"{label}: unknown key {', '.join(sorted(set(row) - known))}; known: {', '.join(sorted(known))}."
        )
    if "suite" not in row or "measure" not in row:
        raise HarnessError(f"{label}: suite and measure are needed.")
    if sum(kind in row for kind in BOUNDS) != 1:
        raise HarnessError(f"{label}: exactly one of {', '.join(BOUNDS)} is needed.")
    if not row.get("why"):
        raise HarnessError(f"{label}: every limit says why.")
    when = {key: tuple(value) if isinstance(value, list) else (value,) for key, value in row.pop("when", {}).items()}
    surplus = sorted(set(when) - set(CONDITIONS))
    if surplus:
        raise HarnessError(f"{label}: unknown condition {', '.join(surplus)}; known: {', '.join(CONDITIONS)}.")
    return Criterion(profile, when=when, cases=tuple(row.pop("cases", ())), **row)


def judge(record: Record, profile: Profile) -> tuple[Verdict, ...]:
    """Every criterion on every case of every candidate."""
    numbers = {(m.suite, m.case, m.subject, m.name): m for m in record.measurements}
    events = {(o.suite, o.case, o.subject): o.data for o in record.observations if o.kind == EVENT}
    verdicts: list[Verdict] = []
    for subject in record.subjects:
        if subject.role == "candidate":
            for suite, case in _cases(record):
                event = events.get((suite, case, subject.id))
                if event is not None:
                    verdicts.append(_eventful(suite, case, subject, event, profile.name))
                else:
                    verdicts += _judge_case(suite, case, subject, record, profile.criteria, numbers)
    return tuple(verdicts)


def again(record: Record, profile: Profile) -> Record:
    """The record with the verdicts of a profile."""
    return replace(record, profile=profile.facts(), verdicts=judge(record, profile))


def _cases(record: Record) -> Iterator[tuple[str, str]]:
    for suite in record.suites:
        yield from ((suite["name"], case["name"]) for case in suite["cases"])


def _eventful(suite: str, case: str, subject: Subject, event: Mapping[str, Any], profile: str) -> Verdict:
    return Verdict(suite, case, subject.id, f"{profile}/{suite}", Outcome(event["outcome"]), detail=event["detail"])


def _judge_case(
    suite: str,
    case: str,
    subject: Subject,
    record: Record,
    criteria: Iterable[Criterion],
    numbers: Mapping[tuple[str, str, str, str], Measurement],
) -> Iterator[Verdict]:
    for criterion in criteria:
        if (
            criterion.suite != suite
            or (criterion.cases and case not in criterion.cases)
            or not _applies(criterion, subject, record)
        ):
            continue
        honest = numbers.get((suite, case, honest_id(str(subject.info.get("dtype"))), criterion.measure))
        yield _verdict(criterion, case, subject, numbers.get((suite, case, subject.id, criterion.measure)), honest)


def _applies(criterion: Criterion, subject: Subject, record: Record) -> bool:
    facts = {
        "dtype": honest_format(str(subject.info.get("dtype"))),
        "device": str(subject.info.get("device", "")).partition(":")[0],
        "version": str(record.model.get("version")),
    }
    return all(facts[key] in allowed for key, allowed in criterion.when.items())


def _verdict(
    criterion: Criterion, case: str, subject: Subject, got: Measurement | None, honest: Measurement | None
) -> Verdict:
    base = Verdict(
        criterion.suite, case, subject.id, criterion.id, Outcome.FAIL, limit=criterion.words(), why=criterion.why
    )
    if got is None or got.value is None:
        if criterion.needs and criterion.needs not in subject.info.get("abilities", ()):
            return replace(base, outcome=Outcome.UNSUPPORTED, detail=f"the subject has no ability {criterion.needs!r}")
        return replace(base, detail="not measured, and a missing number is no pass")
    limit, bound = _limit(criterion, honest)
    if bound is None:
        dtype = subject.info.get("dtype")
        lack = "there are no honest runs" if honest is None else "honest runs are not finite themselves"
        return replace(base, value=got.value, detail=f"no limit: {lack} in {dtype}")
    passed = math.isfinite(got.value) and _within(criterion.bound()[0], got.value, bound)
    detail = got.where if passed else _failure(got, limit)
    return replace(
        base, outcome=Outcome.PASS if passed else Outcome.FAIL, value=got.value, limit=limit, bound=bound, detail=detail
    )


def _limit(criterion: Criterion, honest: Measurement | None) -> tuple[str, float | None]:
    kind, value = criterion.bound()
    if kind != "envelope":
        return criterion.words(), value
    if honest is None or honest.value is None or not math.isfinite(honest.value):
        return criterion.words(), None
    bound = max(criterion.floor, value * honest.value)
    if bound == criterion.floor and value * honest.value < criterion.floor:
        return f"<= {bound:.3g}, the floor; {value:g} x honest is {value * honest.value:.3g}", bound
    return f"<= {bound:.3g} = {value:g} x honest", bound


def _within(kind: str, value: float, bound: float) -> bool:
    if kind in ("max", "envelope"):
        return value <= bound
    return {"below": value < bound, "min": value >= bound, "equals": value == bound}[kind]


def _failure(got: Measurement, limit: str) -> str:
    value = (
        f"{got.value:.6g}"
        if got.value is not None and math.isfinite(got.value)
        else f"{got.value}, which is not finite"
    )
    return f"{got.name} is {value}{f' at {got.where}' if got.where else ''}; allowed is {limit}"
