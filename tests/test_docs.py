"""Documents against the code: what exists is mentioned, what is mentioned exists."""

import re
from pathlib import Path

import pytest

from backends import registry
from harness import judge, options, suite
from harness.measures import base

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")


def commands() -> list[str]:
    actions = [a for a in options.parser()._actions if a.dest == "command"]
    return list(actions[0].choices or ())


@pytest.mark.parametrize("name", commands())
def test_every_command_is_in_the_readme(name: str) -> None:
    assert re.search(rf"\b{name}\b", README)


@pytest.mark.parametrize("name", suite.names())
def test_every_suite_is_in_the_readme(name: str) -> None:
    assert f"| {name} |" in README


@pytest.mark.parametrize("name", registry._TABLE, ids=lambda row: row.name)
def test_every_backend_is_in_the_readme(name: registry.Backend) -> None:
    assert f"`{name.name}`" in README


@pytest.mark.parametrize("name", judge.profiles())
def test_every_profile_is_documented(name: str) -> None:
    assert f"`{name}`" in (ROOT / "docs" / "criteria.md").read_text(encoding="utf-8")


def test_every_exit_code_is_in_the_readme() -> None:
    for code in (0, 1, 2, 3, 4, 5, 130):
        assert re.search(rf"\b{code} (passed|a criterion|usage|an input|a backend|nothing|interrupted)", README)


@pytest.mark.parametrize("room", ["backends", "harness", "reports"])
def test_every_file_has_its_line_in_the_architecture(room: str) -> None:
    files = [path.relative_to(ROOT / room) for path in (ROOT / room).rglob("*.py") if path.name != "__init__.py"]
    for path in files:
        folder = path.parts[0] if len(path.parts) > 1 else ""
        grouped = folder in ("measures", "compiled") and f"`{folder}/" in ARCHITECTURE
        assert grouped or f"`{path.as_posix()}`" in ARCHITECTURE, f"{room}/{path} is not in docs/architecture.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_option_that_is_documented_exists() -> None:
    plugin = (ROOT / "harness" / "pytest_plugin.py").read_text(encoding="utf-8")
    timing = {"--columns", *(f"--benchmark-{end}" for end in ("only", "autosave", "compare", "compare-fail"))}
    others = {"--cov", "--pyargs", "--no-deps", *timing}  # pytest's, pip's and pytest-benchmark's
    scripts = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "benchmarks").glob("*.py"))
    known = set(options.parser()._known()) | set(re.findall(r'"(--rwkv-[a-z]+)"', plugin)) | others
    known |= set(re.findall(r'add_argument\("(--[a-z-]+)"', scripts))
    for option in set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", ALL)):
        assert option in known, option


def test_measures_have_the_shape_of_a_measure() -> None:
    import importlib

    for name in suite.names():
        if name != "speed":
            module = importlib.import_module(f"harness.measures.{suite.load(name).measure}")
            for function in ("collect", "compare", "observe"):
                assert callable(getattr(module, function)), f"{name}.{function}"
            assert hasattr(base.Measure, "collect")
