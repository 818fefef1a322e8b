"""benchmarks/cuda.py: the commands that wait for a GPU can be typed; a failing step is named and stops no other."""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

from backends import registry
from backends.sizes import SIZES
from harness import options, racing
from reports import store
from tests.reports import sample

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("cuda_script", ROOT / "benchmarks" / "cuda.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "cuda_script", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "capability", lambda: 90)
    return module


@pytest.mark.parametrize("dry", [True, False])
def test_every_command_is_understood(script: ModuleType, dry: bool, tmp_path: Path) -> None:
    sizes = ["1.5b", "2.9b", "7.2b"]
    asked = argparse.Namespace(dry=dry, device="cuda:0", models=sizes)
    steps = list(script.steps(asked, tmp_path))
    assert {step.name for step in steps} >= {"facts", "tests", "validate", *sizes}
    assert dry or {f"rwkv7-{size}" for size in sizes} <= set(SIZES)
    understood = 0
    for step in steps:
        assert step.seconds <= 400
        if "harness" in step.command:
            found = options.parser().parse_args(step.command[step.command.index("harness") + 1 :])
            device = "cpu" if dry else "cuda:0"
            for subject in found.backend:
                assert registry.parse(subject).device == device
            if found.command == "bench":
                plan = racing.asked(found)
                assert dry or 1 in plan["batches"] or plan["batches"] == [64]
                alone = len(found.backend) == 1
                assert alone or not any("graph=0" in name for name in found.backend)
                assert len(plan["positions"]) == 1 or (alone and plan["prefill"] == [1])
            assert found.honest_runs == 2 or found.model == "conformance"
            understood += 1
        else:
            files = [part for part in step.command if part.endswith(".py")]
            assert all((ROOT / file).exists() for file in files)
    assert understood == (1 if dry else 2) + 3 * len(sizes) + 2


def test_figures_come_before_tests_and_tests_are_named(script: ModuleType, tmp_path: Path) -> None:
    asked = argparse.Namespace(dry=False, device="cuda", models=["1.5b", "2.9b"])
    steps = list(script.steps(asked, tmp_path))
    names = list(dict.fromkeys(step.name for step in steps))
    assert names == ["facts", "kernels", "1.5b", "tests", "validate", "2.9b"]
    marked = {file.name for file in (ROOT / "tests").rglob("test_*.py") if "mark.cuda" in file.read_text("utf-8")}
    collected = [part for step in steps if step.name == "tests" for part in step.command if part.startswith("tests/")]
    assert marked - {Path(__file__).name} <= {Path(part).name for part in collected}


def typed(script: ModuleType, monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["cuda.py", *map(str, words)])
    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(SystemExit) as stopped:
            script.main()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert isinstance(stopped.value.code, int)
    return stopped.value.code


def given(script: ModuleType, monkeypatch: pytest.MonkeyPatch, seconds: float = 60.0, **commands: str) -> None:
    """Steps that run a line of Python each."""
    steps = [script.Step(name, [sys.executable, "-c", text], seconds) for name, text in commands.items()]
    monkeypatch.setattr(script, "steps", lambda *_: iter(steps))


def names_in(archive: Path) -> set[str]:
    with tarfile.open(archive) as file:
        return set(file.getnames())


def test_a_failing_step_is_named_and_stops_no_other(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(script, monkeypatch, facts="raise SystemExit(3)", tests="print('said')")
    steps = [*script.steps(), script.Step("kernels", [str(tmp_path / "no-such-program")])]
    monkeypatch.setattr(script, "steps", lambda *_: iter(steps))
    assert typed(script, monkeypatch, "--out", tmp_path) == 1
    assert "said" in (tmp_path / "tests.log").read_text()
    assert "failed: facts, kernels, report" in capsys.readouterr().out
    assert typed(script, monkeypatch, "--out", tmp_path, "--only", "tests") == 0


def test_an_unknown_step_is_named(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert typed(script, monkeypatch, "--models", "1.5b", "--only", "2.9b", "facts") == 2
    assert "no step 2.9b; there are facts, kernels, 1.5b, tests, validate, report" in capsys.readouterr().err


ENDLESS = """
import subprocess, sys, time
other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print("child", other.pid)
try:
    time.sleep(600)
except KeyboardInterrupt:
    print("kept")
    raise
"""


def gone(pid: int) -> bool:
    """Whether a process has ended; a zombie that nobody waits for has."""
    for _ in range(100):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system does not show its processes")
def test_a_step_that_takes_too_long_ends_with_its_children_and_the_next_runs(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given(script, monkeypatch, 2.0, tests=ENDLESS, validate="print('mine')")
    assert typed(script, monkeypatch, "--out", tmp_path, "--only", "tests", "validate") == 1
    said = capsys.readouterr().out
    assert "[tests] ended at its limit of 2 s" in said
    assert "failed: tests; packed: " in said
    log = (tmp_path / "tests.log").read_text()
    assert "kept" in log, "it was asked to end before it was ended"
    assert gone(int(log.partition("child ")[2].split()[0]))
    assert "mine" in (tmp_path / "validate.log").read_text()


def test_who_does_not_listen_is_killed(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    deaf = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); print('deaf'); time.sleep(600)"
    monkeypatch.setattr(script, "GRACE", 0.3)
    given(script, monkeypatch, 1.0, tests=deaf)
    start = time.monotonic()
    assert typed(script, monkeypatch, "--out", tmp_path, "--only", "tests") == 1
    assert time.monotonic() - start < 20
    assert "[tests] ended at its limit of 1 s" in capsys.readouterr().out


def test_minutes_are_for_all_steps_together(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(script, "GRACE", 0.5)
    given(script, monkeypatch, facts="pass", tests="import time; time.sleep(600)", validate="print('too late')")
    chosen = ("--only", "facts", "tests", "validate")
    assert typed(script, monkeypatch, "--out", tmp_path, "--minutes", "0.04", *chosen) == 1
    said = capsys.readouterr().out
    assert "[validate] not run: the 0.04 minutes are over" in said
    assert "failed: tests, validate" in said
    assert "too late" not in said


def test_everything_is_packed_after_every_step(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second step looks at what the first one left, before anything is over."""
    out, archive = tmp_path / "out", tmp_path / "away" / "all.tar.gz"
    look = f"import tarfile; print('seen', tarfile.open({str(archive)!r}).getnames())"
    given(script, monkeypatch, facts="print('first')", tests=look)
    (out / "cache").mkdir(parents=True)
    (out / "cache" / "large.npz").write_bytes(b"x")
    only = ("--only", "facts", "tests")
    assert typed(script, monkeypatch, "--out", out, "--archive", archive, *only) == 0
    assert "seen ['facts.log']" in (out / "tests.log").read_text()
    assert names_in(archive) == {"facts.log", "tests.log"}
    assert typed(script, monkeypatch, "--out", out, *only[:2]) == 0
    assert typed(script, monkeypatch, "--out", out, *only[:2]) == 0
    assert names_in(out / "cuda.tar.gz") == {"facts.log", "tests.log"}, "and not itself"


@pytest.mark.skipif(not hasattr(os, "killpg"), reason="this system has no process groups")
def test_whoever_ends_the_script_ends_its_child_and_keeps_the_log(tmp_path: Path) -> None:
    """As a limit on the whole command does: what was said so far is in the archive."""
    code = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("cuda_script", {str(ROOT / "benchmarks" / "cuda.py")!r})
script = sys.modules["cuda_script"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(script)
script.steps = lambda *_: iter([script.Step("tests", [sys.executable, "-c", {ENDLESS!r}], 30)])
sys.argv = ["cuda.py", "--out", {str(tmp_path)!r}, "--only", "tests"]
script.main()
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as outer:
        assert outer.stdout is not None
        said = next(line for line in outer.stdout if line.startswith("child "))
        assert said in (tmp_path / "tests.log").read_text(), "written as it was said"
        outer.terminate()
        outer.communicate(timeout=60)
    assert outer.returncode == 143
    assert gone(int(said.split()[1]))
    assert names_in(tmp_path / "cuda.tar.gz") == {"tests.log"}


def test_records_without_timings_are_left_out_of_the_page(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = sample.record()
    untimed = tuple(one for one in whole.observations if one.kind != "samples")
    records = tmp_path / "bench-1.5b" / "records"
    store.save(replace(whole, id="20260101T000000Z-00000001", status="interrupted"), records)
    for number, broken in enumerate((replace(whole, observations=()), replace(whole, observations=untimed)), 2):
        store.save(replace(broken, id=f"20260101T000000Z-0000000{number}"), records)
    (records / "half.json").write_text('{"observations": [')
    (records / "odd.json").write_text(json.dumps({"observations": [3]}))
    given(script, monkeypatch)
    assert typed(script, monkeypatch, "--out", tmp_path) == 0
    assert "page/README.md" in names_in(tmp_path / "cuda.tar.gz")
    asked = (tmp_path / "report.log").read_text().partition("\n")[0]
    assert asked.count("--record") == 1
    assert "00000001.json" in asked
