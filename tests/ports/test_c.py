"""examples/ports/c: judged by a kit and through the protocol."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from harness.compare import compare
from tests.ports.acceptance import PORTS, Port, cause, dumped

SOURCE = PORTS / "c" / "rwkv7.c"
CC = shutil.which("cc")

pytestmark = pytest.mark.skipif(CC is None, reason="no C compiler is installed here")

BUGS = {
    "no-tanh": ("att.w_lora", "w-no-tanh"),
    "transposed-read-out": ("att.y", "y-transposed"),
    "group-norm-eps": ("att.ln_x", "ln-x-eps-1e-5"),
    "k_a-before-kappa": ("att.kk", "kk-from-modified-k"),
    "no-bonus": ("att.bonus", "bonus-missing"),
    "v6-decay": ("att.w", "w-v6"),
}
"""Bug of the port -> the tensor that is wrong by itself, and the known mistake that explains it."""

FROM_LOGITS = "lost-shift"
"""A bug of feeding, which no equation explains: only logits tell its name."""


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The port, built strictly; a warning is an error."""
    path = tmp_path_factory.mktemp("c") / "rwkv7"
    strict = ["-std=c99", "-Wall", "-Wextra", "-Wpedantic", "-Werror"]
    built = subprocess.run(
        [CC or "cc", "-O2", *strict, "-o", path, SOURCE, "-lm"], capture_output=True, text=True, check=False
    )
    assert built.returncode == 0, built.stderr
    return path


@pytest.fixture(scope="module")
def command(program: Path) -> list[str]:
    return [str(program)]


class TestC(Port):
    """The shared acceptance."""


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_named(command: list[str], bug: str, kit: Path, tmp_path: Path) -> None:
    assert cause(kit, dumped(command, kit, tmp_path / "dump", bug)) == BUGS[bug]


def test_every_bug_of_the_port_is_listed_here() -> None:
    text = SOURCE.read_text(encoding="utf-8")
    names = re.findall(r'"([^"]*)"', text[text.index("BUG_NAMES[BUGS] =") :].partition(";")[0])
    assert names == ["", *BUGS, FROM_LOGITS]


def test_a_state_that_is_lost_between_calls_is_seen_at_the_token_where_it_is_lost(
    command: list[str], kit: Path, tmp_path: Path
) -> None:
    dump = dumped(command, kit, tmp_path / "dump", FROM_LOGITS)
    (dump / "manifest.json").write_text((dump / "manifest.json").read_text().replace('"logits"', '"not-logits"'))
    record = compare(kit, dump)
    (seen,) = (one.data for one in record.observations if one.kind == "diagnosis")
    assert (seen["tensor"], seen["layer"], seen["token"]) == ("att.shift", 0, 40)
    assert any("first of the second call" in note for note in record.notes)
