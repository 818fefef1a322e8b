"""A conversation: rounds of question and answer over one recurrent state, which can be saved and gone on with.

The history is the state, not a text that is read again: a round feeds the question and nothing before it. What is fed
is what the user saw: an answer that was cut (by its stop text, by the user, by its length) goes on from the last token
that is wholly part of it.
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any

from backends.base import ModelFacts, Session, Tokenizer
from backends.errors import InputError, UsageError
from backends.prompts import SEPARATOR, template, turn
from backends.sampling import Params, Sampler, semantics
from backends.tokenizer import none_because
from harness.answer import Answer, Feed, InterruptedPromptError, Limits

END_OF_DOCUMENT = 0
"""Id that ends a document in the World vocabulary, which is the only one of ours that has such an id."""


@dataclass(frozen=True)
class Settings:
    """How answers are drawn.

    Attributes:
        params: what shapes the distribution.
        sampling: "official" or "candle".
        seed: of all draws, from 0.
        tokens: most tokens of an answer.
        template, system: see `backends.prompts`.
        stops: texts that end an answer; None takes the template's.
    """

    params: Params
    sampling: str = "official"
    seed: int = 0
    tokens: int = 500
    template: str = "chat"
    system: str = ""
    stops: tuple[str, ...] | None = None

    def limits(self, ends: tuple[int, ...] = ()) -> Limits:
        """When an answer ends."""
        stops = template(self.template).stops if self.stops is None else self.stops
        return Limits(self.tokens, stops, ends)


def defaults(facts: ModelFacts, sampling: str, preset: Params | None = None) -> Params:
    """Parameters to start from: a preset's, else those that the semantics' own program starts from.

    Without penalties where tokens are bytes: every letter recurs in the next word, and penalising that garbles it.
    """
    params = preset or semantics(sampling).defaults
    return replace(params, presence=0.0, frequency=0.0) if facts.tokenizer == "bytes" else params


def tokenizer_of(session: Session) -> Tokenizer:
    """The session's tokenizer, or an error in words."""
    if session.tokenizer is None:
        raise InputError(f"{none_because(session.info.model)}, so no text can be fed or shown.")
    return session.tokenizer


def ends_of(facts: ModelFacts) -> tuple[int, ...]:
    """Ids that end every answer."""
    return (END_OF_DOCUMENT,) if facts.tokenizer == "world" else ()


def make_sampler(session: Session, settings: Settings, draws: int = 0) -> Sampler:
    """A sampler for a session; ids that its tokenizer lacks are never chosen (heads are padded)."""
    tokenizer, size = tokenizer_of(session), session.info.model.vocab_size
    known = min(getattr(tokenizer, "vocab_size", size), size)
    return Sampler(settings.params, settings.sampling, settings.seed, tokenizer, draws, range(known, size))


@dataclass
class Point:
    """Where a conversation stands: everything that the next round depends on besides the settings."""

    place: Any = None
    rest: str = ""
    rounds: tuple[tuple[str, str], ...] = ()
    seen: dict[int, float] = field(default_factory=dict)


class Conversation:
    """Rounds over one state.

    Args:
        session: of any backend.
        settings: how answers are drawn.
        interrupted: asked between two tokens; True ends the answer there.

    Attributes:
        point: where it stands.
        last: the last answer.

    Raises:
        UsageError: the template is for single texts.
        InputError: no tokenizer is known.
    """

    def __init__(self, session: Session, settings: Settings, interrupted: Callable[[], bool] = lambda: False) -> None:
        turn(settings.template, "")
        self.session, self.tokenizer = session, tokenizer_of(session)
        self.feed = Feed(session, interrupted)
        self.point, self.last = Point(), None
        self._before: Point | None = None
        self.settings = settings
        self.sampler = make_sampler(session, settings)

    last: Answer | None

    def change(self, settings: Settings) -> None:
        """Go on with other settings; counts and the number of draws stay. A system text waits for a new beginning."""
        turn(settings.template, "")
        draws, seen = self.sampler.draws, self.sampler.counts.seen
        self.settings = settings
        self.sampler = make_sampler(self.session, settings, draws)
        self.sampler.counts.seen = seen

    def say(self, text: str) -> Iterator[str]:
        """Ask; yields the answer in pieces. After an interrupt inside the question nothing has been said."""
        before = self._now()
        self._before = before
        first, settings = not self.point.rounds, self.settings
        head = "" if first else self.point.rest + SEPARATOR
        question = head + turn(settings.template, text, settings.system if first else "")
        ids = self.tokenizer.encode(question)
        self.sampler.start(ids)
        ends = ends_of(self.session.info.model)
        answer = Answer(self.feed, self.tokenizer, self.sampler, settings.limits(ends), ids, self.point.place)
        try:
            yield from answer
        except InterruptedPromptError:
            self._go(before)
            raise
        finally:
            if answer.logits is not None:
                self.last = answer
                self.point = Point(answer.place, answer.rest, (*before.rounds, (text, answer.text)))

    def again(self) -> Iterator[str]:
        """Ask the last question again; other luck, another answer.

        Raises:
            UsageError: nothing was asked yet.
        """
        if self._before is None or not self.point.rounds:
            raise UsageError("there is no answer to draw again.")
        question = self.point.rounds[-1][0]
        self._go(self._before)
        return self.say(question)

    def reset(self) -> None:
        """Forget everything that was said; draws go on."""
        self._go(Point())
        self._before = None

    def resume(self, point: Point, settings: Settings, draws: int) -> None:
        """Go on from somewhere else, as a saved conversation does."""
        self.settings, self._before, self.last = settings, None, None
        self.sampler = make_sampler(self.session, settings, draws)
        self._go(point)

    def _now(self) -> Point:
        return replace(self.point, seen=dict(self.sampler.counts.seen))

    def _go(self, point: Point) -> None:
        self.point = point
        self.sampler.counts.seen = deepcopy(point.seen)
