"""Command bench: what can be typed, what it prints, and its exit code."""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from backends.errors import UsageError
from harness import racing
from harness.options import parser
from reports import store
from reports.record import Observation, Outcome, Record, Verdict
from tests.harness.conftest import Command
from tests.reports import sample

SMALL = ("--prefill", "4", "--position", "0,8", "--rounds", "2", "--threads", "1", "--honest-runs", "2")


def typed(*arguments: str) -> argparse.Namespace:
    return parser().parse_args(["bench", *arguments])


def test_a_plain_bench_has_positions_limits_and_a_control_in_every_cell() -> None:
    found = racing.asked(typed())
    assert found == racing.QUICK
    assert (found["probe"], found["control"]) == (True, ["decode", "prefill"])


def test_a_full_bench_times_everything() -> None:
    found = racing.asked(typed("--full"))
    assert found["prefill"] == [1, 16, 128, 512, 4096]
    assert found["batches"] == [1, 4, 16, 64]
    assert found["positions"] == [0, 10_000, 100_000]


def test_lists_replace_what_is_usual() -> None:
    found = racing.asked(typed("--prefill", "128,1", "--batch", "4,1,4", "--position", "0,10000", "--rounds", "5"))
    assert (found["prefill"], found["batches"], found["positions"]) == ([1, 128], [1, 4], [0, 10000])
    assert (found["rounds"], found["patient"]) == (5, True)
    assert racing.asked(typed("--full", "--batch", "2"))["batches"] == [2]


@pytest.mark.parametrize(
    ("option", "text"),
    [("--prefill", "0"), ("--batch", "one"), ("--position", "-1"), ("--rounds", "0"), ("--prefill", "1,,2")],
)
def test_what_is_no_number_is_refused_in_words(option: str, text: str) -> None:
    with pytest.raises(UsageError, match=rf"{option} takes whole numbers from [01], separated by commas; got "):
        racing.asked(typed(f"{option}={text}"))


def passed(*more: Observation) -> Record:
    verdict = Verdict("logits", "x", "x", "c", Outcome.PASS)
    return Record("20260101T000000Z-00000000", "2026", verdicts=(verdict,), observations=more)


def seen(kind: str, **data: Any) -> Observation:
    return Observation("speed", "long", "x", kind, data)


def test_exit_codes() -> None:
    assert racing.exit_code(passed(seen("samples", invalid=False)), compared=False) == 0
    assert racing.exit_code(passed(seen("samples", invalid=True)), compared=False) == 1
    for verdicts, code in (
        (("equivalent", "incomparable"), 0),
        (("faster", "inconclusive"), 0),
        (("equivalent", "slower"), 1),
        (("incomparable",), 5),
        ((), 5),
    ):
        assert racing.exit_code(passed(*(seen("history", verdict=v) for v in verdicts)), compared=True) == code
    failed = replace(passed(), verdicts=(Verdict("logits", "x", "x", "c", Outcome.FAIL),))
    assert racing.exit_code(failed, compared=True) == 1
    assert racing.exit_code(replace(failed, verdicts=(*passed().verdicts, *failed.verdicts)), compared=True) == 1
    assert racing.exit_code(replace(passed(), verdicts=()), compared=False) == 5


def test_evidence_is_light() -> None:
    found = racing.evidence(sample.record())["speed"]
    assert {"samples", "ratio", "control", "noise", "limits", "latency", "opening", "history"} == set(found)
    assert all("seconds" not in row for row in found["samples"])
    assert found["ratio"][0]["verdict"] == "faster"


def test_lines_are_a_table_and_sentences() -> None:
    lines = list(racing.lines(sample.record()))
    assert lines[0].split() == ["tokens/s", "interval", "of", "the", "limit", "ratio", "verdict"]
    assert any(line.startswith("decode 64 x 1") and line.endswith("faster") for line in lines)
    assert any(line.startswith("Control: ") for line in lines)


def test_a_run_and_its_baseline(command: Command) -> None:
    """The whole way, on the designed checkpoint: no speed is asserted."""
    common = ("bench", "--backend", "torch-cpu-f32", *SMALL, "--format", "json")
    done = command(*common)
    assert done.code == 0
    assert "decode 16 x 1" in done.out
    assert "cost of a token from position 0 to 8" in done.out
    (path,) = (done.folder / "records").glob("*.json")
    record = done.record
    assert record.job["speed"]["prefill"] == [4]
    assert {m.case for m in record.measurements if m.suite == "logits"} == {"fibonacci", "code"}
    (speed,) = (one for one in record.suites if one["name"] == "speed")
    assert speed["cases"][0]["prefill"] == [4]
    kinds = {o.kind for o in record.observations if o.suite == "speed"}
    assert {"samples", "control", "limits", "latency", "opening"} <= kinds
    names = {m.name for m in record.measurements if m.suite == "speed"}
    assert {"decode_T16_B1_tokens_per_s", "prefill_T4_B1_tokens_per_s", "load_time", "first_answer"} <= names
    again = command(*common, "--baseline", str(path), "--json")
    data = json.loads(again.out)
    history = data["speed"]["history"]
    assert {row["what"] for row in history} == {"decode", "prefill"}
    assert {row["verdict"] for row in history} <= {"faster", "slower", "equivalent", "inconclusive"}
    assert again.code == (1 if "slower" in {row["verdict"] for row in history} else 0)


def test_several_records_make_a_page(command: Command, tmp_path: Path) -> None:
    files = []
    for number in (1, 2):
        record = replace(sample.record(), id=f"2026010{number}T000000Z-00000000")
        files.append(store.save(record, tmp_path / "docs" / "records"))
    chosen = [word for file in files for word in ("--record", str(file))]
    done = command("report", *chosen, "--format", "speed", "--out", str(tmp_path / "docs"))
    assert (done.code, done.out) == (0, f"wrote {tmp_path / 'docs' / 'README.md'}\n")
    text = (tmp_path / "docs" / "README.md").read_text(encoding="utf-8")
    assert text.count("[the record](records/2026010") == 2
    pictures = re.findall(r"!\[[^\]]+\]\((plots/[^)]+\.svg)\)", text)
    assert len(pictures) == len(set(pictures)) == 6
    assert all("--s1:" in (tmp_path / "docs" / name).read_text(encoding="utf-8") for name in pictures)
    listed = json.loads(command("report", *chosen, "--format", "speed", "--out", str(tmp_path / "b"), "--json").out)
    assert len(listed["files"]) == 7
    assert "[the record]" not in (tmp_path / "b" / "README.md").read_text(encoding="utf-8")


def test_a_page_has_to_have_records_with_timings(command: Command, tmp_path: Path) -> None:
    done = command("report", "--format", "speed")
    assert (done.code, "name them with --record" in done.err) == (2, True)
    empty = store.save(replace(sample.record(), observations=()), tmp_path)
    done = command("report", "--format", "speed", "--record", str(empty))
    assert (done.code, "nothing was timed in that run" in done.err) == (3, True)
    done = command("report", "--record", str(empty), "--record", str(empty))
    assert (done.code, "add --format speed" in done.err) == (2, True)


def test_a_baseline_that_is_missing_is_told_before_anything_is_timed(command: Command) -> None:
    done = command("bench", "--baseline", "nowhere.json")
    assert (done.code, done.out) == (3, "")
    assert done.err.startswith("error: nowhere.json")
