"""A record against an earlier one: regressions, loosened limits, what cannot be compared."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from harness import baseline
from harness.compare import compare, table
from reports.record import Measurement, Observation, Outcome, Record, Subject, Verdict
from tests.harness.saved_things import candle_mi, logits, numbers, outcomes, write

CRITERIA = [
    {
        "suite": "logits",
        "measure": "rms",
        "limit": "<= 1e-06",
        "bound": "max",
        "value": 1e-6,
        "when": {"dtype": ["f32"]},
    },
    {"suite": "logits", "measure": "cosine", "limit": ">= 0.9", "bound": "min", "value": 0.9},
    {"suite": "tokenization", "measure": "ids_differ", "limit": "= 0", "bound": "equals", "value": 0},
]


def run(port: str = "port", logit: float = 2.0, rms: float | None = 1e-7, outcome: Outcome = Outcome.PASS) -> Record:
    rows = [
        {"id": i, "piece": f"t{i}", "rank": r, "rank_ref": r, "ref": x, "logit": x}
        for r, i, x in ((1, 5, 7.5), (2, 9, 2.0))
    ]
    rows_port = [rows[0], {**rows[1], "logit": logit}]
    observations = (
        Observation("tokenization", "code", "truth", "tokens", {"prompt": "a", "ids": [7, 8], "pieces": ["a", "b"]}),
        Observation("logits", "code", "truth", "topk", {"k": 2, "position": 1, "rows": rows}),
        Observation("logits", "code", port, "topk", {"k": 2, "position": 1, "rows": rows_port}),
    )
    return Record(
        id="r",
        created="2026-01-01T00:00:00+00:00",
        status="complete",
        profile={"name": "strict", "version": 1, "criteria": CRITERIA},
        model={"name": "m", "version": "7", "n_embd": 64},
        subjects=(Subject("truth", "reference"), Subject(port, "candidate")),
        suites=({"name": "logits", "version": 1}, {"name": "tokenization", "version": 1}),
        measurements=(Measurement("logits", "code", port, "rms", rms), Measurement("logits", "code", port, "n", None)),
        observations=observations,
        verdicts=(Verdict("logits", "code", port, "strict/logits.rms", outcome, rms, "<= 1e-06", 1e-6),),
    )


def judged(tmp_path: Path, a: Record, b: Record, profile: str | None = None) -> Record:
    (tmp_path / "a.json").write_text(a.to_json())
    (tmp_path / "b.json").write_text(b.to_json())
    return compare(tmp_path / "a.json", tmp_path / "b.json", profile=profile)


def test_a_record_equals_itself(tmp_path: Path) -> None:
    record = judged(tmp_path, run(), run(rms=1.3e-7))
    assert record.exit_code() == 0
    assert record.counts()["unsupported"] == 0
    assert numbers(record)["rms_factor"] == pytest.approx(1.3)
    assert {s["name"] for s in record.suites} == {"baseline", "baseline-logits"}
    assert not [note for note in record.notes if "not compared" in note]
    assert max(map(len, table(record).splitlines())) <= 100


def test_one_recorded_logit_off_by_one_percent_fails(tmp_path: Path) -> None:
    record = judged(tmp_path, run(), run(logit=2.02))
    assert record.exit_code() == 1
    assert [v.case for v in record.verdicts if v.outcome is Outcome.FAIL] == ["logits/code: port"]
    assert judged(tmp_path, run(), run(logit=2.02), "seed").exit_code() == 0
    assert judged(tmp_path, run(), run(logit=math.nan)).exit_code() == 1
    assert judged(tmp_path, run(), run(logit=9.0), "seed").exit_code() == 1


def test_regressions_fail(tmp_path: Path) -> None:
    lost = judged(tmp_path, run(), run(outcome=Outcome.FAIL))
    assert lost.exit_code() == 1
    assert "code logits.rms" in next(v.detail for v in lost.verdicts if v.outcome is Outcome.FAIL)
    assert judged(tmp_path, run(outcome=Outcome.FAIL), run()).exit_code() == 0
    assert judged(tmp_path, run(), run(rms=math.nan)).exit_code() == 1
    gone = judged(tmp_path, run(), replace(run(), verdicts=()))
    assert outcomes(gone)["verdicts_missing"] is Outcome.FAIL


def test_numbers_without_criteria_are_judged_by_being_finite(tmp_path: Path) -> None:
    bare = replace(run(), verdicts=(), observations=())
    assert outcomes(judged(tmp_path, bare, bare)) == {"numbers_lost": Outcome.PASS}
    assert judged(tmp_path, bare, replace(bare, measurements=())).exit_code() == 1
    assert judged(tmp_path, bare, bare, "seed").exit_code() == 5


def test_what_is_not_comparable_says_why(tmp_path: Path) -> None:
    other = replace(run(), suites=({"name": "logits", "version": 2}, {"name": "speed", "version": 1}))
    record = judged(tmp_path, run(), other)
    text = " ".join(record.notes)
    assert record.exit_code() == 5
    assert "Suite logits is version 1 and 2" in text
    assert "Suite tokenization is in one record only" in text
    assert "Suite speed is in one record only" in text
    sizes = judged(tmp_path, run(), replace(run(), model={"version": "7", "n_embd": 128}))
    assert sizes.exit_code() == 5
    assert "n_embd 64 and 128" in " ".join(sizes.notes)


def test_candidates_of_other_names(tmp_path: Path) -> None:
    record = judged(tmp_path, run(), run("process:new", logit=2.02))
    assert record.exit_code() == 1
    assert any("process:new is compared with port" in note for note in record.notes)
    more = replace(run("other"), subjects=(*run("other").subjects, Subject("third", "candidate")))
    assert any("third is in one record only" in note for note in judged(tmp_path, run(), more).notes)
    less = replace(run(), observations=run().observations[:2])
    assert any("code of port: logits are in one record only" in note for note in judged(tmp_path, run(), less).notes)


def with_limits(*changes: dict[str, Any], name: str = "strict", bound: float = 1e-6) -> Record:
    rows = [{**row, **change} for row, change in zip(CRITERIA, changes, strict=False)]
    verdict = replace(run().verdicts[0], bound=bound)
    return replace(run(), profile={"name": name, "criteria": rows}, verdicts=(verdict,))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (({}, {}, {}), ""),
        (({"value": 1e-7, "limit": "<= 1e-07"}, {"value": 0.95}, {}), ""),
        (({"bound": "below"}, {}, {}), ""),
        (({"value": 1e-5, "limit": "<= 1e-05"}, {}, {}), "logits.rms (dtype=['f32']) was <= 1e-06, is <= 1e-05"),
        (({"value": math.nan}, {}, {}), "Limit loosened: logits.rms"),
        (({}, {"value": 0.5, "limit": ">= 0.5"}, {}), "logits.cosine was >= 0.9, is >= 0.5"),
        (({}, {}, {"value": 1, "limit": "= 1"}), "tokenization.ids_differ was = 0, is = 1"),
        (({"bound": "envelope", "value": 3.0, "limit": "<= 3 x honest"}, {}, {}), "is <= 3 x honest"),
        (({}, {}), "No longer judged: tokenization.ids_differ"),
    ],
)
def test_loosened_limits_are_noticed(changes: tuple[dict[str, Any], ...], said: str) -> None:
    notes = " ".join(baseline.loosened(run(), with_limits(*changes)))
    assert said in notes
    assert bool(notes) == bool(said)


def test_limits_as_applied_and_profiles_are_compared() -> None:
    assert baseline.loosened(run(), with_limits({}, {}, {}, bound=1.5e-6)) == []
    grown = baseline.loosened(run(), with_limits({}, {}, {}, bound=5e-6))
    assert grown == ["Limit as applied grew: logits.rms from 1e-06 to 5e-06."]
    assert baseline.loosened(run(), with_limits({}, {}, {}, name="seed")) == [
        "Judged by different profiles: strict and seed."
    ]


def test_a_record_against_a_dump(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text(run(logit=2.02).to_json())
    rows = [{"token_id": 5, "token": "x", "logit": 7.5}, {"token_id": 9, "token": "y", "logit": 2.0}]
    same = write(tmp_path / "d.json", candle_mi(top_predictions=rows))
    assert compare(tmp_path / "run.json", same).exit_code() == 0  # as reference, the record's reference counts
    assert compare(same, tmp_path / "run.json").exit_code() == 1  # as candidate, its candidate
    other = write(tmp_path / "e.json", candle_mi(token_ids=[1]))
    record = compare(tmp_path / "run.json", other)
    assert record.exit_code() == 5
    assert "has other tokens; the record keeps logits of the prompts code" in " ".join(record.notes)
    np.save(tmp_path / "f.npy", logits())
    assert "records no tokens" in " ".join(compare(tmp_path / "run.json", tmp_path / "f.npy").notes)
    empty = Record(id="r", created="now")
    (tmp_path / "empty.json").write_text(empty.to_json())
    assert "of the prompts none" in " ".join(compare(tmp_path / "empty.json", other).notes)


def test_the_result_is_plain_json(tmp_path: Path) -> None:
    data = json.loads(judged(tmp_path, run(), run()).to_json())
    assert data["profile"]["criteria"]
    assert data["environment"]["python"]
