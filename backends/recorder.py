"""Records a session: everything passes through to it, and what was asked and answered is kept on a tape."""

import base64
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.base import Array, Call, Gap, Ids, Output, Sampler, Sampling, Session, State, Tokenizer, Want
from backends.errors import BackendError, HarnessError
from backends.tape import Json, Take, Tape


@dataclass(frozen=True)
class Kept:
    """A state: its number in the recording, and the session's own handle."""

    number: int
    handle: Any


def forward_call(tokens: Ids, state: int | None, want: Want) -> Json:
    """A `forward` as a recording writes it."""
    return {
        "verb": "forward",
        "tokens": tokens.tolist(),
        "state": state,
        "logits": want.logits,
        "keep": want.state,
        "trace": list(want.trace),
        "fetch": want.fetch,
    }


def generate_call(tokens: Ids, sampled: bool, max_new_tokens: int, stop: Sequence[int]) -> Json:
    """A `generate` as a recording writes it."""
    stops = [int(one) for one in stop]
    return {
        "verb": "generate",
        "tokens": tokens.tolist(),
        "max_new_tokens": max_new_tokens,
        "stop": stops,
        "sampled": sampled,
    }


def sampling_call(logits: Json, prompt: Sequence[int], generated: Sequence[int], shape: Mapping[str, float]) -> Json:
    """A question to a session's own sampler as a recording writes it."""
    ids = {"prompt": [int(one) for one in prompt], "generated": [int(one) for one in generated]}
    return {"verb": "probabilities", "logits": logits, **ids, "parameters": dict(shape)}


class Recorder(Session):
    """A session whose calls are kept; transparent otherwise.

    Args:
        session: what answers; it belongs to the recorder from now on.
        tape: where calls go.
    """

    def __init__(self, session: Session, tape: Tape) -> None:
        self.session, self.tape = session, tape
        self.info, self.streams = session.info, session.streams
        self.tokenizer = _Tokenizer(session.tokenizer, self) if session.tokenizer else None
        self.sampling = _Sampling(session.sampling, self) if session.sampling else None
        self._take: Take = tape.take()

    @contextmanager
    def noting(self, call: Json) -> Iterator[None]:
        """Keep what a call broke with, as its answer."""
        try:
            yield
        except Exception as error:  # a backend may break in any way
            self.keep(call, {"error": _said(error)})
            raise

    def keep(self, call: Json, answer: Json, slot: int | None = None) -> int | None:
        """Keep a call and its answer; the number of the state that came out, if one did."""
        return self.tape.keep(call, answer, self._take, slot)

    def _forward(self, tokens: Ids, state: Kept | None, want: Want) -> Output:
        call = forward_call(tokens, _number(state), want)
        with self.noting(call):
            out = self.session.forward(tokens, _handle(state), want)
        return self._answered(call, out)

    def forward_together(self, calls: Sequence[Call]) -> list[Output]:
        """See `Session.forward_together`; together here is together there."""
        admitted = [self._admitted(*call) for call in calls]
        outs = self.session.forward_together([(ids, _handle(state), want) for ids, state, want in admitted])
        asked = [forward_call(ids, _number(state), want) for ids, state, want in admitted]
        return [self._answered(call, out) for call, out in zip(asked, outs, strict=True)]

    def _answered(self, call: Json, out: Output) -> Output:
        answer: Json = {} if out.logits is None else {"logits": self.tape.put(out.logits)}
        if out.trace:
            answer["trace"] = {name: self.tape.put(value) for name, value in out.trace.items()}
        number = self.keep(call, answer)
        return Output(out.logits, out.state if number is None else Kept(number, out.state), out.trace)

    def generate(
        self, tokens: npt.ArrayLike, sampler: Sampler | None = None, max_new_tokens: int = 1, stop: Sequence[int] = ()
    ) -> Iterator[Ids]:
        """See `Session.generate`; what a sampler was shown is kept with what it chose."""
        ids = self._checked(tokens)
        call = generate_call(ids, sampler is not None, max_new_tokens, stop)
        slot = len(self._take)
        self._take.append(None)
        steps: list[Json] = []
        drawn: list[Json] = []

        def watched(logits: Array) -> Ids:
            assert sampler is not None
            shown = self.tape.put(logits)
            chosen = sampler(logits)
            drawn.append({"logits": shown, "ids": np.asarray(chosen).tolist()})
            return chosen

        how: Json = {"ended": False}
        try:
            for step in self.session.generate(ids, sampler and watched, max_new_tokens, stop):
                steps.append({"ids": step.tolist(), "drawn": [*drawn]})
                drawn.clear()
                yield step
            how = {"ended": True}
        except Exception as error:
            how = {"ended": True, "broke": _said(error)}
            raise
        finally:
            self.keep(call, {"steps": steps, "drawn": [*drawn], **how}, slot)

    def export_state(self, state: Kept) -> State:
        """See `Session.export_state`."""
        call: Json = {"verb": "export_state", "state": _number(state)}
        with self.noting(call):
            found = self.session.export_state(_handle(state))
        self.keep(call, {"parts": self._parts(found)})
        return found

    def import_state(self, state: State) -> Kept:
        """See `Session.import_state`."""
        call: Json = {"verb": "import_state", "parts": self._parts(state)}
        with self.noting(call):
            handle = self.session.import_state(state)
        number = self.keep(call, {})
        assert number is not None
        return Kept(number, handle)

    def _parts(self, state: State) -> Json:
        return {name: self.tape.put(part) for name, part in state.parts().items()}

    def replay(self, *arguments: Any, **named: Any) -> dict[str, Array]:
        """See `Session.replay`; passed on and not kept, for it is a reference that is asked."""
        return self.session.replay(*arguments, **named)

    def gaps(self, *arguments: Any, **named: Any) -> dict[str, Gap]:
        """See `Session.gaps`; not kept."""
        return self.session.gaps(*arguments, **named)

    def misread(self, *arguments: Any, **named: Any) -> dict[str, Array]:
        """See `Session.misread`; not kept."""
        return self.session.misread(*arguments, **named)

    def sync(self) -> None:
        """See `Session.sync`."""
        self.session.sync()

    def close(self) -> None:
        """Close the session; the tape stays."""
        self.session.close()


def _said(error: Exception) -> list[str]:
    """The kind of an error, where it is one of ours, and its words."""
    known = isinstance(error, HarnessError)
    return [type(error).__name__, str(error)] if known else ["", f"{type(error).__name__}: {error}"]


def _number(state: Kept | None) -> int | None:
    if state is not None and not isinstance(state, Kept):
        raise BackendError("the state is no handle of this recorder.")
    return None if state is None else state.number


def _handle(state: Kept | None) -> Any:
    return None if state is None else state.handle


class _Tokenizer:
    """A tokenizer whose calls are kept."""

    def __init__(self, tokenizer: Tokenizer, recorder: Recorder) -> None:
        self._tokenizer, self._recorder, self.name = tokenizer, recorder, tokenizer.name
        if hasattr(tokenizer, "vocab_size"):
            self.vocab_size = int(tokenizer.vocab_size)

    def encode(self, text: str) -> list[int]:
        call = {"verb": "encode", "text": text}
        with self._recorder.noting(call):
            ids = [int(one) for one in self._tokenizer.encode(text)]
        self._recorder.keep(call, {"tokens": ids})
        return ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        call = {"verb": "decode", "tokens": [int(one) for one in ids]}
        with self._recorder.noting(call):
            raw = self._tokenizer.decode_bytes(ids)
        self._recorder.keep(call, {"base64": base64.b64encode(raw).decode()})
        return raw


class _Sampling:
    """A session's own sampler, whose calls are kept."""

    def __init__(self, sampling: Sampling, recorder: Recorder) -> None:
        self._sampling, self._recorder, self.semantics = sampling, recorder, sampling.semantics

    def probabilities(
        self, logits: Array, prompt: Sequence[int], generated: Sequence[int], parameters: Mapping[str, float]
    ) -> Array:
        call = sampling_call(self._recorder.tape.put(logits), prompt, generated, parameters)
        with self._recorder.noting(call):
            p = self._sampling.probabilities(logits, prompt, generated, parameters)
        self._recorder.keep(call, {"p": self._recorder.tape.put(np.asarray(p))})
        return p

    def render(self, template: str, prompt: str, system: str, suffix: str) -> list[int]:
        call = {"verb": "render", "template": template, "prompt": prompt, "system": system, "suffix": suffix}
        with self._recorder.noting(call):
            ids = self._sampling.render(template, prompt, system, suffix)
        self._recorder.keep(call, {"tokens": [int(one) for one in ids]})
        return ids
