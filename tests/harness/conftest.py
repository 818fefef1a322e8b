"""Runs of the command line in this process, with wrong backends at hand; a clock; an examination."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest

from backends.base import Session
from backends.checkpoint import open_checkpoint
from backends.registry import open_session, parse
from backends.weights import Weights
from harness import cells, energy
from harness.cli import run_command
from harness.diagnose import EDGE, TOKENS, Clinic
from harness.ledger import encode
from harness.suite import prompts
from reports.record import Record
from reports.store import load
from tests.harness import fakes
from tests.harness.clock import Clock


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


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """Of every session that is timed."""
    made = Clock()
    monkeypatch.setattr(cells, "time", SimpleNamespace(perf_counter=made.perf_counter))
    monkeypatch.setattr(energy, "counter", lambda device: (None, "not in tests"))
    return made


@pytest.fixture(scope="module")
def weights() -> Iterator[Weights]:
    """The designed checkpoint."""
    with open_checkpoint("conformance") as found:
        yield found


@pytest.fixture(scope="module")
def clinic(weights: Weights) -> Clinic:
    def opened(name: str) -> Session:
        return open_session(parse(name), weights, 1)

    truth = opened("reference-f64")
    tokens = encode(prompts()["long"].text, truth.tokenizer, 256)[:TOKENS]
    return Clinic(opened, truth, tokens, EDGE, tokenizer=truth.tokenizer)
