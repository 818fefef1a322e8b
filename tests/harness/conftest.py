"""Runs of the command line in this process, with wrong backends at hand."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from harness.cli import run_command
from reports.record import Record
from reports.store import load
from tests.harness import fakes


@dataclass(frozen=True)
class Result:
    """What one command line came to."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def record(self) -> Record:
        """The newest record of the folder."""
        return load(sorted((self.folder / "records").glob("*.json"))[-1])


Command = Callable[..., Result]


@pytest.fixture
def backends_for_tests() -> Iterator[None]:
    with fakes.registered():
        yield


@pytest.fixture
def command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Command:
    monkeypatch.delenv("GITHUB_STEP_SUMMARY", raising=False)
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")

    def run(*arguments: str) -> Result:
        writes = arguments and arguments[0] in ("validate", "report", "bench")
        out = ["--out", str(tmp_path)] if writes and "--out" not in arguments else []
        code = run_command([*arguments, *out])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err, tmp_path)

    return run
