"""Whole suites, recorded and judged again without the backend: the same numbers, verdicts and diagnosis."""

import json
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.errors import InputError
from backends.tape import Tape
from harness import recorded
from harness.job import Job, make_job
from harness.run import run
from reports.record import Record
from tests.harness import fakes
from tests.harness.conftest import Command
from tests.harness.stub import small_suites

PORT = Path(__file__).parents[1] / "backends" / "numpy_server.py"

pytestmark = pytest.mark.usefixtures("one_thread")

SUITES = ("tokenization", "logits", "distribution", "stepwise", "consistency", "generation", "state", "layers")


def quiet(_: Any) -> None:
    """Nobody listens."""


def made(folder: Path, subject: str, *suites: str, **settings: Any) -> str:
    """Record a subject on the designed checkpoint; how the recording is written as a backend."""
    recorded.record(make_job("conformance", (subject,), suites or SUITES, diagnosis=True, **settings), folder, quiet)
    return make_job("conformance", (f"recorded:{folder}",)).subjects[0]


def rows(record: Record, subject: str) -> list[str]:
    """Every number, verdict and piece of evidence of a subject, to the last bit."""
    found = [
        f"{m.suite} {m.case} {m.name} {m.value!r} {m.unit} {m.where}"
        for m in record.measurements
        if m.subject == subject
    ]
    judged = [v for v in record.verdicts if v.subject == subject]
    found += [f"{v.suite} {v.case} {v.criterion} {v.outcome} {v.value!r} {v.limit} {v.detail}" for v in judged]
    return found + [f"{o.suite} {o.case} {o.kind} {o.data!r}" for o in record.observations if o.subject == subject]


def test_the_recording_of_all_suites_is_the_backend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_suites(monkeypatch, 1)
    pairs = {
        subject: made(tmp_path / subject.translate({ord(":"): "-", ord("@"): "-"}), subject, seed=3)
        for subject in ("torch-cpu-f32", "honest:3", "fault:w-v6@bf16")
    }
    subjects = tuple(name for pair in pairs.items() for name in pair)
    job = Job("conformance", subjects, suites=SUITES, honest_runs=2, seed=3, diagnosis=True)
    record = run(job, quiet, quiet)
    for live, played in pairs.items():
        assert len(rows(record, live)) > 80
        assert rows(record, played) == rows(record, live), live
    (cause,) = {str(o.data["cause"]) for o in record.observations if o.kind == "diagnosis" and "fault" in o.subject}
    assert cause == "w-v6"
    assert all(not subject.error for subject in record.subjects)
    sizes = [sum(file.stat().st_size for file in folder.iterdir()) for folder in tmp_path.iterdir()]
    assert max(sizes) < 40e6


def test_one_suite_of_a_recording_by_chance_is_found_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small_suites(monkeypatch)
    played = made(tmp_path / "rec", "honest:3", "logits", "consistency", "stepwise")
    record = run(Job("conformance", (played,), suites=("stepwise",), honest_runs=2), quiet, quiet)
    assert {v.outcome.value for v in record.verdicts} <= {"pass", "fail"}
    assert record.measurements


def test_a_program_is_recorded_with_its_tokenizer_and_its_generation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_suites(monkeypatch)
    port = f"process:{shlex.join([sys.executable, str(PORT)])}"
    suites = ("tokenization", "generation", "stepwise")
    played = made(tmp_path / "rec", port, *suites)
    record = run(Job("conformance", (port, played), suites=suites, honest_runs=2), quiet, quiet)
    assert rows(record, played) == rows(record, port)
    assert record.exit_code() == 0


# ---- the commands -------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_suites(monkeypatch)
    monkeypatch.setattr("harness.power._whole", lambda _: False)  # nobody asks for the power of shortened suites


@pytest.mark.usefixtures("small")
def test_record_validate_bench_from_the_command_line(command: Command, tmp_path: Path) -> None:
    out = str(tmp_path / "rec@f32")
    told = command("record", "--backend", "torch-cpu-f32", "--suite", "logits", "--out", out, "--no-diagnosis")
    assert told.code == 0
    out += "/"  # so that what stands behind the @ is no number format
    assert "cases of 1 suites" in told.out
    assert f"validate --model conformance --backend recorded:{out}` judges it" in told.out
    judged = command("validate", "--backend", f"recorded:{out}", "--suite", "logits,stepwise", "--honest-runs", "2")
    assert {v.outcome.value for v in judged.record.verdicts if v.suite == "logits"} <= {"pass", "fail"}
    (missing,) = {v.detail for v in judged.record.verdicts if v.suite == "stepwise"}
    assert missing.startswith("not recorded: forward of 1 tokens")
    assert "torch-cpu-f32 holds what logits asked; `record --suite NAME` keeps what another asks" in missing
    timed = command("bench", "--backend", f"recorded:{out}", "--honest-runs", "2")
    assert f"unsup. recorded:{out}: speed: speed was not recorded: time the backend itself" in timed.out
    again = command("record", "--backend", "torch-cpu-f32", "--suite", "layers", "--out", out, "--json")
    assert json.loads(again.out)["calls"] > 2
    nothing = command("validate", "--backend", f"recorded:{out}", "--suite", "distribution", "--honest-runs", "2")
    assert nothing.code == 5
    assert "mostly because: not recorded: forward of" in nothing.out


@pytest.mark.usefixtures("small")
def test_the_wrong_model_and_damage_end_with_3(command: Command, tmp_path: Path) -> None:
    out = tmp_path / "rec"
    command("record", "--backend", "torch-cpu-f32", "--suite", "logits", "--out", str(out), "--no-diagnosis")
    ask = ("validate", "--suite", "logits", "--honest-runs", "2", "--backend", f"recorded:{out}")
    other = command(*ask, "--model", "conformance?seed=1")
    assert other.code == 3
    assert "was recorded of conformance (fingerprint" in other.err
    (out / "arrays-1.safetensors").unlink()
    damaged = command(*ask)
    assert damaged.code == 3
    assert damaged.err.count("\n") == 1
    compared = command("compare", str(out), str(out))
    assert compared.code == 3
    assert "is a recording of calls: `--backend recorded:" in compared.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--suite", "speed"), "speed cannot be recorded: `python -m harness bench`"),
        (("--suite", "logit"), "Did you mean logits"),
        (("--kit", "kit", "--suite", "logits"), "leave --model and --suite out, or --kit"),
        (("--backend", "torch-cuda-bf16"), "cannot run here"),
    ],
)
def test_what_cannot_be_recorded(command: Command, tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    if "torch-cuda-bf16" in arguments and torch.cuda.is_available():
        pytest.skip("it can run here")
    told = command("record", "--backend", "torch-cpu-f32", *arguments, "--out", str(tmp_path / "rec"))
    assert (told.code, words in told.err) == (2, True), told.err
    assert not (tmp_path / "rec").exists()


def test_somebody_elses_folder_is_left_alone(command: Command, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").touch()
    told = command("record", "--backend", "torch-cpu-f32", "--suite", "logits", "--out", str(tmp_path))
    assert told.code == 3
    assert "holds something else" in told.err


@pytest.mark.usefixtures("small")
def test_what_broke_is_counted_and_replayed(command: Command, tmp_path: Path) -> None:
    out = str(tmp_path / "rec")
    with fakes.registered(dies=lambda weights: fakes.Dies(weights, 1)):
        told = command("record", "--backend", "dies", "--suite", "logits,sampling", "--out", out, "--no-diagnosis")
    assert told.code == 0
    assert "2 unsupported" in told.out
    assert "the first is " in told.out
    judged = command("validate", "--backend", f"recorded:{out}", "--suite", "logits", "--honest-runs", "2")
    assert judged.code == 4
    assert {v.detail for v in judged.record.verdicts if v.outcome.value == "error"} == {"RuntimeError: out of memory"}


@pytest.mark.usefixtures("small")
def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    job = make_job("conformance", ("torch-cpu-f32",), ("logits",))

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Tape, "finish", full)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        recorded.record(job, tmp_path / "rec", quiet)
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="nothing was recorded: sampling, plain: the suite needs sampler"):
        recorded.record(replace(job, suites=("sampling",)), tmp_path / "rec", quiet)
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small")
def test_an_interrupt_writes_nothing(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(recorded, "_suites", interrupted)
    told = command("record", "--backend", "torch-cpu-f32", "--suite", "logits", "--out", str(tmp_path / "rec"))
    assert (told.code, told.err) == (130, "interrupted; nothing was written\n")
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("small")
def test_a_sampler_of_its_own_is_recorded(tmp_path: Path) -> None:
    with fakes.registered():
        played = made(tmp_path / "rec", "right", "sampling")
        record = run(Job("conformance", ("right", played), suites=("sampling",)), quiet, quiet)
    assert rows(record, played) == rows(record, "right")
    assert record.exit_code() == 0


def test_a_kits_dump_is_a_backend(command: Command, tmp_path: Path) -> None:
    kit, dump = str(tmp_path / "kit"), str(tmp_path / "dump")
    command("kit", "--out", kit, "--honest-runs", "2")
    command("record", "--kit", kit, "--backend", "fault:w-v6@bf16", "--out", dump)
    ask = ("validate", "--backend", f"recorded:{dump}", "--honest-runs", "2", "--no-diagnosis", "--suite")
    judged = command(*ask, "logits,layers")
    assert judged.code == 1
    assert "out_of_band is 3 at blocks.0.att.w, layer 0, token 0" in judged.out
    told = {v.suite: v.outcome.value for v in judged.record.verdicts}
    assert told == {"logits": "unsupported", "layers": "fail"}
    nothing = command(*ask, "tokenization,logits")
    assert nothing.code == 5
    assert "its one prompt has 80 tokens" in nothing.out
    assert "`compare KIT DUMP` judges it" in nothing.out
    other = command(*ask, "logits", "--model", "conformance?seed=1")
    assert (other.code, "was recorded of another checkpoint (fingerprint" in other.err) == (3, True)
