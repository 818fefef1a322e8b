import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

import pytest

from reports import document, output, store
from reports.junit import junit
from reports.record import Outcome, Record, RecordError, Verdict
from tests.reports import sample


def test_every_format_is_written(tmp_path: Path) -> None:
    for record in (sample.record(), sample.failing(), sample.empty(), sample.hostile()):
        paths = output.write(record, tmp_path / record.id)
        names = ["report.html", "report.md", "record.json", "junit.xml", "measurements.csv", "summary.md"]
        assert [path.name for path in paths] == names
        assert all(path.stat().st_size for path in paths)
        assert store.load(paths[2]).to_json() == record.to_json()
        json.loads(paths[2].read_text(encoding="utf-8"))


def test_one_format_and_an_unknown_one(tmp_path: Path) -> None:
    assert [path.name for path in output.write(sample.record(), tmp_path, ["junit"])] == ["junit.xml"]
    with pytest.raises(RecordError, match="unknown format 'pdf'; there are html, md, json"):
        output.write(sample.record(), tmp_path / "none", ["html", "pdf"])
    assert not (tmp_path / "none").exists()


def cases(record: Record) -> list[ET.Element]:
    return list(ET.fromstring(junit(record)).iter("testcase"))


def test_junit_has_one_case_a_verdict() -> None:
    record = sample.record()
    root = ET.fromstring(junit(record))
    assert len(cases(record)) == len(record.verdicts)
    assert {name: root.get(name) for name in ("tests", "failures", "errors", "skipped")} == {
        "tests": "9",
        "failures": "0",
        "errors": "0",
        "skipped": "1",
    }
    messages = [node.get("message") for node in root.iter("skipped")]
    assert messages == ["torch-compile lacks ability 'state'"]


def test_junit_of_failures_and_errors() -> None:
    root = ET.fromstring(junit(sample.failing()))
    assert (root.get("failures"), root.get("errors")) == ("4", "2")
    messages = [node.get("message", "") for node in root.iter("failure")]
    assert "measured NaN, allowed <= 8.1e-07" in messages
    assert {node.get("message") for node in root.iter("error")} == {
        "the state verb raised KeyError",
        "CUDA is not available on this machine",
    }
    names = [(case.get("classname"), case.get("name")) for case in root.iter("testcase")]
    assert len(names) == len(set(names))


def test_junit_of_nothing_is_not_green() -> None:
    root = ET.fromstring(junit(sample.empty()))
    assert root.get("errors") == "2"
    assert [node.get("message") for node in root.iter("error")] == ["the run is running", "nothing was judged"]
    only = replace(
        sample.record(), verdicts=(Verdict("s", "", "x", "k", Outcome.SKIPPED, detail="asked for"),), status="complete"
    )
    assert [node.get("message") for node in ET.fromstring(junit(only)).iter("error")] == ["nothing was judged"]


def test_junit_survives_hostile_text() -> None:
    root = ET.fromstring(junit(sample.hostile()))
    assert "<script>" in (next(root.iter("failure")).get("message") or "")


def test_summary_is_short_and_has_the_worst() -> None:
    text = output.summary(sample.failing())
    assert len(text.splitlines()) < 40
    assert "**Broken: 8 of 12 verdicts passed" in text
    assert "| `torch-cpu-f32` | 1/1 |" in text
    assert "case prose; also code and zh; measured NaN; allowed &lt;= 8.1e-07" in text
    many = tuple(Verdict("s", "c", "x", f"k{n}", Outcome.FAIL, 2.0, "<= 1", 1.0) for n in range(14))
    text = output.summary(replace(sample.record(), verdicts=many))
    assert text.count("**fail**") == output.MOST_FAILURES
    assert "and 4 more, in the report" in text
    assert "|" not in output.summary(sample.empty())
    assert "<script" not in output.summary(sample.hostile()).split("```")[0]


def test_a_ragged_table_is_refused() -> None:
    with pytest.raises(ValueError, match="ragged"):
        document.table(["a", "b"], [["1"]], "c")
    assert document.table(["a"], [[None]], "c").rows[0][0][0].text == "—"
