"""Kills conversions at random moments: what stands under the final name is the old file or the whole new one."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import convert
from backends.checkpoint import open_checkpoint
from tests.backends.killed import model

KILLS = 20
ROOT = Path(__file__).parents[2]


class Converter:
    """The program beside this file, and the folder that it writes to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "tests.backends.killed", str(folder)]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment
        )

    def start(self, name: str, to: str, seed: int) -> int:
        """Begin a conversion; returns the process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{name} {to} {seed}\n")
        self.process.stdin.flush()
        return self.line()

    def line(self) -> int:
        assert self.process.stdout is not None
        return int(self.process.stdout.readline())

    def end(self) -> int:
        """Wait for it; returns how it ended."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.line()

    def seconds(self, name: str, to: str, seed: int) -> float:
        """How long a conversion takes that nobody kills."""
        began = time.monotonic()
        self.start(name, to, seed)
        assert self.end() == 0
        return time.monotonic() - began

    def close(self) -> None:
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()
        self.process.wait()


@pytest.fixture
def converter(tmp_path: Path) -> Iterator[Converter]:
    running = Converter(tmp_path)
    yield running
    running.close()


def _content(path: Path) -> dict[str, bytes]:
    files = [path] if path.is_file() else sorted(path.iterdir())
    return {file.name: file.read_bytes() for file in files}


@pytest.mark.parametrize(("name", "to"), [("m.pth", "pth"), ("m.safetensors", "safetensors")])
def test_a_kill_leaves_the_old_file_or_the_new_one(converter: Converter, name: str, to: str) -> None:
    path, whole = converter.folder / name, {}
    for seed in (0, 1):
        usual = converter.seconds(name, to, seed)
        whole[seed] = path.read_bytes()
    moments, there, killed = random.Random(7), 1, 0
    for _ in range(KILLS):
        child = converter.start(name, to, 1 - there)
        time.sleep(moments.uniform(0, usual))
        os.kill(child, signal.SIGKILL)
        killed += converter.end() == -signal.SIGKILL
        found = path.read_bytes()
        assert found in (whole[there], whole[1 - there])
        there = there if found == whole[there] else 1 - there
    assert killed > KILLS // 2
    assert any(file.name.startswith(".m.") for file in converter.folder.iterdir())  # or nothing was hit while writing
    convert.save(model(0), path, to)
    assert path.read_bytes() == whole[0]
    left = {file.name for file in converter.folder.iterdir()}
    assert left == {name} | ({"config.json"} if to == "safetensors" else set())


def test_a_kill_leaves_no_half_folder(converter: Converter) -> None:
    to = "hf"
    usual = converter.seconds("whole", to, 0)
    whole = _content(converter.folder / "whole")
    moments, absent = random.Random(8), 0
    for number in range(KILLS):
        child = converter.start(f"m{number}", to, 0)
        time.sleep(moments.uniform(0, usual))
        os.kill(child, signal.SIGKILL)
        converter.end()
        path = converter.folder / f"m{number}"
        absent += not path.exists()
        assert not path.exists() or _content(path) == whole
    assert absent > 0
    assert open_checkpoint(str(converter.folder / "whole")).facts.n_layer == 2
