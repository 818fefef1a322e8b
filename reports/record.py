"""The Record: everything a run found out, enough to judge again or draw again, later, elsewhere.

Numbers and verdicts are two things: a `Measurement` never says whether it is good. An `Observation`
is evidence that a table or a picture is drawn from. JSON knows no NaN, so numbers that are not finite
are written as the strings "nan", "inf" and "-inf"; a missing number is null.
"""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

FORMAT = 1
"""Format of the file. 1: first."""


class RecordError(Exception):
    """A file is no record, or one of a format that this program does not know."""


class Outcome(StrEnum):
    """What a criterion came to. Only PASS is a pass."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    SKIPPED = "skipped"  # asked for
    UNSUPPORTED = "unsupported"  # the subject lacks an ability that the suite needs
    ERROR = "error"  # the subject or the harness broke


@dataclass(frozen=True)
class Measurement:
    """One number.

    Attributes:
        suite, case, subject: what was run, on what, by whom.
        name: which number ("rms_error").
        value: the number; NaN is a value, None is "could not be measured".
        unit: "logit", "nat", "tokens/s", ...; empty for counts and shares.
        where: where in the data it occurred ("token 17, id 98").
    """

    suite: str
    case: str
    subject: str
    name: str
    value: float | None
    unit: str = ""
    where: str = ""


@dataclass(frozen=True)
class Observation:
    """Evidence for a table or a plot; `data` is plain JSON whose shape `kind` decides."""

    suite: str
    case: str
    subject: str
    kind: str
    data: dict[str, Any]


@dataclass(frozen=True)
class Verdict:
    """A criterion applied to a measurement.

    Attributes:
        criterion: id in the profile ("strict/logits.rms_error").
        outcome: one of five.
        value: the measured number.
        limit: what was allowed, in words ("<= 3.1e-06 = 3 x honest f32").
        bound: the allowed number, where there is one.
        why: the reason for the limit, from the profile.
        detail: what happened, in words.
    """

    suite: str
    case: str
    subject: str
    criterion: str
    outcome: Outcome
    value: float | None = None
    limit: str = ""
    bound: float | None = None
    why: str = ""
    detail: str = ""


@dataclass(frozen=True)
class Subject:
    """Who was measured.

    Attributes:
        id: as on the command line ("torch-compile@bf16").
        role: "reference", "candidate" or "honest".
        info: the session's facts (backend, packages, device, dtype, state_dtype, attention,
            threads, abilities, notes); empty if it could not be opened.
        error: why it could not be opened or died; empty if all went well.
    """

    id: str
    role: str
    info: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Record:
    """One run.

    Attributes:
        format: number of the file format.
        id: unique and sortable by time.
        created, finished: ISO 8601 with zone; `finished` is empty while the run goes on.
        status: "running", "complete", "interrupted" or "crashed".
        command: what was typed.
        job: the Job as plain data; its hash `job_key` tells whether a run can be resumed.
        profile: name, version and the criteria themselves.
        model: ModelFacts as plain data.
        environment: machine, versions, commit, dirty flag.
        suites: per suite: name, version, question, cases.
        notes: what the reader should know.
    """

    id: str
    created: str
    format: int = FORMAT
    finished: str = ""
    status: str = "running"
    command: str = ""
    job: dict[str, Any] = field(default_factory=dict)
    job_key: str = ""
    profile: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, Any] = field(default_factory=dict)
    subjects: tuple[Subject, ...] = ()
    suites: tuple[dict[str, Any], ...] = ()
    measurements: tuple[Measurement, ...] = ()
    observations: tuple[Observation, ...] = ()
    verdicts: tuple[Verdict, ...] = ()
    notes: tuple[str, ...] = ()

    def counts(self) -> dict[str, int]:
        """How many verdicts came to each of the five outcomes, zeros included."""
        return {outcome.value: sum(v.outcome is outcome for v in self.verdicts) for outcome in Outcome}

    def exit_code(self) -> int:
        """0 passed, 1 a criterion failed, 4 something broke, 5 nothing was judged."""
        counts = self.counts()
        if counts["error"] or self.status == "crashed":
            return 4
        if counts["fail"]:
            return 1
        return 0 if counts["pass"] else 5

    def to_json(self) -> str:
        """The record as a JSON document, one measurement, observation or verdict a line."""
        lines = []
        for key, value in plain(asdict(self)).items():
            if key in _LISTS and value:
                rows = ",\n  ".join(json.dumps(row, ensure_ascii=False, allow_nan=False) for row in value)
                lines.append(f' "{key}": [\n  {rows}\n ]')
            else:
                lines.append(f' "{key}": {json.dumps(value, ensure_ascii=False, allow_nan=False)}')
        text = "{\n" + ",\n".join(lines) + "\n}\n"
        return re.sub("[\ud800-\udfff]", lambda lone: f"\\u{ord(lone[0]):04x}", text)  # UTF-8 cannot hold these

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Read a record.

        Raises:
            RecordError: not JSON, not a record, or of an unknown format.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise RecordError(f"not JSON: {error}") from None
        return cls.from_data(data)

    @classmethod
    def from_data(cls, data: Any) -> "Record":
        """A record from the plain data of its JSON.

        Raises:
            RecordError: not a record, or of an unknown format.
        """
        if not isinstance(data, dict) or "format" not in data or "measurements" not in data:
            raise RecordError("JSON, but no record: the keys 'format' and 'measurements' are missing")
        if data["format"] != FORMAT:
            raise RecordError(f"format {data['format']}, but this program reads format {FORMAT}")
        try:
            values: dict[str, Any] = {f.name: data[f.name] for f in fields(cls) if f.name in data}
            values |= {key: tuple(_row(kind, row) for row in data[key]) for key, kind in _LISTS.items()}
            values |= {key: tuple(values[key]) for key in ("suites", "notes") if key in values}
            return cls(**values)
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise RecordError(f"a damaged record: {error!r}") from None


_LISTS: Mapping[str, type[Any]] = {
    "subjects": Subject,
    "measurements": Measurement,
    "observations": Observation,
    "verdicts": Verdict,
}


def plain(value: Any) -> Any:
    """Dataclass contents as JSON values; floats that are not finite become strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf")
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return value


def _row(kind: type[Any], row: Mapping[str, Any]) -> Any:
    """One line of a list back as its dataclass."""
    values: dict[str, Any] = {key: _number(item) if key in ("value", "bound") else item for key, item in row.items()}
    if kind is Verdict:
        values["outcome"] = Outcome(values["outcome"])
    return kind(**values)


def _number(value: Any) -> float | None:
    """Undo the spelling of numbers that are not finite."""
    return float(value) if value is not None else None
