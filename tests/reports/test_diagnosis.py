"""Section Diagnosis: two sentences, the names in code, the suspects folded."""

from typing import Any

from reports.diagnosis import diagnosis
from reports.document import Bullets, Fold, Paragraph, Table
from reports.record import Observation, Record
from reports.render import html, markdown
from reports.text import plain

DATA: dict[str, Any] = {
    "tensor": "att.w", "layer": 0, "token": 3, "ratio": 120.0, "cause": "w-v6", "explained": True,
    "sentences": ["Layer 0, token 3: `att.w` is wrong.", "Known mistake `w-v6`: <the> decay of v6."],
    "hints": ["w has the wrong sign."], "truth_distance": 2.0, "floor": 0.001,
    "suspects": [{"cause": "w-v6", "distance": 0.01}, {"cause": "w-log", "distance": "inf"}],
}  # fmt: skip


def record(data: dict[str, Any]) -> Record:
    return Record(
        "id", "2026-01-01T00:00:00+00:00", observations=(Observation("logits", "", "port", "diagnosis", data),)
    )


def test_the_section_says_where_and_what() -> None:
    said, hints, fold = diagnosis(record(DATA))
    assert isinstance(said, Paragraph)
    assert plain(said.text) == "port. Layer 0, token 3: att.w is wrong. Known mistake w-v6: <the> decay of v6."
    assert [span.text for span in said.text if span.style == "code"] == ["port", "att.w", "w-v6"]
    assert isinstance(hints, Bullets)
    assert isinstance(fold, Fold)
    table = fold.blocks[0]
    assert isinstance(table, Table)
    assert [plain(row[0]) for row in table.rows] == ["w-v6", "w-log", "the truth", "honest rounding, at most"]
    assert plain(table.rows[0][2]).startswith("200")


def test_without_suspects_and_second_sentence() -> None:
    blocks = diagnosis(record({"sentences": ["The logits are fine.", ""], "hints": [], "suspects": []}))
    assert len(blocks) == 1


def test_a_record_without_diagnosis_has_no_section() -> None:
    assert diagnosis(Record("id", "")) == ()


def test_both_documents_have_it_escaped() -> None:
    assert "## Diagnosis" in markdown(record(DATA))
    assert "&lt;the&gt; decay" in html(record(DATA))
