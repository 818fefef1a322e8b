"""Whole test sessions inside a test, with the plugin loaded once, however this project is installed."""

from collections.abc import Callable
from importlib.metadata import entry_points

import pytest

PLUGIN = "harness.pytest_plugin"
LOADED = any(point.value == PLUGIN for point in entry_points(group="pytest11"))
ARGUMENTS = [*(() if LOADED else ("-p", PLUGIN)), "-p", "no:randomly", "-p", "no:benchmark"]

Session = Callable[..., pytest.RunResult]


@pytest.fixture
def session(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Session:
    """A session in an empty project, in this process."""
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)
    pytester.makeini("[pytest]\n")

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_inprocess(*ARGUMENTS, *arguments)

    return run
