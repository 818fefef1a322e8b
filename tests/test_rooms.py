"""Who may import whom: reads every import, also those inside functions and under TYPE_CHECKING."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS = {
    "backends": {"backends"},
    "reports": {"reports"},
    "harness": {"harness", "backends", "reports"},
}
LIGHT = {
    "base",
    "catalogue",
    "checkpoint",
    "convert",
    "dumped",
    "dumps",
    "errors",
    "fault_list",
    "fingerprint",
    "probe",
    "prompts",
    "recorder",
    "registry",
    "sampling",
    "streaming",
    "tape",
    "tokenizer",
}
"""What the harness may know of the backends; weights only as a type."""

FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module or ""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_room_imports_only_what_it_may(path: Path) -> None:
    room = path.relative_to(ROOT).parts[0]
    others = {name for name in imports(path) if name.split(".")[0] in ROOMS}
    assert {name.split(".")[0] for name in others} <= ROOMS[room]
    if room == "harness":
        concrete = {name for name in others if name.startswith("backends.")} - {f"backends.{name}" for name in LIGHT}
        assert concrete <= {"backends.weights"}, f"{path.name} knows a concrete backend: {concrete}"


@pytest.mark.parametrize("room", ["harness", "reports"])
def test_harness_and_reports_never_import_torch(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        assert not {"torch", "safetensors.torch"} & set(imports(path)), path


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "--help"], ["--version"], ["suites"], ["backends"]])
def test_light_commands_load_no_torch(arguments: list[str]) -> None:
    code = f"""
import sys
from harness.__main__ import main
sys.argv = ["harness", *{arguments!r}]
try:
    main()
except SystemExit:
    pass
heavy = {{"torch", "pandas", "jinja2"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
