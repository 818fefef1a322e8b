"""The action and the workflow of docs/ci.md: what they run exists, and is asked as it is written."""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import options

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "ci.md").read_text(encoding="utf-8")

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="no bash is installed here")


@pytest.fixture
def action() -> dict[str, Any]:
    data: dict[str, Any] = yaml.safe_load((ROOT / "action.yml").read_text(encoding="utf-8"))
    return data


def step(action: dict[str, Any], name: str) -> dict[str, Any]:
    found: dict[str, Any] = next(one for one in action["runs"]["steps"] if one["name"] == name)
    return found


def ran(script: str, folder: Path, **environment: str) -> list[list[str]]:
    """Run a step's script with a `python` that only writes down what it was asked."""
    stub = folder / "python"
    words = 'for word in "$@"; do printf "%s\\0" "$word"; done; echo'
    stub.write_text(f"#!/bin/sh\n({words}) >> {folder}/asked\n")
    stub.chmod(0o755)
    path = os.pathsep.join([str(folder), os.environ["PATH"]])
    given = {**environment, "PATH": path, "GITHUB_OUTPUT": str(folder / "outputs"), "GITHUB_ACTION_PATH": "/action"}
    subprocess.run(["bash", "-eo", "pipefail", "-c", script], check=True, env=given)
    return [line.split("\0")[:-1] for line in (folder / "asked").read_text().splitlines()]


@needs_bash
def test_it_validates_what_its_inputs_say(action: dict[str, Any], tmp_path: Path) -> None:
    judge = step(action, "Judge")
    inputs = {
        "BACKEND": "process:./my port -v\n\ntorch-compile@bf16\n", "MODEL": "my $HOME.pth", "PROFILE": "strict",
        "SUITE": "logits,state", "OUT": str(tmp_path / "out"),
    }  # fmt: skip
    assert set(judge["env"]) == set(inputs)
    (asked,) = ran(judge["run"], tmp_path, **inputs)
    assert asked[:2] == ["-m", "harness"]
    found = options.parser().parse_args(asked[2:])
    assert (found.command, found.backend) == ("validate", ["process:./my port -v", "torch-compile@bf16"])
    assert (found.model, found.profile, found.suite, found.out) == (
        "my $HOME.pth", "strict", ["logits,state"], inputs["OUT"],
    )  # fmt: skip
    assert (tmp_path / "outputs").read_text() == f"report={inputs['OUT']}\n"


@needs_bash
def test_without_a_backend_or_a_suite_it_asks_for_all(action: dict[str, Any], tmp_path: Path) -> None:
    inputs = {"BACKEND": "", "MODEL": "conformance", "PROFILE": "strict", "SUITE": "", "OUT": "out"}
    (asked,) = ran(step(action, "Judge")["run"], tmp_path, **inputs)
    found = options.parser().parse_args(asked[2:])
    assert (found.backend, found.suite) == ([], [])


@needs_bash
def test_it_installs_a_version_or_itself(action: dict[str, Any], tmp_path: Path) -> None:
    script = step(action, "Install rwkv-harness")["run"]
    assert ran(script, tmp_path, VERSION="0.1.0")[-1] == ["-m", "pip", "install", "rwkv-harness==0.1.0"]
    assert ran(script, tmp_path, VERSION="")[-1] == ["-m", "pip", "install", "/action"]


def test_scripts_take_inputs_from_the_environment_only(action: dict[str, Any]) -> None:
    """An input inside a script would be run as code."""
    for one in action["runs"]["steps"]:
        assert "${{" not in one.get("run", "")


def test_every_input_is_used_and_every_used_one_exists(action: dict[str, Any]) -> None:
    used = set(re.findall(r"inputs\.(\w+)", str(action["runs"]["steps"])))
    assert used == set(action["inputs"])
    assert all(one["description"] and "default" in one for one in action["inputs"].values())


def test_defaults_are_those_of_the_command_line(action: dict[str, Any]) -> None:
    plain = options.parser().parse_args(["validate"])
    for name in ("model", "profile"):
        assert action["inputs"][name]["default"] == getattr(plain, name)


def test_the_workflow_of_the_page_gives_inputs_that_exist(action: dict[str, Any]) -> None:
    (text,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    steps = yaml.safe_load(text)["jobs"]["acceptance"]["steps"]
    (ours,) = [one for one in steps if "rwkv-harness" in one.get("uses", "")]
    assert set(ours["with"]) <= set(action["inputs"])
    for name in action["inputs"]:
        assert f"`{name}`" in PAGE


def test_every_command_of_the_page_can_be_typed() -> None:
    commands = re.findall(r"^python -m harness (.*)$", PAGE, re.MULTILINE)
    assert commands
    for line in commands:
        assert options.parser().parse_args(shlex.split(line)).command
