"""A run against an earlier one: the same cells on the same machine, or in words why not."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.errors import InputError
from harness import history
from reports import store
from reports.record import Observation, Record, RecordError, Subject

MACHINE = {"cpu": "EPYC", "cores": 2, "memory_gib": 24.0, "packages": {"torch": "2.13.0"}}
INFO = {"threads": 2, "device": "cpu", "device_name": "EPYC", "dtype": "f32"}


def timed(seconds: float, limit: float = 0.0, subject: str = "x", what: str = "decode", noise: float = 0.01) -> Any:
    random = np.random.default_rng(0)
    each = [seconds * (1 + noise * random.random()) for _ in range(20)]
    data: dict[str, Any] = {"what": what, "tokens": 16, "batch": 1, "seconds": each}
    return Observation("speed", "long", subject, "samples", data | ({"whole_seconds": [limit] * 20} if limit else {}))


def run(*observations: Observation, **more: Any) -> Record:
    made = Record(
        id="20260101T000000Z-00000000",
        created="2026-01-01T00:00:00+00:00",
        status="complete",
        model={"name": "conformance"},
        environment=MACHINE,
        subjects=(Subject("x", "candidate", INFO), Subject("y", "candidate", INFO)),
        observations=observations,
    )
    return replace(made, **more)


def verdicts(now: Record, then: Record) -> list[dict[str, Any]]:
    return [o.data for o in history.with_history(now, then).observations if o.kind == "history"]


@pytest.mark.parametrize(("seconds", "verdict"), [(0.5, "faster"), (1.0, "equivalent"), (1.2, "slower")])
def test_the_same_machine_is_compared(seconds: float, verdict: str) -> None:
    (data,) = verdicts(run(timed(seconds)), run(timed(1.0)))
    assert data["verdict"] == verdict
    assert data["ratio"] == pytest.approx(1 / seconds, rel=0.01)
    assert data["low"] <= data["ratio"] <= data["high"]
    assert (data["normalised"], data["created"]) == (False, "2026-01-01T00:00:00+00:00")


def test_a_machine_that_has_become_slower_is_no_regression() -> None:
    (data,) = verdicts(run(timed(2.0, limit=1.0)), run(timed(1.0, limit=0.5)))
    assert (data["verdict"], data["normalised"]) == ("equivalent", True)
    (data,) = verdicts(run(timed(2.0, limit=1.0)), run(timed(1.0)))
    assert (data["verdict"], data["normalised"]) == ("slower", False)


def test_scatter_without_a_difference_is_inconclusive() -> None:
    (data,) = verdicts(run(timed(1.0, noise=0.5)), run(timed(1.0, noise=0.5)))
    assert data["verdict"] == "inconclusive"


@pytest.mark.parametrize(
    ("fact", "value", "words"),
    [
        ("cpu", "Xeon", "another processor: Xeon then, EPYC now"),
        ("cores", 64, "another number of cores: 64 then, 2 now"),
        ("packages", {"torch": "2.0"}, "another torch: 2.0 then, 2.13.0 now"),
    ],
)
def test_another_machine_is_incomparable_in_words(fact: str, value: Any, words: str) -> None:
    (data,) = verdicts(run(timed(1.0)), run(timed(1.0), environment={**MACHINE, fact: value}))
    assert (data["verdict"], data["because"]) == ("incomparable", words)
    assert "ratio" not in data


def test_another_subject_cell_or_checkpoint_is_incomparable() -> None:
    now = run(timed(1.0), timed(1.0, subject="y"), timed(1.0, what="prefill"))
    then = run(timed(1.0), subjects=(Subject("x", "candidate", INFO),))
    first, second, third = verdicts(now, then)
    assert first["verdict"] == "equivalent"
    assert second["because"] == "the baseline did not time this subject"
    assert third["because"] == "the baseline did not time this cell"
    (data,) = verdicts(run(timed(1.0)), run(timed(1.0), model={"name": "demo"}))
    assert data["because"] == "the baseline timed the checkpoint demo"
    other = Subject("x", "candidate", {**INFO, "threads": 1})
    (data,) = verdicts(run(timed(1.0)), run(timed(1.0), subjects=(other,)))
    assert data["because"] == "another threads: 1 then, 2 now"


def test_a_noisy_run_has_no_verdict() -> None:
    control = Observation("speed", "long", "x", "control", {"verdict": "inconclusive"})
    for now, then in ((run(timed(9.0), control), run(timed(1.0))), (run(timed(9.0)), run(timed(1.0), control))):
        (data,) = verdicts(now, then)
        assert data["verdict"] == "inconclusive"
        assert "too noisy" in data["because"]


def test_a_baseline_has_to_have_timings(tmp_path: Path) -> None:
    path = store.save(run(timed(1.0)), tmp_path)
    assert history.timed_record(path).id == path.stem
    empty = store.save(run(id="20260102T000000Z-00000000"), tmp_path)
    with pytest.raises(InputError, match="nothing was timed in that run"):
        history.timed_record(empty)
    (tmp_path / "broken.json").write_text("{")
    with pytest.raises(RecordError):
        history.timed_record(tmp_path / "broken.json")
