"""examples/ports/rust: built once, judged by a kit and through the protocol."""

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.ports.acceptance import PORTS, Port, cause, dumped

CRATE = PORTS / "rust"
CARGO = shutil.which("cargo")
RUNS = CARGO and not subprocess.run([CARGO, "--version"], capture_output=True, check=False).returncode

pytestmark = pytest.mark.skipif(not RUNS, reason="cargo is not installed here, or has no toolchain")

BUGS = {
    "one-group": ("att.ln_x", "ln-x-one-group"),
    "read-before-write": ("att.y", "y-old-state"),
    "removal-without-rate": ("att.state", "state-no-a"),
    "previous-value": ("att.v", "v-residual-previous"),
    "state-transposed": ("att.state", "edge-state-transposed"),
}


@pytest.fixture(scope="session")
def command(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    target = tmp_path_factory.mktemp("cargo")
    line = [CARGO or "cargo", "build", "--release", "--offline", "--locked", "--quiet"]
    environment = {**os.environ, "CARGO_TARGET_DIR": str(target), "RUSTFLAGS": "-D warnings"}
    done = subprocess.run(line, cwd=CRATE, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    return [str(target / "release" / "rwkv7")]


class TestRust(Port):
    """The shared acceptance."""


@pytest.mark.parametrize("bug", BUGS)
def test_a_planted_bug_is_named(command: list[str], bug: str, kit: Path, tmp_path: Path) -> None:
    assert cause(kit, dumped(command, kit, tmp_path / "dump", bug)) == BUGS[bug]


def test_every_bug_of_the_port_is_listed_here() -> None:
    text = (CRATE / "src" / "model.rs").read_text(encoding="utf-8")
    assert re.findall(r'\("([a-z-]+)", Bug::', text) == list(BUGS)


def test_it_needs_the_standard_library_alone() -> None:
    assert "dependencies" not in (CRATE / "Cargo.toml").read_text(encoding="utf-8")
    assert 'unsafe_code = "forbid"' in (CRATE / "Cargo.toml").read_text(encoding="utf-8")
