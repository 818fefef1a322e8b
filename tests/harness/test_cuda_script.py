"""benchmarks/cuda.py: the commands that wait for a GPU can be typed; a failing step is named and stops no other."""

import argparse
import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from backends import registry
from backends.sizes import SIZES
from harness import options, racing

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
    asked = argparse.Namespace(dry=dry, device="cuda", models=sizes)
    steps = list(script.steps(asked, tmp_path))
    assert {step.name for step in steps} >= {"facts", "tests", "validate", *sizes}
    assert dry or {f"rwkv7-{size}" for size in sizes} <= set(SIZES)
    understood = 0
    for step in steps:
        if "harness" in step.command:
            found = options.parser().parse_args(step.command[step.command.index("harness") + 1 :])
            device = "cpu" if dry else "cuda"
            for subject in found.backend:
                assert registry.parse(subject).device == device
            if found.command == "bench":
                plan = racing.asked(found)
                assert dry or 1 in plan["batches"] or plan["batches"] == [64]
            understood += 1
        else:
            files = [part for part in step.command if part.endswith(".py")]
            assert all((ROOT / file).exists() for file in files)
    assert understood == (1 if dry else 2) + 2 * len(sizes)


def test_a_failing_step_is_named_and_stops_no_other(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    commands = {"bad": "raise SystemExit(3)", "good": "print('said')"}
    steps = [script.Step(name, [sys.executable, "-c", text]) for name, text in commands.items()]
    steps.append(script.Step("absent", [str(tmp_path / "no-such-program")]))
    monkeypatch.setattr(script, "steps", lambda *_: iter(steps))
    monkeypatch.setattr(sys, "argv", ["cuda.py", "--out", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 1
    assert "said" in (tmp_path / "good.log").read_text()
    assert "failed: bad, absent, report" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["cuda.py", "--out", str(tmp_path), "--only", "good"])
    with pytest.raises(SystemExit) as stopped:
        script.main()
    assert stopped.value.code == 0
