"""Work side by side: the same results, fewer passes, and an end to everything when one piece breaks."""

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from backends.base import Call, Output, Session, Want
from backends.checkpoint import open_checkpoint
from backends.errors import BackendError
from backends.reference.session import EquationSession
from harness.together import side_by_side


class Counting(EquationSession):
    """A session that claims to stream, and counts how many calls it got at once."""

    def __init__(self) -> None:
        super().__init__(open_checkpoint("conformance"), "counting", "f32", threads=1)
        self.streams, self.sizes = True, list[int]()

    def forward_together(self, calls: Any) -> list[Output]:
        self.sizes.append(len(calls))
        return super().forward_together(calls)


@pytest.fixture
def session() -> Counting:
    return Counting()


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Any:
    before = set(threading.enumerate())  # other tests may have left some behind
    yield
    assert set(threading.enumerate()) <= before


def _tokens(count: int) -> Callable[[Session], list[int]]:
    return lambda session: [int(step[0]) for step in session.generate([1, 2, 3], max_new_tokens=count)]


def test_the_same_results_in_fewer_passes(session: Counting) -> None:
    works = [_tokens(count) for count in (3, 5, 1)]
    alone = [work(session) for work in works]
    assert side_by_side(session, works) == alone
    assert max(session.sizes) == 3
    assert len(session.sizes) <= 6


@pytest.mark.parametrize("streams", [True, False])
def test_one_piece_or_a_session_that_fits_runs_plainly(session: Counting, streams: bool) -> None:
    session.streams = streams
    works = [_tokens(2)] * (1 if streams else 2)
    assert side_by_side(session, works) == [work(session) for work in works]
    assert session.sizes == []


def test_everything_that_a_session_has(session: Counting) -> None:
    def work(given: Session) -> bool:
        out = given.forward([1, 2], want=Want(logits="none", state=True, trace=("*",)))
        again = given.import_state(given.export_state(out.state))
        given.sync()
        gaps = given.gaps(list(out.trace))
        found = given.replay(out.trace, [1, 2], only=["blocks.0.att.w"])
        same = np.allclose(found["blocks.0.att.w"], out.trace["blocks.0.att.w"], rtol=1e-5)
        given.misread(out.trace, [1, 2], "blocks.0.att.r")
        return same and bool(gaps) and given.forward([3], again).logits is not None and given.info is session.info

    assert side_by_side(session, [work, work]) == [True, True]


@pytest.mark.parametrize("place", [0, 1, 2])
@pytest.mark.parametrize("late", [False, True])
def test_the_first_error_ends_all(session: Counting, place: int, late: bool) -> None:
    def breaks(given: Session) -> list[int]:
        if late:
            given.forward([1])
        raise ValueError("broken")

    works = [_tokens(4) for _ in range(3)]
    works[place] = breaks
    with pytest.raises(ValueError, match="broken"):
        side_by_side(session, works)


def test_only_the_guilty_call_hears_of_its_error(session: Counting) -> None:
    def catches(given: Session) -> str:
        try:
            given.forward([-1])
        except BackendError as error:
            return str(error)
        return ""

    good, bad = side_by_side(session, [_tokens(1), catches])
    assert good == _tokens(1)(session)
    assert "token ids must lie in" in str(bad)


def test_an_interruption_ends_all(session: Counting, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(calls: list[Call]) -> list[Output]:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "forward_together", interrupted)
    with pytest.raises(KeyboardInterrupt):
        side_by_side(session, [_tokens(3), _tokens(3)])


def test_what_overflow_means_is_kept(session: Counting) -> None:
    def overflows(given: Session) -> float:
        given.forward([1])
        return float(np.float32(3e38) * np.float32(10))

    with np.errstate(all="ignore"):
        assert side_by_side(session, [overflows, overflows]) == [np.inf, np.inf]
