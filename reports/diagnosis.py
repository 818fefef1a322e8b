"""Section Diagnosis: where each failed subject goes wrong, the known mistake that explains it, and its rivals."""

from typing import Any

from reports import views
from reports.document import Block, Blocks, Bullets, Cell, Fold, say, table
from reports.record import Record
from reports.text import MISSING, Rich, Span, code, num, number_of, rich, times


def diagnosis(record: Record) -> Blocks:
    """Two sentences a subject, what the tensor looks like, and the nearest known mistakes; nothing without evidence."""
    blocks: list[Block] = []
    for seen in views.evidence(record, "diagnosis"):
        blocks.append(_said(seen.subject, seen.data))
        if seen.data.get("hints"):
            blocks.append(Bullets(tuple(rich(str(hint)) for hint in seen.data["hints"])))
        if seen.data.get("suspects"):
            blocks.append(Fold(rich("Known mistakes by distance, ", code(seen.subject)), (_suspects(seen.data),)))
    return tuple(blocks)


def _said(subject: str, data: dict[str, Any]) -> Block:
    where, what = (_marked(str(sentence)) for sentence in data["sentences"])
    strong = tuple(span if span.style else Span(span.text, "strong") for span in where)
    return say(code(subject), ". ", strong, " ", what)


def _marked(sentence: str) -> Rich:
    """A sentence whose names stand between backticks."""
    return tuple(code(part) if at % 2 else Span(part) for at, part in enumerate(sentence.split("`")) if part)


def _suspects(data: dict[str, Any]) -> Block:
    """The nearest first; how far each is from the subject, and how many times nearer than the truth."""
    far, floor = number_of(data.get("truth_distance")), number_of(data.get("floor"))
    rows: list[list[Cell]] = []
    for row in data["suspects"]:
        distance = number_of(row["distance"])
        nearer = times(far / distance) if far and distance else MISSING
        rows.append([code(row["cause"]), num(distance), nearer])
    rows.append(["the truth", num(far), times(1.0)])
    rows.append(["honest rounding, at most", num(floor), MISSING])
    columns: list[Cell] = ["Planted", "RMS distance of logits", "Nearer than the truth"]
    return table(columns, rows, "The subject's distance from the equations with known mistakes planted")
