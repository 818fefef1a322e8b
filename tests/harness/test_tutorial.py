"""docs/adding-a-backend.md as a reader follows it: its commands are run, its edits are made, its output is compared.

The package is put on the path as an installed one would be, instead of asking pip. The search through all known
mistakes by logits, two thirds of a diagnosis, has its own tests and is left out.
"""

import ast
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import registry
from harness import consult, diagnose
from tests.harness.conftest import Command
from tests.plugin.conftest import ARGUMENTS

QUICK = ("--honest-runs", "3")
"""Narrower limits, in a quarter of the time."""

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-backend.md").read_text(encoding="utf-8")


def section(title: str) -> list[tuple[str, str]]:
    """Blocks of a section: their language, and what is in them."""
    text = PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]
    return re.findall(r"```(\w*)\n(.*?)```", text, re.DOTALL)


def edit(file: Path, block: str) -> None:
    """Replace each function of a block in a file, as the page says."""
    for new in ast.parse(block).body:
        assert isinstance(new, ast.FunctionDef)
        text = file.read_text(encoding="utf-8")
        (old,) = [n for n in ast.parse(text).body if isinstance(n, ast.FunctionDef) and n.name == new.name]
        lines, fresh = text.splitlines(keepends=True), block.splitlines(keepends=True)
        lines[old.lineno - 1 : old.end_lineno] = fresh[new.lineno - 1 : new.end_lineno]
        file.write_text("".join(lines), encoding="utf-8")


def words(text: str) -> str:
    """Without the digits of measured numbers, which another machine rounds otherwise."""
    return " ".join(re.sub(r"\d[\d.]*(e[+-]\d+)?(?= times)", "N", text).split())


def forget() -> None:
    """Every command of a reader is a new process; here it only has to look like one."""
    registry.table.cache_clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "my_port"]:
        del sys.modules[name]


class Reader:
    """Somebody in an empty folder with the page open."""

    def __init__(self, folder: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.command, self.monkeypatch = folder, command, monkeypatch
        self.seen = ""

    def types(self, line: str) -> None:
        """One line of a block of commands."""
        typed = shlex.split(line)
        if typed[:3] == ["python", "-m", "harness"]:
            typed = [word.replace("process:python ", f"process:{sys.executable} ") for word in typed[3:]]
            forget()
            done = self.command(*typed, *(QUICK if typed[0] == "validate" else ()))
            assert done.code == (1 if typed[0] == "diagnose" else 0), done.out + done.err
            self.seen += done.out
        elif typed[0] == "pip":
            assert typed == ["pip", "install", "-e", "./my-port"]
            self.install(self.folder / "my-port")
        else:
            self.tests(typed)

    def install(self, package: Path) -> None:
        """What pip leaves behind: a place on the path, and the entry points."""
        (group,) = tomllib.loads((package / "pyproject.toml").read_text())["project"]["entry-points"].values()
        facts = package / "my_port-0.1.0.dist-info"
        facts.mkdir()
        (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: my-port\nVersion: 0.1.0\n")
        rows = "".join(f"{name} = {value}\n" for name, value in group.items())
        (facts / "entry_points.txt").write_text(f"[rwkv_harness.backends]\n{rows}")
        self.monkeypatch.syspath_prepend(package)

    def tests(self, typed: list[str]) -> None:
        """A line that begins with pytest: the skeleton's own test finds what it asks for; tests/plugin runs such."""
        assert typed[0] == "pytest"
        root = Path(__file__).parents[2]
        path = os.pathsep.join(map(str, (root, self.folder / "my-port")))
        command = [sys.executable, "-m", "pytest", *ARGUMENTS, "-q", "--rootdir", typed[1], *typed[1:], "--co"]
        given = {**os.environ, "PYTHONPATH": path}
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=given)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "logits.rms_median[fibonacci]" in done.stdout


@pytest.fixture
def reader(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> Iterator[Reader]:
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)

    assert callable(diagnose.Clinic._by_logits)
    monkeypatch.setattr(diagnose.Clinic, "_by_logits", lambda self, subject, found, *rest: found)
    monkeypatch.setattr(consult, "runs", lambda *_: 3)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Reader(folder, command, monkeypatch)
    forget()


def follow(reader: Reader, title: str, file: Path) -> None:
    """Do what a section says, block by block; a block without a language is output that must have been seen."""
    for language, block in section(title):
        if language == "bash":
            for line in block.splitlines():
                reader.types(line)
        elif language == "python":
            edit(file, block)
        else:
            for line in block.splitlines():
                assert words(line) in words(reader.seen)


def test_a_package_is_green_after_the_edits_of_the_page(reader: Reader) -> None:
    follow(reader, "A package", reader.folder / "my-port" / "my_port" / "rwkv7.py")
    assert "PASSED: conformance under profile strict: 99 pass, 0 fail" in reader.seen


def test_a_program_is_green_after_the_same_edits(reader: Reader) -> None:
    file = reader.folder / "my-program" / "rwkv7.py"
    (first, *rest) = section("A program")
    reader.types(first[1].strip())
    for language, block in section("A package"):
        if language == "python":
            edit(file, block)
    for _, block in rest:
        for line in block.splitlines():
            reader.types(line)
    assert "PASSED: conformance under profile strict: 99 pass, 0 fail" in reader.seen
