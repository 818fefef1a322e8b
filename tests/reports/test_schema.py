import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from reports import schema, store
from reports.record import Measurement, Observation, Outcome, Record, Subject, Verdict
from tests.reports import sample
from tests.reports.golden import agrees

jsonschema = pytest.importorskip("jsonschema", reason="jsonschema, which checks against the schema, is not installed")

PUBLISHED = Path(__file__).parents[2] / "docs" / "record.schema.json"


def test_the_published_schema_is_current() -> None:
    agrees(PUBLISHED, schema.published())


@pytest.mark.parametrize("record", [sample.record(), sample.failing(), sample.empty(), sample.hostile()])
def test_records_fit_the_schema(record: Record) -> None:
    data = json.loads(record.to_json())
    jsonschema.Draft202012Validator(schema.schema()).validate(data)
    assert schema.problems(data) == []


BROKEN: list[tuple[str, Any]] = [
    ("id", 1),
    ("format", 2),
    ("subjects", {}),
    ("subjects", [{"id": "x"}]),
    ("notes", [1]),
    ("job", []),
    ("measurements", [{"suite": "s", "case": "", "subject": "", "name": "n", "value": "many"}]),
    ("measurements", [{"suite": "s", "case": "", "subject": "", "name": "n", "value": True}]),
    ("measurements", [{"suite": "s", "case": "", "subject": "", "name": "n", "value": 1, "colour": "red"}]),
    ("verdicts", [{"suite": "s", "case": "", "subject": "", "criterion": "", "outcome": "maybe"}]),
]


@pytest.mark.parametrize(("key", "value"), BROKEN)
def test_our_checker_and_jsonschema_refuse_the_same(key: str, value: object) -> None:
    data = {**json.loads(sample.record().to_json()), key: value}
    assert list(jsonschema.Draft202012Validator(schema.schema()).iter_errors(data))
    assert schema.problems(data)
    assert all(problem.startswith(f"record.{key}") for problem in schema.problems(data))


def test_a_missing_key_is_named() -> None:
    data = json.loads(sample.record().to_json())
    del data["id"]
    assert schema.problems(data) == ["record: 'id' is missing"]


def test_long_values_are_cut() -> None:
    data = {**json.loads(sample.record().to_json()), "id": ["x" * 100]}
    assert len(schema.problems(data)[0]) < 80


def test_fields_are_described() -> None:
    properties = schema.schema()["$defs"]["Verdict"]["properties"]
    assert "what was allowed" in properties["limit"]["description"]


words = st.text(alphabet=st.characters(codec=None), max_size=12)
numbers = st.none() | st.floats()
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(words, inner, max_size=3),
    max_leaves=6,
)
tables = st.dictionaries(words, plain, max_size=3)
records = st.builds(
    Record,
    id=words,
    created=words,
    job=tables,
    environment=tables,
    subjects=st.lists(st.builds(Subject, words, words, tables, words), max_size=2).map(tuple),
    suites=st.lists(tables, max_size=2).map(tuple),
    measurements=st.lists(st.builds(Measurement, words, words, words, words, numbers, words, words), max_size=3).map(
        tuple
    ),
    observations=st.lists(st.builds(Observation, words, words, words, words, tables), max_size=2).map(tuple),
    verdicts=st.lists(
        st.builds(Verdict, words, words, words, words, st.sampled_from(Outcome), numbers, words, numbers), max_size=3
    ).map(tuple),
    notes=st.lists(words, max_size=2).map(tuple),
)


def _comparable(record: Record) -> Record:
    """NaN equals nothing, so it is set to a number that no test uses."""

    def number(value: float | None) -> float | None:
        return -12345.5 if value is not None and math.isnan(value) else value

    return replace(
        record,
        measurements=tuple(replace(m, value=number(m.value)) for m in record.measurements),
        verdicts=tuple(replace(v, value=number(v.value), bound=number(v.bound)) for v in record.verdicts),
    )


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(records)
def test_any_record_survives_its_file(record: Record) -> None:
    text = record.to_json()
    text.encode("utf-8")
    assert _comparable(store.parse(text)) == _comparable(record)
