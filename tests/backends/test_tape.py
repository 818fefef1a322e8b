"""The folder of a recording: what is kept once, what is told apart, in which order answers come."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from backends import tape
from backends.base import Array, Ids, Session, Want
from backends.recorded import RecordedSession
from backends.recorder import Recorder
from backends.tape import Needle, Tape
from backends.weights import Weights
from tests.backends.recordings import Chance, V, everything, facts, logits, played, recorded, same


def test_calls_and_arrays_are_kept_once(tmp_path: Path, weights: Weights, live: Session) -> None:
    def twice(session: Session) -> None:
        for _ in range(2):
            state = session.forward([1, 2], want=Want(state=True)).state
            session.forward([3], state)
        session.forward([1, 2])  # another call, the same array

    recorded(tmp_path, weights, live, twice)
    told = json.loads((tmp_path / "manifest.json").read_text())
    assert [(call["tokens"], call["state"]) for call in told["calls"]] == [
        ([[1, 2]], None),
        ([[3]], 1),
        ([[1, 2]], None),
    ]
    assert all(len(call["answers"]) == 1 for call in told["calls"])
    assert "takes" not in told, "where equal calls have equal answers, their order says nothing"
    assert len(tape.load(tmp_path)._found) == 2


def test_calls_that_differ_in_one_thing_are_told_apart(tmp_path: Path, weights: Weights, live: Session) -> None:
    def lowest(shown: Array) -> Ids:
        return np.asarray(shown.argmin(axis=-1), dtype=np.int64)

    asking: list[Callable[[Session], Any]] = [
        lambda session: session.forward([1]).logits,
        lambda session: session.forward([1], want=Want(fetch=False)).logits,
        lambda session: list(session.generate([1], max_new_tokens=2)),
        lambda session: list(session.generate([1], max_new_tokens=2, stop=range(V))),
        lambda session: list(session.generate([1], lowest, 2)),
        lambda session: list(session.generate([1], lowest, 1)),
    ]
    then = recorded(tmp_path, weights, live, lambda session: [ask(session) for ask in asking])
    assert then[0].shape == (1, 1, V)
    assert then[1] is None
    with played(tmp_path, weights) as session:
        now = [ask(session) for ask in reversed(asking)][::-1]
    assert repr(now) == repr(then)


def test_arrays_are_written_in_portions(
    tmp_path: Path, weights: Weights, live: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tape, "PORTION", 500)
    expected = recorded(tmp_path, weights, live, everything)
    assert len(list(tmp_path.glob("arrays-*.safetensors"))) > 3
    with played(tmp_path, weights) as session:
        assert same(everything(session), expected)


def test_an_array_is_what_it_was_when_it_was_answered(tmp_path: Path, weights: Weights, live: Session) -> None:
    def spoiled(session: Session) -> Array:
        out = logits(session.forward([1]))
        before = out.copy()
        out[:] = np.nan
        return before

    before = recorded(tmp_path, weights, live, spoiled)
    with played(tmp_path, weights) as session:
        logits(session.forward([1]))[:] = 0
        np.testing.assert_array_equal(logits(session.forward([1])), before)


def first(session: Session) -> list[float]:
    """A chain of calls, the same one twice, and a state that nothing shows."""
    silent = session.forward([1], want=Want("none", state=True)).state
    held = [float(session.export_state(silent).extra["memory"].item())]
    state = session.forward([1], want=Want(state=True)).state
    return held + [float(logits(session.forward([2], state, Want(state=True)))[0, 0, 0]) for _ in range(2)]


def second(session: Session) -> list[float]:
    state = session.forward([1], want=Want(state=True)).state
    return [float(logits(session.forward([token], state))[0, 0, 0]) for token in (2, 3)]


def test_chance_is_repeated_in_the_order_of_the_recording(tmp_path: Path, weights: Weights) -> None:
    on = Tape(tmp_path)
    one, other = Recorder(Chance(weights), on), Recorder(Chance(weights), on)
    expected = first(one), first(one), second(other)
    assert repr(expected) == "([1.0, 3.0, 4.0], [5.0, 7.0, 8.0], [2.0, 3.0])"
    on.finish(facts(weights))
    with played(tmp_path, weights) as session:
        assert first(session) == expected[0]
        assert first(session) == expected[1]
    with played(tmp_path, weights) as session:
        assert second(session) == expected[2], "a session that begins as the second one did is the second one"
        assert first(session) == expected[0], "and what began elsewhere is heard from there"


def test_the_needle_goes_on_then_later_then_back() -> None:
    needle = Needle([[(0, 0), (1, 0), (0, 1)], [(1, 1), (0, 2), (2, 0)]])
    assert [needle.answer(call) for call in (1, 0, 2, 0, 1, 0, 0)] == [1, 2, 0, 0, 0, 1, 0]
    assert Needle([]).answer(5) == 0


def test_the_recording_on_the_page_is_one_that_any_program_could_write(tmp_path: Path, weights: Weights) -> None:
    page = (Path(__file__).parents[2] / "docs" / "recorded.md").read_text(encoding="utf-8")
    (tmp_path / "manifest.json").write_text(page.split("```json\n")[1].split("```")[0])
    numbers = np.arange(10, dtype="<f4").reshape(1, 2, 5)
    name = hashlib.blake2b(b"<f4 (1, 2, 5)\n" + numbers.tobytes(), digest_size=16).hexdigest()
    save_file({name: numbers}, tmp_path / "a.safetensors")
    session = RecordedSession(tape.load(tmp_path), replace(weights.facts, vocab_size=5))
    np.testing.assert_array_equal(logits(session.forward([3, 1], want=Want("all"))), numbers)
    assert (session.info.dtype, session.info.device, session.tokenizer) == ("f32", "cpu", None)
