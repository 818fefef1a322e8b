"""What opening a subject costs, and what is said of one that breaks when it is first asked."""

import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backends.base import Session
from backends.checkpoint import open_checkpoint
from backends.weights import Weights
from harness import memory, opening
from reports.record import Measurement, Observation
from tests.harness import fakes

SERVER = Path(__file__).parents[1] / "backends" / "numpy_server.py"
TOKENS = np.arange(40)


@pytest.fixture(scope="module")
def weights() -> Iterator[Weights]:
    with fakes.registered(), open_checkpoint("conformance") as opened:
        yield opened


def rows(session: Session, data: dict[str, float]) -> tuple[dict[str, float | None], Observation]:
    found = list(opening.rows("long", "x", session, data))
    (seen,) = (row for row in found if isinstance(row, Observation))
    return {row.name: row.value for row in found if isinstance(row, Measurement)}, seen


def test_a_session_comes_with_its_times_and_memory(weights: Weights) -> None:
    session, data = opening.opened("right", weights, 1, TOKENS)
    with session:
        assert data["load_seconds"] > 0
        assert data["first_seconds"] > 0
        assert ("own" in data) == (memory.look() is not None)
        numbers, seen = rows(session, data)
    assert numbers["load_time"] == data["load_seconds"]
    assert numbers["first_answer"] == data["first_seconds"]
    assert numbers["state_size"] == 4 * weights.facts.n_layer * (
        2 * weights.facts.n_embd + weights.facts.n_embd * weights.facts.head_size
    )
    assert "round_trip" not in numbers
    assert seen.data["energy"]


def test_who_breaks_when_first_asked_is_open_all_the_same(weights: Weights) -> None:
    session, data = opening.opened("dying", weights, 1, TOKENS)
    session.close()
    assert "load_seconds" in data
    assert "first_seconds" not in data


def test_answers_from_a_recording_are_not_timed(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []
    monkeypatch.setattr(fakes.Right, "timed", False)
    monkeypatch.setattr(fakes.Right, "forward", lambda *_, **__: asked.append(1))
    session, data = opening.opened("right", weights, 1, TOKENS)
    session.close()
    assert not asked
    assert "first_seconds" not in data


def test_a_program_in_a_child_process_is_seen(weights: Weights) -> None:
    command = shlex.join([sys.executable, str(SERVER)])
    session, data = opening.opened(f"process:{command}", weights, 1, TOKENS)
    with session:
        numbers, _ = rows(session, data)
    assert (numbers["round_trip"] or 0) > 0
    if memory.look() is not None:
        assert data["processes"] >= 1
        assert (numbers["memory_of_children"] or 0) > 1 << 20
