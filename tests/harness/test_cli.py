"""Exit codes and messages: what somebody who types sees."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli, job
from reports.record import Outcome
from tests.harness.conftest import Command

ROOT = Path(__file__).parents[2]
QUICK = ("--honest-runs", "3", "--threads", "1")

pytestmark = pytest.mark.usefixtures("backends_for_tests")


def test_0_when_everything_passes(command: Command) -> None:
    done = command("validate", "--backend", "torch-cpu-f32", "--suite", "tokenization,logits", *QUICK)
    assert done.code == 0
    assert done.out.splitlines()[-1].startswith("PASSED: conformance under profile strict: ")
    assert {path.name for path in done.folder.glob("*.*")} == {
        "report.html", "report.md", "record.json", "junit.xml", "measurements.csv", "summary.md",
    }  # fmt: skip
    assert done.record.status == "complete"
    assert done.err == ""


def test_1_when_a_program_is_wrong(command: Command) -> None:
    done = command("validate", "--backend", "wrong", "--suite", "logits", *QUICK)
    assert done.code == 1
    assert "FAIL wrong: strict/logits.rms, case fibonacci: rms is " in done.out
    assert "allowed is <= " in done.out
    assert done.out.splitlines()[-1].startswith("FAILED: ")


def test_the_seed_profile_lets_through_what_strict_catches(command: Command) -> None:
    """0.606531 for exp(-1/2) times 1.001: no token changes, F32 does."""
    arguments = ("validate", "--backend", "torch-compile@bf16", "--suite", "logits", *QUICK)
    done = command(*arguments, "--profile", "seed")
    assert done.record.profile["name"] == "seed"
    assert {v.criterion for v in done.record.verdicts} == {
        "seed/logits.top1_differs", "seed/logits.top1_logit_diff", "seed/logits.top5_differs",
    }  # fmt: skip


@pytest.mark.parametrize("suite", ["logits", "distribution", "stepwise", "consistency", "generation", "state"])
def test_nan_is_a_fail_in_every_suite(command: Command, suite: str) -> None:
    done = command("validate", "--backend", "nan", "--suite", suite, *QUICK)
    assert done.code == 1
    assert {v.outcome for v in done.record.verdicts if v.value is not None and v.value != v.value} <= {Outcome.FAIL}
    assert any(v.outcome is Outcome.FAIL for v in done.record.verdicts)
    by_case = {v.case: v.outcome for v in done.record.verdicts if v.outcome is Outcome.FAIL}
    assert set(by_case) == {v.case for v in done.record.verdicts}


def test_no_speed_for_wrong_logits(command: Command) -> None:
    done = command("bench", "--backend", "nan", *QUICK)
    speed = [v for v in done.record.verdicts if v.suite == "speed"]
    assert [v.outcome for v in speed] == [Outcome.SKIPPED]
    assert not [m for m in done.record.measurements if m.suite == "speed"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["validate", "--modell", "x"], "Did you mean --model?"),
        (["validat"], "invalid choice: 'validat'"),
        (["validate", "--backend", "torch-compil"], "Did you mean torch-compile"),
        (["validate", "--suite", "logit"], "Did you mean logits?"),
        (["validate", "--profile", "stric"], "Did you mean strict?"),
        (["validate", "--format", "pdf"], "unknown format 'pdf'"),
        (["validate", "--threads", "-1"], "no whole number"),
        (["validate", "--threads", "two"], "no whole number"),
        (["validate", "--device", "cuda", "--dtype", "f64"], "no default backend runs here"),
        (["validate", "--backend", "reference-f64"], "cannot be a candidate of the same run"),
        (["validate", "--backend", "torch-cuda-bf16"], "torch-cuda-bf16 cannot run here: "),
        (["compare", "one"], "required: CANDIDATE"),
        (["suites", "--profile", "x"], "Known: "),
    ],
)
def test_2_when_the_request_is_wrong(command: Command, arguments: list[str], words: str) -> None:
    done = command(*arguments)
    assert done.code == 2
    assert words in done.err
    assert done.err.count("\n") == 1
    assert "Traceback" not in done.err


def test_2_and_help_without_a_command(command: Command) -> None:
    done = command()
    assert done.code == 2
    assert "exit codes: 0 passed" in done.out


def test_3_when_the_checkpoint_is_missing_or_unreadable(command: Command, tmp_path: Path) -> None:
    (tmp_path / "empty.pth").write_bytes(b"")
    for model in ("no/such/file.pth", str(tmp_path / "empty.pth"), "conformanc"):
        done = command("validate", "--model", model)
        assert done.code == 3, model
        assert done.err.startswith("error: ")
        assert done.err.count("\n") == 1


def test_3_when_a_record_is_missing_or_damaged(command: Command, tmp_path: Path) -> None:
    (tmp_path / "half.json").write_text('{"format": 1, "measurem')
    for name in ("absent.json", "half.json"):
        done = command("report", "--record", str(tmp_path / name))
        assert done.code == 3
        assert name in done.err


def test_3_when_out_cannot_be_written(command: Command, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = command("validate", "--out", str(tmp_path / "file"))
    assert done.code == 3
    assert "cannot be written" in done.err


def test_4_when_a_backend_dies_and_the_others_go_on(command: Command) -> None:
    done = command(
        "validate", "--backend", "dying", "--backend", "right", "--backend", "unopenable", "--suite", "logits", *QUICK
    )
    assert done.code == 4
    assert "ERROR dying: strict/logits, case fibonacci: RuntimeError: the device fell off the bus" in done.out
    assert "OSError: no such device" in done.out
    outcomes = {(v.subject, v.outcome) for v in done.record.verdicts}
    assert outcomes == {("dying", Outcome.ERROR), ("right", Outcome.PASS), ("unopenable", Outcome.ERROR)}
    assert next(s.error for s in done.record.subjects if s.id == "unopenable") == "OSError: no such device"
    crash = next(o.data for o in done.record.observations if o.subject == "dying")
    assert "fell off the bus" in crash["trace"]


def test_4_when_logits_have_another_width(command: Command) -> None:
    done = command("validate", "--backend", "narrow", "--suite", "logits", *QUICK)
    assert done.code == 4
    assert "logits of shape (22, 255), where the reference has (22, 256)" in done.out


def test_4_when_the_harness_itself_breaks(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(options: object) -> int:
        raise ZeroDivisionError("our\nfault")

    monkeypatch.setitem(cli.COMMANDS, "models", broken)
    done = command("models")
    assert done.code == 4
    assert done.err == "error: the harness broke: ZeroDivisionError: our fault\n"


def test_5_when_nothing_is_judged(command: Command) -> None:
    done = command("validate", "--suite", "speed", "--backend", "torch-cpu-f32", *QUICK)
    assert done.code == 5
    assert "NOTHING WAS JUDGED" in done.out
    assert "no criterion of this profile looks at these suites" in done.out


def test_a_plain_run_says_of_each_other_backend_why_not(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job, "_defaults", lambda device, dtype: ("right",))
    monkeypatch.setattr(job, "left_out", lambda: {"lost": "it is elsewhere"})
    plain = ("validate", "--suite", "tokenization", *QUICK)
    assert "not run: lost: it is elsewhere" in command(*plain).out.splitlines()
    assert json.loads(command(*plain, "--json").out)["not_run"] == {"lost": "it is elsewhere"}
    assert "not run" not in command(*plain, "--backend", "right").out


def test_unsupported_is_no_pass(command: Command) -> None:
    done = command(
        "validate", "--backend", "modest", "--suite", "distribution,stepwise,consistency,state,tokenization", *QUICK
    )
    assert done.code == 5
    assert set(done.record.counts().items()) >= {("pass", 0), ("fail", 0)}
    assert "the suite needs logits-all, which this backend does not offer" in {v.detail for v in done.record.verdicts}


def test_last_logits_are_enough_for_the_logits_suite(command: Command) -> None:
    done = command("validate", "--backend", "modest", "--suite", "logits", *QUICK)
    assert done.code == 0
    wheres = {
        m.where
        for m in done.record.measurements
        if m.subject == "modest" and m.name == "max_abs" and m.case == "fibonacci"
    }
    assert all(where.startswith("token 21, ") for where in wheres)


def test_a_float64_port_is_held_to_what_float32_owes(command: Command) -> None:
    done = command("validate", "--backend", "double", "--suite", "logits,distribution", *QUICK)
    assert done.code == 0
    limits = [v.limit for v in done.record.verdicts if v.criterion == "strict/logits.rms"]
    assert len(limits) > 10
    assert all("honest" in limit for limit in limits)


def test_a_subject_that_writes_into_its_input_is_caught(command: Command) -> None:
    done = command("validate", "--backend", "writes", "--suite", "consistency", *QUICK)
    assert done.code == 1
    assert "strict/consistency.input_state_moved" in done.out


def test_130_keeps_what_was_measured_and_resume_goes_on(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    from harness import candidates

    seen: list[str] = []
    original = candidates._unit

    def interrupted(ledger, session, found, context, truth, name):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        seen.append(context.case.name)
        if len(seen) == 4:
            raise KeyboardInterrupt
        original(ledger, session, found, context, truth, name)

    arguments = ("validate", "--backend", "right", "--suite", "logits", *QUICK)
    monkeypatch.setattr(candidates, "_unit", interrupted)
    done = command(*arguments)
    assert done.code == 130
    assert "--resume" in done.err
    assert done.record.status == "interrupted"
    assert {m.case for m in done.record.measurements if m.subject == "right"} == set(seen[:3])

    again = command(*arguments, "--resume")
    assert again.code == 0
    assert set(seen[4:]).isdisjoint(seen[:3])
    assert again.record.id == done.record.id
    assert any("resumed" in note for note in again.record.notes)
    whole = command(*arguments)
    assert len(again.record.verdicts) == len(whole.record.verdicts)
    assert again.record.measurements[:40] == whole.record.measurements[:40]

    fresh = command(*arguments, "--resume")
    assert "nothing to resume" in fresh.err


def test_report_draws_a_record_again_and_judges_by_another_profile(command: Command, tmp_path: Path) -> None:
    done = command("validate", "--backend", "right", "--suite", "logits", *QUICK)
    file = next((tmp_path / "records").glob("*.json"))
    other = tmp_path / "elsewhere"
    drawn = command("report", "--record", str(file), "--out", str(other), "--format", "md,html")
    assert drawn.code == 0
    assert {path.name for path in other.iterdir()} == {"report.md", "report.html"}
    seed = command("report", "--record", str(file), "--out", str(other), "--profile", "seed")
    assert "under profile seed" in seed.out
    latest = command("report")
    assert f"wrote {tmp_path / 'report.html'}" in latest.out
    assert latest.out.splitlines()[-1] == done.out.splitlines()[-1]


def test_report_needs_no_torch(command: Command, tmp_path: Path) -> None:
    command("validate", "--backend", "right", "--suite", "logits", *QUICK)
    file = next((tmp_path / "records").glob("*.json"))
    code = f"""
import sys
sys.modules["torch"] = None
from harness.cli import run_command
raise SystemExit(run_command(["report", "--record", {str(file)!r}, "--out", {str(tmp_path / "again")!r}]))
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True)
    assert (tmp_path / "again" / "report.html").exists()


def test_json_is_one_object(command: Command) -> None:
    done = command("validate", "--backend", "nan", "--suite", "logits", "--json", *QUICK)
    data = json.loads(done.out)
    assert data["exit_code"] == done.code == 1
    assert data["failures"][0]["value"] == "nan"
    for name in ("backends", "models", "suites"):
        assert json.loads(command(name, "--json").out)


def test_lists_for_people(command: Command) -> None:
    assert "torch-compile" in command("backends").out
    assert "conformance" in command("models").out
    suites = command("suites").out
    assert "tokenization (version 1)" in suites
    assert "rms_median <= 3 x honest, at least 1e-07 [dtype f32]: F32 against float64" in suites


def test_a_ci_job_gets_its_summary(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = tmp_path / "step.md"
    summary.write_text("before\n")
    command("validate", "--backend", "right", "--suite", "tokenization", *QUICK)  # the fixture has unset it
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    command("validate", "--backend", "right", "--suite", "tokenization", *QUICK)
    assert summary.read_text().startswith("before\n")
    assert "conformance" in summary.read_text()


def test_progress_is_shown_on_a_terminal_only(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command("validate", "--backend", "right", "--suite", "tokenization", *QUICK).err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert (
        "tokenization fibonacci: right"
        in command("validate", "--backend", "right", "--suite", "tokenization", *QUICK).err
    )


def test_the_module_runs(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "harness", "validate", "--suite", "x"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: unknown suite 'x'.")
