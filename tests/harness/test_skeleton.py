"""Skeletons of new backends: whole or not there, and as clean as the rest."""

import json
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from backends.errors import InputError, UsageError
from harness import skeleton
from tests.harness.conftest import Command

ROOT = Path(__file__).parents[2]


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", skeleton.KINDS)
def test_every_file_is_written_and_nothing_else(kind: str, tmp_path: Path) -> None:
    folder = skeleton.make("my-port", kind, tmp_path)
    assert folder == tmp_path / "my-port"
    assert files(folder) == {name.replace("$module", "my_port") for name in skeleton.KINDS[kind]}
    assert [path.name for path in tmp_path.iterdir()] == ["my-port"]
    for name in files(folder):
        text = (folder / name).read_text(encoding="utf-8")
        assert "$" not in text
        if name.endswith(".py"):
            compile(text, name, "exec")


def test_no_template_is_left_over() -> None:
    room = ROOT / "harness" / "skeletons"
    assert files(room) == {source for kind in skeleton.KINDS.values() for source in kind.values()}


def test_the_package_offers_its_row(tmp_path: Path) -> None:
    data = tomllib.loads((skeleton.make("my-port-2", "python", tmp_path) / "pyproject.toml").read_text())
    assert data["project"]["name"] == "my-port-2"
    assert data["project"]["entry-points"]["rwkv_harness.backends"] == {"my-port-2": "my_port_2:BACKEND"}


def test_a_skeleton_is_as_clean_as_the_rest(tmp_path: Path) -> None:
    if shutil.which("ruff") is None:
        pytest.skip("ruff is not installed here")
    for kind in skeleton.KINDS:
        skeleton.make(f"my-{kind}", kind, tmp_path)
    settings = ["--config", str(ROOT / "pyproject.toml"), "--no-cache"]
    ignored = ["--ignore", "ARG001,T201,S101"]  # what is left to write uses no argument yet; stdout is the protocol
    for command in (["check", *settings, *ignored, "--config", 'src=["."]'], ["format", "--check", *settings]):
        done = subprocess.run(["ruff", *command, "."], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("kind", skeleton.KINDS)
def test_the_command_says_what_it_wrote(command: Command, kind: str, tmp_path: Path) -> None:
    done = command("new-backend", "my-port", "--kind", kind, "--dest", str(tmp_path))
    assert done.code == 0
    written = {str(tmp_path / "my-port" / name) for name in files(tmp_path / "my-port")}
    assert {line.removeprefix("wrote ") for line in done.out.splitlines()[:-1]} == written
    assert "three equations in rwkv7.py are left to write" in done.out.splitlines()[-1]
    again = json.loads(command("new-backend", "other", "--kind", kind, "--dest", str(tmp_path), "--json").out)
    assert again["folder"] == str(tmp_path / "other")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("My_Port", "is no name for a backend"),
        ("-port", "is no name for a backend"),
        ("my--port", "is no name for a backend"),
        ("2fast", "is no name for a backend"),
        ("../up", "is no name for a backend"),
        ("", "is no name for a backend"),
        ("lambda", "is a keyword of Python"),
        ("official", "there is a backend official already"),
        ("numpy", "a Python package 'numpy' is installed here"),
    ],
)
def test_a_name_that_cannot_be_used_is_refused_in_words(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=words):
        skeleton.make(name, "python", tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_program_may_be_called_like_a_package(tmp_path: Path) -> None:
    assert skeleton.make("numpy", "process", tmp_path).is_dir()


@pytest.mark.parametrize("there", ["folder", "file", "link"])
def test_what_exists_is_left_alone(command: Command, there: str, tmp_path: Path) -> None:
    path = tmp_path / "my-port"
    if there == "folder":
        path.mkdir()
    elif there == "file":
        path.touch()
    else:
        path.symlink_to(tmp_path / "nowhere")
    done = command("new-backend", "my-port", "--dest", str(tmp_path))
    assert done.code == 2
    assert done.err == f"error: {path} exists already; choose another name or another --dest.\n"
    assert [one.name for one in tmp_path.iterdir()] == ["my-port"]


def test_dest_has_to_be_a_folder(command: Command, tmp_path: Path) -> None:
    done = command("new-backend", "my-port", "--dest", str(tmp_path / "nowhere"))
    assert (done.code, done.err) == (3, f"error: --dest {tmp_path / 'nowhere'} is no folder.\n")


def test_nothing_is_half_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Path] = []

    def full(path: Path, text: str, encoding: str = "") -> int:
        written.append(path)
        if len(written) == 3:
            raise OSError(28, "No space left on device")
        return path.write_bytes(text.encode())

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(InputError, match="my-port cannot be written: No space left on device"):
        skeleton.make("my-port", "python", tmp_path)
    assert len(written) == 3
    assert not list(tmp_path.iterdir())


def test_help_of_the_command_loads_nothing_heavy() -> None:
    code = "import sys; from harness.skeleton import make; assert not {'torch', 'pandas', 'jinja2'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
