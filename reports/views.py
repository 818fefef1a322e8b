"""A Record as pandas frames and looked-up numbers, worst first: what every table and sentence is drawn from."""

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from reports.record import Measurement, Observation, Outcome, Record, Subject, Verdict
from reports.text import number_of, visible

if TYPE_CHECKING:
    import pandas as pd

Row = Observation | Measurement | Verdict

RMS = ("rms_error", "rms")
MAX = ("max_abs_error", "max_abs")
BIAS_Z = ("bias_z",)
"""Spellings under which the measures of `logits` may stand, the preferred one first."""

SEVERITY = {outcome: rank for rank, outcome in enumerate(("error", "fail", "unsupported", "skipped", "pass"))}
"""Outcomes, worst first."""


def with_role(record: Record, role: str) -> list[Subject]:
    """The subjects of a role, in the record's order."""
    return [subject for subject in record.subjects if subject.role == role]


def reference(record: Record) -> Subject | None:
    """The subject that the others are compared with."""
    return next(iter(with_role(record, "reference")), None)


def shown(record: Record) -> list[Subject]:
    """Reference and candidates: the columns of the tables."""
    return [subject for subject in record.subjects if subject.role != "honest"]


def honest_for(record: Record, subject: Subject) -> Subject | None:
    """The honest runs in the number format of `subject`."""
    dtype = subject.info.get("dtype")
    return next((s for s in with_role(record, "honest") if dtype and s.id.partition("@")[2] == dtype), None)


def evidence(record: Record, kind: str, suite: str = "", case: str = "") -> list[Observation]:
    """The observations of a kind, in the record's order; an empty suite or case means any."""
    return [
        seen
        for seen in record.observations
        if seen.kind == kind and suite in ("", seen.suite) and case in ("", seen.case)
    ]


def by_subject(record: Record, kind: str, suite: str, case: str) -> dict[str, dict[str, Any]]:
    """Subject id -> data of a kind in one case; the reference first."""
    found = {seen.subject: seen.data for seen in evidence(record, kind, suite, case)}
    order = [subject.id for subject in record.subjects if subject.id in found]
    return {name: found[name] for name in [*order, *(name for name in found if name not in order)]}


def cases(record: Record, suite: str) -> list[str]:
    """The cases of a suite that left anything, in the order in which they ran."""
    rows: tuple[Row, ...] = (*record.observations, *record.measurements, *record.verdicts)
    return list(dict.fromkeys(row.case for row in rows if row.suite == suite))


def suites(record: Record) -> list[str]:
    """The suites that were asked for or left anything to judge, in order."""
    asked = [str(suite.get("name", "")) for suite in record.suites]
    rows: tuple[Row, ...] = (*record.verdicts, *record.measurements)
    return [name for name in dict.fromkeys([*asked, *(row.suite for row in rows)]) if name]


def value(record: Record, suite: str, case: str, subject: str, names: Iterable[str]) -> float | None:
    """A measured number under the first of its spellings that occurs."""
    wanted = list(names)
    found = {
        m.name: m.value
        for m in record.measurements
        if m.subject == subject and m.case == case and m.suite == suite and m.name in wanted
    }
    return next((found[name] for name in wanted if name in found), None)


def excess(verdict: Verdict) -> float:
    """How many times the measured number is what was allowed; infinite if it is not a number, NaN without a bound."""
    if verdict.value is None or math.isnan(verdict.value):
        return math.inf if verdict.outcome is Outcome.FAIL else math.nan
    if verdict.bound is None or math.isnan(verdict.bound):
        return math.nan
    above, below = abs(verdict.value), abs(verdict.bound)
    if verdict.limit.lstrip().startswith((">", "≥")):
        above, below = below, above
    if math.isinf(above) and math.isinf(below):
        return math.nan
    return above / below if below else (math.inf if above else 0.0)


def worst_first(verdicts: Iterable[Verdict]) -> list[Verdict]:
    """Errors, then failures by how far they went beyond the limit, down to the passes with the most room."""

    def key(verdict: Verdict) -> tuple[int, float]:
        ratio = excess(verdict)
        return SEVERITY[verdict.outcome.value], -(0.0 if math.isnan(ratio) else ratio)

    return sorted(verdicts, key=key)


def verdict_frame(record: Record) -> "pd.DataFrame":
    """One row a verdict, worst first, with `excess` (measured over allowed)."""
    import pandas as pd

    columns = ["suite", "case", "subject", "criterion", "outcome", "value", "bound", "limit", "excess", "why", "detail"]
    rows = [
        [
            v.suite,
            v.case,
            v.subject,
            v.criterion,
            v.outcome.value,
            v.value,
            v.bound,
            v.limit,
            excess(v),
            v.why,
            v.detail,
        ]
        for v in worst_first(record.verdicts)
    ]
    return pd.DataFrame(rows, columns=columns)


def measurement_frame(record: Record) -> "pd.DataFrame":
    """One row a measurement, with the subject's role."""
    import pandas as pd

    roles = {subject.id: subject.role for subject in record.subjects}
    columns = ["suite", "case", "subject", "role", "name", "value", "unit", "where"]
    rows = [
        [m.suite, m.case, m.subject, roles.get(m.subject, ""), m.name, m.value, m.unit, m.where]
        for m in record.measurements
    ]
    return pd.DataFrame(rows, columns=columns)


def matrix_frame(record: Record) -> "pd.DataFrame":
    """Subject x suite -> how many verdicts of each outcome: columns (suite, outcome), candidates first."""
    import pandas as pd

    frame = verdict_frame(record)
    counts = pd.crosstab(frame["subject"], [frame["suite"], frame["outcome"]])
    rows = list(dict.fromkeys([*(s.id for s in with_role(record, "candidate")), *frame["subject"]]))
    columns = pd.MultiIndex.from_product([suites(record), list(SEVERITY)], names=["suite", "outcome"])
    return counts.reindex(index=rows, columns=columns, fill_value=0)


def pivot_frame(record: Record, suite: str, case: str) -> "pd.DataFrame":
    """Measurement name x subject -> value, for one case, in the record's order; None where nothing was measured."""
    import pandas as pd

    found = {(m.name, m.subject): m.value for m in record.measurements if (m.suite, m.case) == (suite, case)}
    names = list(dict.fromkeys(name for name, _ in found))
    measured = {subject for _, subject in found}
    subjects = [subject.id for subject in record.subjects if subject.id in measured]
    rows = [[found.get((name, subject)) for subject in subjects] for name in names]
    return pd.DataFrame(rows, index=names, columns=subjects, dtype=object)


def top_frame(record: Record, case: str) -> "pd.DataFrame":
    """The union of all top-k lists of a case, one row a token id, in the reference's order.

    Columns: piece, rank_ref, ref, and per candidate `(id, "rank")`, `(id, "logit")`. Rows are aligned by
    token id, so a swapped rank shows both errors.
    """
    import pandas as pd

    lists = by_subject(record, "topk", "logits", case)
    first = reference(record)
    rows: dict[int, dict[Any, Any]] = {}
    for subject, data in lists.items():
        for row in data["rows"]:
            entry = rows.setdefault(int(row["id"]), {key: row[key] for key in ("piece", "rank_ref", "ref")})
            if first is None or subject != first.id:
                entry |= {(subject, "rank"): row["rank"], (subject, "logit"): row["logit"]}
    columns = list(dict.fromkeys(column for entry in rows.values() for column in entry))
    order = sorted(rows, key=lambda token: _rank(rows[token]["rank_ref"]))
    cells = [[rows[token].get(column) for column in columns] for token in order]
    return pd.DataFrame(cells, index=order, columns=pd.Index(columns, dtype=object, tupleize_cols=False), dtype=object)


def _rank(rank: Any) -> float:
    """A rank for sorting; a missing one is last."""
    number = number_of(rank)
    return math.inf if number is None else number


def measurements_csv(record: Record) -> str:
    """Every measurement as CSV with a header; the run's id in each row; what could not be measured is empty.

    Text that a spreadsheet would run as a formula gets an apostrophe in front.
    """
    frame = measurement_frame(record)
    frame.insert(0, "run", record.id)
    words = [column for column in frame.columns if column != "value"]
    frame[words] = frame[words].map(_inert)
    frame["value"] = ["" if m.value is None else repr(float(m.value)) for m in record.measurements]
    return frame.to_csv(index=False, lineterminator="\n")


def _inert(text: str) -> str:
    return visible(f"'{text}" if text.startswith(("=", "+", "-", "@")) else text)
