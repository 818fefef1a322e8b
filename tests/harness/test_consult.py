"""When a run is diagnosed, and what it says then."""

from typing import Any

import pytest

from harness.diagnose import Clinic
from harness.diagnosis import Diagnosis
from tests.harness.conftest import Command
from tests.harness.stub import measured, small_suites

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_failed_run_is_diagnosed_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    small_suites(monkeypatch)
    record = measured("fault:bonus-missing", "torch-cpu-f32", suites=("logits",), runs=8, diagnosis=True)
    (seen,) = [o for o in record.observations if o.kind == "diagnosis"]
    assert (seen.subject, seen.suite, seen.data["cause"]) == ("fault:bonus-missing", "logits", "bonus-missing")
    off = measured("fault:bonus-missing", suites=("logits",), runs=8)
    assert not [o for o in off.observations if o.kind == "diagnosis"]


def test_validate_prints_the_diagnosis_unless_told_not_to(command: Command) -> None:
    arguments = ("validate", "--backend", "fault:bonus-missing", "--suite", "layers", "--honest-runs", "8")
    found = command(*arguments)
    assert found.code == 1
    assert "DIAGNOSIS fault:bonus-missing: Layer 0, token 0: `att.bonus`" in found.out
    assert "DIAGNOSIS" not in command(*arguments, "--no-diagnosis").out


def test_a_candidate_that_breaks_under_diagnosis_breaks_no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    small_suites(monkeypatch)

    def broken(*_: Any, **__: Any) -> Diagnosis:
        raise RuntimeError("no memory")

    monkeypatch.setattr(Clinic, "examine", broken)
    record = measured("fault:bonus-missing", suites=("logits",), runs=8, diagnosis=True)
    assert record.status == "complete"
    assert any("fault:bonus-missing could not be diagnosed: RuntimeError: no memory" in note for note in record.notes)
