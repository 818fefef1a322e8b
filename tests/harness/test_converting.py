"""Commands convert, pull and models, as they are typed."""

import json
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import constants

from backends import hub
from backends.checkpoint import open_checkpoint
from backends.convert import save
from harness.cli import run_command
from tests.backends.hub_server import Hub, serving

ROOT = Path(__file__).parents[2]


def test_convert_says_what_it_wrote_and_proved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "m.safetensors"
    assert run_command(["convert", "conformance", str(path), "--dtype", "bf16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"wrote {path}: RWKV-7, 3 layers of 128, ")
    assert lines[1].startswith("proved: ")
    assert lines[2] == "logits of 8 tokens: the same, bit for bit"  # its weights are short enough for bf16
    assert lines[3] == "narrowed f32 to bf16: no value changed"
    assert open_checkpoint(str(path)).facts.stored == "bf16"


def test_convert_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "c" / "config.json"
    command = ["convert", "conformance", str(tmp_path / "m"), "--to", "prepared", "--config", str(config), "--json"]
    assert run_command(command) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["format"], facts["dtype"], facts["proof"]["logits"]) == ("prepared", "f32", 0.0)
    assert json.loads(config.read_text())["hidden_size"] == 128


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["nowhere.pth", "m.pth"], 3, "there is no file or folder 'nowhere.pth'"),
        (["conformance", "m.gguf"], 2, "the name 'm.gguf' does not tell a format"),
        (["conformance", "m.pth", "--to", "onnx"], 2, "unknown format 'onnx'"),
        (["conformance", "m.pth", "--dtype", "fp8"], 2, "unknown number format 'fp8'"),
        (["conformance-v6", "m", "--to", "hf"], 3, "only RWKV-7 has HF names here"),
    ],
)
def test_convert_refuses_in_one_line(
    words: list[str],
    code: int,
    told: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_command(["convert", *words]) == code
    assert told in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    path = save(open_checkpoint("synthetic:rwkv7-tiny"), tmp_path / "m.pth", "pth")
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    cache = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    with serving({"BlinkDL/rwkv7-g1": {"rwkv7-g1x-0.1b-20270101-ctx8192.pth": path.read_bytes()}}) as running:
        for name in ("resolve", "fetch"):  # huggingface_hub reads its settings once per process
            function = getattr(hub, name)
            monkeypatch.setattr(hub, name, partial(function, endpoint=running.address, cache=cache))
        yield running


def test_pull_by_the_rule_and_again(releases: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["pull", "rwkv7-g1x-0.1b"]) == 0
    told, path = capsys.readouterr().out.splitlines()
    assert told.startswith("rwkv7-g1x-0.1b is BlinkDL/rwkv7-g1/rwkv7-g1x-0.1b-20270101-ctx8192.pth, ")
    assert told.endswith("its hash is the hub's")
    assert Path(path).is_file()
    assert run_command(["pull", "rwkv7-g1x-0.1b", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["path"], facts["checked"]) == (path, True)


def test_pull_of_what_is_not_there(releases: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["pull", "rwkv7-g1y-0.1b"]) == 3
    assert "no release is called 'rwkv7-g1y-0.1b'. Did you mean rwkv7-g1x-0.1b" in capsys.readouterr().err


def test_models_lists_names_and_places(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    assert run_command(["models"]) == 0
    text = capsys.readouterr().out
    assert "BlinkDL/rwkv7-g1/rwkv7-g1d-0.1b-20260129-ctx8192.pth" in text
    assert "here:" not in text
    assert run_command(["models", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert rows["eagle7b"]["parameters"] == 7_518_044_160
    assert rows["conformance"]["cached"] == ""


def test_models_shows_what_is_here(releases: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["pull", "rwkv7-g1x-0.1b"]) == 0
    capsys.readouterr()
    assert run_command(["models"]) == 0
    assert "rwkv7-g1x-0.1b" in capsys.readouterr().out


def test_models_loads_no_torch_and_asks_nobody(tmp_path: Path) -> None:
    code = """
import socket, sys
def refuse(*_, **__): raise AssertionError("the network was asked")
socket.socket.connect = refuse
from harness.cli import run_command
assert run_command(["models"]) == 0
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
