import csv
import io
import math
from dataclasses import replace

import pytest

from reports import views
from reports.record import Measurement, Outcome, Subject, Verdict
from tests.reports import sample
from tests.reports.sample import BF16, CASE, F32, REF


def verdict(outcome: Outcome, value: float | None, bound: float | None, limit: str = "<=") -> Verdict:
    return Verdict("s", "c", "x", "k", outcome, value, limit, bound)


@pytest.mark.parametrize(
    ("value", "bound", "limit", "expected"),
    [
        (3.0, 1.5, "<= 1.5", 2.0),
        (-3.0, 1.5, "<= 1.5", 2.0),
        (0.5, 0.9, ">= 0.9", 1.8),
        (0.0, 0.9, ">= 0.9", math.inf),
        (0.0, 0.0, "<= 0", 0.0),
        (1.0, 0.0, "<= 0", math.inf),
        (math.nan, 1.0, "<= 1", math.inf),
        (None, 1.0, "<= 1", math.inf),
    ],
)
def test_excess_of_a_failure(value: float | None, bound: float, limit: str, expected: float) -> None:
    assert views.excess(verdict(Outcome.FAIL, value, bound, limit)) == expected


def test_excess_without_a_bound_is_unknown() -> None:
    assert math.isnan(views.excess(verdict(Outcome.PASS, 1.0, None)))
    assert math.isnan(views.excess(verdict(Outcome.UNSUPPORTED, None, 1.0)))
    assert math.isnan(views.excess(verdict(Outcome.FAIL, math.inf, math.inf)))


def test_worst_first() -> None:
    rows = [
        verdict(Outcome.PASS, 0.1, 1.0),
        verdict(Outcome.FAIL, 2.0, 1.0),
        verdict(Outcome.PASS, 0.9, 1.0),
        verdict(Outcome.FAIL, math.nan, 1.0),
        verdict(Outcome.SKIPPED, None, None),
        verdict(Outcome.ERROR, None, None),
        verdict(Outcome.UNSUPPORTED, None, None),
    ]
    assert views.worst_first(rows) == [rows[index] for index in (5, 3, 1, 6, 4, 2, 0)]
    frame = views.verdict_frame(replace(sample.empty(), verdicts=tuple(rows)))
    assert list(frame["outcome"][:3]) == ["error", "fail", "fail"]


def test_matrix_counts_every_verdict_once() -> None:
    record = sample.failing()
    frame = views.matrix_frame(record)
    assert int(frame.to_numpy().sum()) == len(record.verdicts)
    row = frame.loc[F32].to_dict()
    assert row["logits", "fail"] == 3
    assert row["logits", "pass"] == 2
    assert frame.loc["torch-cuda-bf16"].sum() == 0


def test_top_lists_are_aligned_by_id() -> None:
    frame = views.top_frame(sample.record(), CASE)
    assert list(frame.index) == list(sample.IDS)
    x = frame.loc[121].to_dict()
    assert (x["rank_ref"], x[BF16, "rank"], x[BF16, "logit"], x[F32, "rank"]) == (9, 10, 3.4844, 9)
    assert views.top_frame(sample.empty(), CASE).empty


def test_an_id_that_only_one_has_is_last_and_missing_elsewhere() -> None:
    record = sample.record()
    extra = {"id": 7, "piece": "z", "rank_ref": None, "rank": 10, "ref": None, "logit": 3.4}
    seen = tuple(
        replace(o, data={**o.data, "rows": [extra, *o.data["rows"]]}) if (o.kind, o.subject) == ("topk", BF16) else o
        for o in record.observations
    )
    frame = views.top_frame(replace(record, observations=seen), CASE)
    assert frame.index[-1] == 7
    assert frame.iloc[-1].to_dict()[F32, "logit"] is None


def test_pivot_tells_unmeasured_from_nan() -> None:
    record = sample.failing()
    frame = views.pivot_frame(record, "logits", "prose")
    assert math.isnan(frame.loc["rms_error"].to_dict()[F32])
    assert views.pivot_frame(record, "logits", CASE).loc["cosine"].get(REF) is None
    some = (Measurement("s", "c", F32, "a", 1.0), Measurement("s", "c", BF16, "b", None))
    wide = views.pivot_frame(replace(record, measurements=some), "s", "c")
    assert wide.loc["a", BF16] is None
    assert list(wide.columns) == [F32, BF16]


def test_lookups() -> None:
    record = sample.record()
    assert views.value(record, "logits", CASE, F32, views.RMS) == 2.9e-7
    assert views.value(record, "logits", CASE, F32, ("nothing",)) is None
    assert [subject.id for subject in views.shown(record)] == [REF, F32, BF16]
    assert views.suites(record)[:2] == ["tokenization", "logits"]
    honest = views.honest_for(record, record.subjects[2])
    assert honest is not None
    assert honest.id == "honest@bf16"
    assert views.honest_for(record, Subject("x", "candidate")) is None
    assert views.reference(sample.empty()) is None


def test_csv_has_every_measurement() -> None:
    rows = (
        Measurement("s", "c", "=cmd()", "n", math.nan, "u", "a,b\n\ud800"),
        Measurement("s", "c", "x", "n", None),
        Measurement("s", "c", "x", "n", 0.1),
        Measurement("s", "c", "x", "n", -math.inf),
    )
    text = views.measurements_csv(replace(sample.record(), measurements=rows))
    back = list(csv.DictReader(io.StringIO(text)))
    assert [row["value"] for row in back] == ["nan", "", "0.1", "-inf"]
    assert back[0]["subject"] == "'=cmd()"
    assert back[0]["where"] == "a,b\\n\\ud800"
    assert {row["run"] for row in back} == {sample.record().id}
    assert views.measurements_csv(sample.empty()).count("\n") == 1
