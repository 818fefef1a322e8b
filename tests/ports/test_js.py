"""examples/ports/js: judged by a kit and through the protocol."""

import shutil
from pathlib import Path

import pytest

from tests.ports.acceptance import PORTS, Port, cause, dumped

PROGRAM = PORTS / "js" / "rwkv7.mjs"
NODE = shutil.which("node")

pytestmark = pytest.mark.skipif(NODE is None, reason="node is not installed here")

BUGS = {
    "mix-order": ("att.xw", "mix-order"),
    "decay-sigmoid": ("att.w", "w-sigmoid"),
    "key-not-normalised": ("att.kk", "kk-not-normalised"),
    "silu": ("ffn.act", "ffn-silu"),
}


@pytest.fixture(scope="module")
def command() -> list[str]:
    return [NODE or "node", str(PROGRAM)]


class TestJavaScript(Port):
    """The shared acceptance."""


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_named(command: list[str], bug: str, kit: Path, tmp_path: Path) -> None:
    assert cause(kit, dumped(command, kit, tmp_path / "dump", bug)) == BUGS[bug]


def test_every_bug_of_the_port_is_listed_here() -> None:
    text = (PORTS / "js" / "model.mjs").read_text(encoding="utf-8")
    table = text[text.index("BUGS = {") : text.index("};", text.index("BUGS = {"))]
    names = [line.split(":")[0].strip(' "') for line in table.splitlines()[1:] if ":" in line]
    assert names == list(BUGS)


def test_it_needs_node_alone() -> None:
    for path in (PORTS / "js").glob("*.mjs"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if " from " in line and line.startswith(("import", "}")):
                assert '"node:' in line or '"./' in line, f"{path.name}: {line}"
