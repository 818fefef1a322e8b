"""Command bench: tokens per second of subjects whose logits are right, against each other, the machine and the past."""

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.errors import UsageError

if TYPE_CHECKING:
    from reports.record import Observation, Record

QUICK: dict[str, Any] = {
    "prefill": [16, 128, 512],
    "decode": 16,
    "batches": [1],
    "positions": [0, 512, 1024],
    "rounds": 24,
    "longer": 3,
    "least": 0.02,
    "seconds": 8.0,
    "control": ["decode", "prefill"],
    "probe": True,
}
"""What a plain `bench` times."""

FULL = QUICK | {
    "prefill": [1, 16, 128, 512, 4096],
    "batches": [1, 4, 16, 64],
    "positions": [0, 10_000, 100_000],
    "seconds": 20.0,
    "most": 4096,
}
"""What `--full` times; prompts of more than 4096 tokens, all rows together, are left out."""


def add_options(p: argparse.ArgumentParser) -> None:
    """What can be typed besides the subjects."""
    p.add_argument("--prefill", default="", metavar="T,T", help="lengths of prompts (default: 16,128,512)")
    p.add_argument("--batch", default="", metavar="B,B", help="rows (default: 1)")
    p.add_argument("--position", default="", metavar="P,P", help="where one more token is timed (default: 0,512,1024)")
    p.add_argument("--rounds", default="", metavar="N", help="of every cell (default: 24, fewer of the slow)")
    p.add_argument("--full", action="store_true", help="prefill 1 to 4096, batch 1 to 64, positions up to 100,000")
    p.add_argument("--baseline", default="", metavar="FILE", help="an earlier record; exit 1 on what has become slower")


def asked(options: argparse.Namespace) -> dict[str, Any]:
    """The options of suite speed that a command line comes to.

    Raises:
        UsageError: what is no list of whole numbers, or a number that is too small.
    """
    found = dict(FULL if options.full else QUICK)
    for key, name, least in (("prefill", "prefill", 1), ("batches", "batch", 1), ("positions", "position", 0)):
        typed = getattr(options, name)
        if typed:
            found[key] = sorted({_whole(part, f"--{name}", least) for part in typed.split(",")})
    if options.rounds:
        found |= {"rounds": _whole(options.rounds, "--rounds", 1), "patient": True}
    return found


def _whole(text: str, option: str, least: int) -> int:
    if not text.strip().isdecimal() or int(text) < least:
        raise UsageError(f"{option} takes whole numbers from {least}, separated by commas; got {text!r}.")
    return int(text)


def bench(options: argparse.Namespace) -> int:
    """Time, compare with the baseline, write the documents, print the tables."""
    from harness import cli, history

    options.speed = asked(options)
    earlier = history.timed_record(Path(options.baseline)) if options.baseline else None

    def compared(record: "Record") -> "Record":
        return history.with_history(record, earlier) if earlier else record

    record = cli.measured(options, compared)
    paths = cli.written(record, options)
    if options.json:
        print(json.dumps({**cli.digest(record, paths), **evidence(record)}, indent=1, ensure_ascii=False))
    else:
        from harness.table import failures, verdict_line

        for line in (*lines(record), *failures(record)):
            print(line)
        cli.print_paths(paths)
        print(verdict_line(record))
    return exit_code(record, bool(earlier))


def page(options: argparse.Namespace) -> int:
    """One page of the timings of all records that were named, with plots beside it, in the folder --out."""
    from harness import history
    from reports import benchmarks

    paths = [Path(name) for name in options.record]
    if not paths:
        raise UsageError("--format speed draws records that were timed: name them with --record.")
    written = benchmarks.write({path: history.timed_record(path) for path in paths}, Path(options.out), options.typed)
    print(json.dumps({"files": list(map(str, written))}, indent=1) if options.json else f"wrote {written[0]}")
    return 0


def exit_code(record: "Record", compared: bool) -> int:
    """As `validate`; 1 too where a figure is invalid or slower than the baseline's, 5 where none could be compared."""
    code = record.exit_code()
    if code:
        return code
    verdicts = [seen.data["verdict"] for seen in _seen(record, "history")]
    if any(seen.data.get("invalid") for seen in _seen(record, "samples")) or "slower" in verdicts:
        return 1
    return 5 if compared and not set(verdicts) - {"incomparable"} else 0


def evidence(record: "Record") -> dict[str, Any]:
    """What `--json` prints of the timings, without the single samples."""
    kinds = ("samples", "ratio", "control", "noise", "limits", "latency", "opening", "history")
    heavy = ("seconds", "limit_seconds", "whole_seconds", "samples", "read", "copy", "gemm")
    rows = {kind: [_light(seen, heavy) for seen in _seen(record, kind)] for kind in kinds}
    return {"speed": {kind: found for kind, found in rows.items() if found}}


def _light(seen: "Observation", heavy: tuple[str, ...]) -> dict[str, Any]:
    return {"subject": seen.subject, **{key: value for key, value in seen.data.items() if key not in heavy}}


def _seen(record: "Record", kind: str) -> list["Observation"]:
    return [seen for seen in record.observations if seen.suite == "speed" and seen.kind == kind]


def lines(record: "Record") -> Iterator[str]:
    """The tables that the terminal shows."""
    from reports import timings
    from reports.text import plain

    rows = [list(map(plain, row)) for row in timings.terminal(record)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        left = row[0].ljust(widths[0])
        yield "  ".join(
            [left, *(cell.rjust(width) for cell, width in zip(row[1:-1], widths[1:-1], strict=True)), row[-1]]
        ).rstrip()
    yield from timings.sentences(record)
