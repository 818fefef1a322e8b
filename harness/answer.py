"""One answer: feeds ids to a session, draws tokens, streams text, and says where a conversation may go on."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backends.base import Array, Session, Tokenizer, Want
from backends.sampling import Sampler
from backends.streaming import TextStream

PORTION = 256
"""Tokens of a prompt that are fed in one call; between two calls an interrupt is heeded."""

Place = Any
"""How far a session was fed: its state, or, where it has none, all ids so far. None is the beginning."""


class InterruptedPromptError(Exception):
    """The user interrupted while the prompt was read."""


class Feed:
    """A session that is fed piece by piece; without the ability "state" everything is fed again each time.

    Args:
        session: of any backend.
        interrupted: asked between two calls.
    """

    def __init__(self, session: Session, interrupted: Callable[[], bool] = lambda: False) -> None:
        self.session, self.interrupted = session, interrupted
        self.keeps = "state" in session.info.abilities

    def __call__(self, place: Place, ids: Sequence[int]) -> tuple[Array, Place]:
        """Feed ids, at least one, after `place`.

        Returns:
            The logits (V,) after the last, and the place behind it; the place passed in stays valid.

        Raises:
            InterruptedPromptError: between two portions.
        """
        if not self.keeps:
            everything = [*(place or ()), *ids]
            return self._run(everything, None)[0], tuple(everything)
        for start in range(0, len(ids), PORTION):
            if start and self.interrupted():
                raise InterruptedPromptError
            logits, place = self._run(ids[start : start + PORTION], place)
        return logits, place

    def _run(self, ids: Sequence[int], state: Any) -> tuple[Array, Any]:
        out = self.session.forward(np.asarray(ids, dtype=np.int64), state, Want("last", state=self.keeps))
        assert out.logits is not None
        return out.logits[0, -1], out.state


@dataclass(frozen=True)
class Limits:
    """When an answer ends.

    Attributes:
        tokens: after so many.
        stops: before one of these texts.
        ends: before one of these ids.
    """

    tokens: int
    stops: tuple[str, ...] = ()
    ends: tuple[int, ...] = ()


@dataclass
class Answer:
    """Iterate over it for pieces of text as they become certain; afterwards it knows how it went.

    Attributes:
        ids: tokens that were drawn, the stop text's included.
        text: the answer, without stop text.
        reason: "stop" (a stop text), "end" (an end token), "limit" or "interrupted".
        logits: from which the next token would have been drawn, (V,).
        place, rest: what was fed, and the part of the text that was not: `place`, then `rest` and whatever comes next,
            is the conversation as the user saw it. Tokens that hold more than the visible text are not fed.
        prompt_seconds, seconds: for the prompt, and for the answer.
    """

    feed: Feed
    tokenizer: Tokenizer
    sampler: Sampler
    limits: Limits
    prompt: Sequence[int]
    place: Place = None
    ids: list[int] = field(default_factory=list)
    text: str = ""
    reason: str = ""
    rest: str = ""
    logits: Array | None = None
    prompt_seconds: float = 0.0
    seconds: float = 0.0

    def __iter__(self) -> Iterator[str]:
        """Pieces of text.

        Raises:
            InterruptedPromptError: before the first token; `place` is then what it was.
        """
        stream, started = TextStream(self.limits.stops), time.perf_counter()
        self.logits, place = self.feed(self.place, self.prompt)
        read = time.perf_counter()
        self.prompt_seconds = read - started
        self._raw, self._marks = bytearray(), deque([(0, place)])
        try:
            yield from self._drawn(stream)
            yield from self._said(stream.finish())
        finally:
            self.seconds = time.perf_counter() - read
            self._settle(stream.shown)

    def _drawn(self, stream: TextStream) -> Iterator[str]:
        assert self.logits is not None
        while len(self.ids) < self.limits.tokens:
            if self.feed.interrupted():
                self.reason = "interrupted"
                return
            token = int(self.sampler(self.logits[None])[0])
            if token in self.limits.ends:
                self.reason = "end"
                return
            self.ids.append(token)
            piece = self.tokenizer.decode_bytes([token])
            self._raw += piece
            yield from self._said(stream.push(piece))
            if stream.stop:
                self.reason = "stop"
                return
            if len(self.ids) < self.limits.tokens:
                self._step(token, stream.shown)
        self.reason = "limit"

    def _said(self, text: str) -> Iterator[str]:
        if text:
            self.text += text
            yield text

    def _step(self, token: int, shown: int) -> None:
        """Feed a token; of the places inside text that is certain only the last is kept."""
        self.logits, place = self.feed(self._marks[-1][1], [token])
        self._marks.append((len(self._raw), place))
        while len(self._marks) > 1 and self._marks[1][0] <= shown and self._whole(self._marks[1][0], shown):
            self._marks.popleft()

    def _settle(self, shown: int) -> None:
        """Go back to the last place inside the visible text behind which whole characters follow."""
        marks = [(at, place) for at, place in self._marks if at <= shown]
        at, self.place = next(((a, p) for a, p in reversed(marks) if self._whole(a, shown)), marks[-1])
        self.rest = bytes(self._raw[at:shown]).decode("utf-8", "ignore")

    def _whole(self, start: int, end: int) -> bool:
        try:
            bytes(self._raw[start:end]).decode("utf-8")
        except UnicodeDecodeError:
            return False
        return True
