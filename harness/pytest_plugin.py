"""The pytest plugin: options and hooks. It costs nothing where nobody asks for a backend: all else is imported then."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from harness.acceptance import Group

TESTS = Path(__file__).with_name("conformance.py")


def pytest_addoption(parser: pytest.Parser) -> None:
    """The options."""
    group = parser.getgroup("rwkv", "acceptance of RWKV backends; together with --pyargs harness.conformance")
    group.addoption("--rwkv-backend", action="append", default=[], metavar="NAME", help="repeatable: NAME[@dtype]")
    group.addoption("--rwkv-model", default="conformance", metavar="MODEL", help="checkpoint (default: conformance)")
    group.addoption("--rwkv-profile", default="strict", metavar="NAME", help="strict (default) or seed")
    group.addoption("--rwkv-suite", action="append", default=[], metavar="NAME", help="repeatable, or a,b")
    group.addoption("--rwkv-out", default="", metavar="DIR", help="folder for record and report (default: none)")


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> pytest.Module | None:
    """`harness.conformance` itself holds one group: what the options ask for."""
    if module_path.name != TESTS.name or module_path.resolve() != TESTS.resolve():
        return None
    from harness.acceptance import Conformance

    return Conformance.from_parent(parent, path=module_path, nodeid=TESTS.stem)


@pytest.hookimpl(tryfirst=True)
def pytest_pycollect_makeitem(collector: pytest.Collector, name: str, obj: object) -> "Group | None":
    """An `Acceptance` in anybody's test file becomes a group of tests."""
    known: Any = sys.modules.get("harness.conformance")  # who has not imported it has none
    if known is None or not isinstance(obj, known.Acceptance):
        return None
    from harness.acceptance import Group

    return Group.from_parent(collector, name=name, acceptance=obj)


def pytest_report_collectionfinish(config: pytest.Config, items: list[pytest.Item]) -> list[str]:
    """What the first test waits for, or that nobody asked for what the options describe."""
    nodes: Any = sys.modules.get("harness.acceptance")
    if nodes is not None and any(isinstance(item, nodes.Checked) for item in items):
        return ["rwkv: one run judges all criteria; the first test waits for it"]
    if config.getoption("rwkv_backend"):
        return ["rwkv: --rwkv-backend judges nothing by itself; add --pyargs harness.conformance"]
    return []
