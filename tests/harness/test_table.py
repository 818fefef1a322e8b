"""The terminal: matrix, failures, the last line."""

from dataclasses import replace
from typing import Any

import pytest

from harness.table import MOST, failures, matrix, verdict_line
from reports.record import Measurement, Outcome, Record, Subject, Verdict

PASS, FAIL, ERROR, SKIPPED, UNSUPPORTED = (
    Outcome.PASS, Outcome.FAIL, Outcome.ERROR, Outcome.SKIPPED, Outcome.UNSUPPORTED,
)  # fmt: skip


def record(*verdicts: Verdict, **more: Any) -> Record:
    return Record(
        id="1", created="2020-01-01T00:00:00+00:00", status="complete", model={"name": "m"},
        profile={"name": "strict"},
        suites=({"name": "logits", "cases": [{"name": "c"}]}, {"name": "speed", "cases": [{"name": "c"}]}),
        subjects=(Subject("ref", "reference"), Subject("a", "candidate"), Subject("b", "candidate")),
        verdicts=verdicts, **more,
    )  # fmt: skip


def verdict(
    outcome: Outcome, subject: str = "a", case: str = "c", criterion: str = "strict/logits.rms", detail: str = ""
) -> Verdict:
    return Verdict("logits", case, subject, criterion, outcome, detail=detail)


def cells(made: Record) -> dict[str, list[str]]:
    header, *rows = matrix(made).splitlines()
    start = [header.index(name) for name in header.split()]
    ends = [*start[1:], None]
    return {row.split()[0]: [row[a:b].strip() for a, b in zip(start, ends, strict=True)] for row in rows}


@pytest.mark.parametrize(
    ("found", "cell"),
    [
        ((), "-"),
        ((PASS, PASS), "2/2"),
        ((PASS, FAIL), "1/2 FAIL"),
        ((PASS, FAIL, ERROR), "1/3 ERROR"),
        ((PASS, UNSUPPORTED), "1/1, 1 unsup."),
        ((UNSUPPORTED,), "unsup."),
        ((SKIPPED, SKIPPED), "skipped"),
        ((FAIL, UNSUPPORTED), "0/1 FAIL"),
    ],
)
def test_a_cell_says_the_worst(found: tuple[Outcome, ...], cell: str) -> None:
    assert cells(record(*map(verdict, found)))["a"][0] == cell


def test_the_reference_has_no_row() -> None:
    assert set(cells(record())) == {"a", "b"}


def test_speed_shows_decode() -> None:
    rates = [
        Measurement("speed", "c", "a", "prefill_T16_B1_tokens_per_s", 900.0, "tokens/s"),
        Measurement("speed", "c", "a", "decode_T16_B1_tokens_per_s", 51.6, "tokens/s"),
    ]
    assert cells(record(measurements=tuple(rates)))["a"][1] == "52 tok/s"
    assert cells(record())["b"][1] == "-"


def test_errors_come_first_and_a_criterion_once() -> None:
    lines = list(
        failures(
            record(
                verdict(FAIL, case="one", detail="off by 1"),
                verdict(FAIL, case="two", detail="off by 2"),
                verdict(FAIL, "b", case="one", detail="off by 3"),
                verdict(ERROR, case="three", detail="died"),
                verdict(ERROR, case="four", detail="died"),
                verdict(ERROR, case="five", detail="hung"),
                verdict(PASS),
            )
        )
    )
    assert lines == [
        "ERROR a: strict/logits.rms, case three: died (and 1 more case)",
        "ERROR a: strict/logits.rms, case five: hung",
        "FAIL a: strict/logits.rms, case one: off by 1 (and 1 more case)",
        "FAIL b: strict/logits.rms, case one: off by 3",
    ]


def test_a_long_list_ends_in_words() -> None:
    lines = list(failures(record(*(verdict(FAIL, criterion=f"strict/{n}") for n in range(MOST + 5)))))
    assert len(lines) == MOST + 1
    assert lines[-1] == "... and 5 more; the report has all"


@pytest.mark.parametrize(
    ("found", "line"),
    [
        ((PASS,), "PASSED: m under profile strict: 1 pass, 0 fail, 0 skipped, 0 unsupported, 0 error"),
        ((PASS, FAIL), "FAILED: m under profile strict: 1 pass, 1 fail, 0 skipped, 0 unsupported, 0 error"),
        ((FAIL, ERROR), "BROKEN: m under profile strict: 0 pass, 1 fail, 0 skipped, 0 unsupported, 1 error"),
    ],
)
def test_the_last_line(found: tuple[Outcome, ...], line: str) -> None:
    assert verdict_line(record(*map(verdict, found))) == line


def test_nothing_judged_says_why() -> None:
    assert verdict_line(record()).endswith("; no criterion of this profile looks at these suites")
    assert verdict_line(record(verdict(UNSUPPORTED))).endswith("; what was asked is not supported, or was skipped")


@pytest.mark.parametrize("status", ["running", "interrupted"])
def test_an_unfinished_run_has_not_passed(status: str) -> None:
    line = verdict_line(replace(record(verdict(PASS)), status=status))
    assert line.startswith(f"UNFINISHED ({status}), so far PASSED: m")


def test_a_crash_is_broken_whatever_passed() -> None:
    assert verdict_line(replace(record(verdict(PASS)), status="crashed")).startswith("BROKEN: ")
