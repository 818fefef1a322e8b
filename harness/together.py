"""Cases side by side on a session that reads its whole checkpoint for every call.

Each piece of work runs in a thread of its own, only one of them at a time, in a fixed order, until all that are left
wait for a `forward`; those calls are then made together, so that every layer is read once for all of them. The work
needs no change for it, whether it makes one call or goes token by token.
"""

import contextvars
import threading
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

import numpy.typing as npt

from backends.base import Array, Call, Gap, Ids, Output, Session, State, Want

T = TypeVar("T")
Work = Callable[[Session], T]


def side_by_side(session: Session, works: Sequence[Work[T]]) -> list[T]:
    """Run pieces of work that are independent of each other.

    Args:
        session: what they are run on; one that does not stream runs one after another.
        works: given a session, return a result.

    Returns:
        Their results, in order.

    Raises:
        Exception: what the first of them raised; the others are abandoned.
    """
    if not session.streams or len(works) < 2:
        return [work(session) for work in works]
    strands = [_Strand(session, work) for work in works]
    try:
        _weave(session, strands)
    finally:
        for strand in strands:
            strand.abandon()
    return [strand.result for strand in strands]


class _AbandonedError(BaseException):
    """Ends a strand whose result nobody waits for any more; no `except Exception` may catch it."""


class _Strand(Session, Generic[T]):
    """One piece of work in its thread, and the session that it sees."""

    def __init__(self, session: Session, work: Work[T]) -> None:
        self.session, self.info, self.tokenizer = session, session.info, session.tokenizer
        self.call: Call | None = None
        self.answer: Output | Exception | None = None
        self.error: BaseException | None = None
        self.result: T
        self.over = self.abandoned = False
        self._mine, self._theirs = threading.Semaphore(0), threading.Semaphore(0)
        context = contextvars.copy_context()  # numpy keeps there what overflow means
        self._thread = threading.Thread(target=context.run, args=(self._run, work), daemon=True)
        self._thread.start()

    def turn(self) -> None:
        """Let it run until it asks for a `forward` or is over."""
        self._mine.release()
        self._theirs.acquire()

    def abandon(self) -> None:
        """End it where it waits, or will."""
        self.abandoned = True
        self._mine.release()
        self._thread.join()

    def _run(self, work: Work[T]) -> None:
        try:
            self._wait()
            self.result = work(self)
        except _AbandonedError:
            pass
        except BaseException as error:  # handed to whoever waits for the result
            self.error = error
        finally:
            self.call, self.over = None, True
            self._theirs.release()

    def _wait(self) -> None:
        self._mine.acquire()
        if self.abandoned:
            raise _AbandonedError

    def forward(self, tokens: npt.ArrayLike, state: Any = None, want: Want | None = None) -> Output:
        """Ask, and wait for the others to have asked."""
        self.call = (tokens, state, want)
        self._theirs.release()
        self._wait()
        answer, self.answer = self.answer, None
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        return answer

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        return self.forward(tokens, state, want)

    def export_state(self, state: Any) -> State:
        return self.session.export_state(state)

    def import_state(self, state: State) -> Any:
        return self.session.import_state(state)

    def replay(self, *arguments: Any, **named: Any) -> dict[str, Array]:
        return self.session.replay(*arguments, **named)

    def gaps(self, *arguments: Any, **named: Any) -> dict[str, Gap]:
        return self.session.gaps(*arguments, **named)

    def misread(self, *arguments: Any, **named: Any) -> dict[str, Array]:
        return self.session.misread(*arguments, **named)

    def sync(self) -> None:
        self.session.sync()


def _weave(session: Session, strands: "Sequence[_Strand[Any]]") -> None:
    """Turn by turn until all are over."""
    while True:
        for strand in strands:
            if not strand.over:
                strand.turn()
            if strand.error is not None:
                raise strand.error
        asking = [strand for strand in strands if not strand.over]
        if not asking:
            return
        calls = [strand.call for strand in asking if strand.call is not None]
        for strand, answer in zip(asking, _answers(session, calls), strict=True):
            strand.answer = answer


def _answers(session: Session, calls: Sequence[Call]) -> list[Output | Exception]:
    """The calls made together; if that breaks each by itself, so that only the guilty one hears of it."""
    try:
        return list(session.forward_together(calls))
    except Exception:  # any backend's error, told to whoever made the call
        return [_answer(session, call) for call in calls]


def _answer(session: Session, call: Call) -> Output | Exception:
    try:
        return session.forward(*call)
    except Exception as error:
        return error
