"""The session of docs/protocol.md, byte by byte: what the harness writes, and what a real port answers."""

import base64
import json
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.base import Want
from backends.process.session import open_process
from backends.weights import Weights
from tests.backends.random_model import as_weights, random_rwkv7
from tests.ports.test_c import program

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "protocol.md").read_text(encoding="utf-8")

RELAY = """
import subprocess, sys
with open(sys.argv[1], "a") as log, subprocess.Popen(sys.argv[2:], stdin=-1, stdout=-1, text=True, bufsize=1) as port:
    for line in sys.stdin:
        port.stdin.write(line)
        port.stdin.flush()
        answer = port.stdout.readline()
        log.write("> " + line + "< " + answer)
        log.flush()
        print(answer, end="", flush=True)
"""
"""Stands between the harness and a port and writes down what both say."""

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler is installed here")

__all__ = ["program"]


def shown() -> list[str]:
    """The lines of the page's session."""
    block = PAGE[PAGE.index("## A whole session") :].split("```")[1]
    return [line for line in block.splitlines() if line.startswith(("> ", "< "))]


def weights() -> Weights:
    return as_weights(random_rwkv7(C=8, N=4, L=1, V=5))


def spoken(port: Path, log: Path) -> list[str]:
    """The same session with a port, its folder called /tmp/x as on the page."""
    command = shlex.join([sys.executable, "-S", "-c", RELAY, str(log), str(port)])
    with open_process(weights(), argument=command, threads=1) as session:
        folder = str(session._files.folder)
        out = session.forward([3, 1], want=Want("all", state=True, trace=("blocks.0.att.w",)))
        saved = session.export_state(out.state)
        session.forward([4], session.import_state(saved), Want("last"))
        list(session.generate([3, 1], max_new_tokens=1))
    return log.read_text().replace(folder, "/tmp/x").splitlines()


def apart(value: Any, arrays: list[Any]) -> Any:
    """JSON without the numbers of its arrays, which are collected."""
    if isinstance(value, dict) and "base64" in value:
        arrays.append(np.frombuffer(base64.b64decode(value["base64"]), dtype="<f4"))
        return {**value, "base64": ""}
    return {k: apart(v, arrays) for k, v in value.items()} if isinstance(value, dict) else value


def test_the_session_of_the_page_is_what_happens(program: Path, tmp_path: Path) -> None:
    page, real = shown(), spoken(program, tmp_path / "log")
    assert len(page) == len(real)
    for line, due in zip(page, real, strict=True):
        mine: list[Any] = []
        theirs: list[Any] = []
        found, want = (apart(json.loads(one[2:]), seen) for one, seen in ((line, mine), (due, theirs)))
        assert (line[0], json.dumps(found)) == (due[0], json.dumps(want))
        assert [one.shape for one in mine] == [one.shape for one in theirs]
        for a, b in zip(mine, theirs, strict=True):  # another libm may round its last bits otherwise
            np.testing.assert_allclose(a, b, rtol=0, atol=1e-6)
        if line[0] == ">" and not mine:
            assert line == due
