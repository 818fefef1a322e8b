"""Backends that are wrong in one way each, put into the registry for the length of a test."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backends import registry
from backends.base import Array, Ids, Output, Session, State, Want
from backends.prompts import render
from backends.reference import v7
from backends.reference.session import EquationSession
from backends.sampling import Params, Sampler
from backends.weights import Weights


class Broken(EquationSession):
    """The float32 equations, spoilt by `spoil` after every forward."""

    def __init__(self, weights: Weights, spoil: Callable[[Output], Output], **options: Any) -> None:
        super().__init__(weights, "broken", "f32", **options)
        self.spoil = spoil

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        return self.spoil(super()._forward(tokens, state, want))


class OwnSampling:
    """A sampler and templates as the official ones are."""

    semantics = "official"

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def probabilities(
        self, logits: Array, prompt: Sequence[int], generated: Sequence[int], parameters: Mapping[str, float]
    ) -> Array:
        typed: dict[str, Any] = dict(parameters)
        sampler = Sampler(Params(**typed), self.semantics, tokenizer=self.tokenizer)
        sampler.start(prompt)
        for token in generated:
            sampler.counts.add(token)
        return sampler.probabilities(logits).astype(np.float32)

    def render(self, template: str, prompt: str, system: str, suffix: str) -> list[int]:
        ids: list[int] = self.tokenizer.encode(render(template, prompt, system, suffix, self.semantics))
        return ids


class Right(Broken):
    """Broken in no way, with a sampler of its own."""

    def __init__(self, weights: Weights) -> None:
        super().__init__(weights, lambda out: out)
        self.sampling = OwnSampling(self.tokenizer)
        self.info = replace(self.info, abilities=self.info.abilities | {"sampler"})


class Dies(EquationSession):
    """Answers so many calls, then dies."""

    def __init__(self, weights: Weights, calls: int) -> None:
        super().__init__(weights, "dies", "f32", 1)
        self.left = calls

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("out of memory")
        return super()._forward(tokens, state, want)


class WritesIntoItsInput(EquationSession):
    """Changes the handle that it was given."""

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        if state is not None:
            for tensor in state.tensors.values():
                tensor.add_(1)
        return super()._forward(tokens, state, want)


class Modest(Session):
    """Gives the logits after the last token and nothing else."""

    def __init__(self, weights: Weights) -> None:
        self.inner = EquationSession(weights, "modest", "f32")
        self.info = replace(self.inner.info, abilities=frozenset())

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        return self.inner.forward(tokens, state, want)

    def export_state(self, state: Any) -> State:
        raise AssertionError("never asked for")

    def import_state(self, state: State) -> Any:
        raise AssertionError("never asked for")


def nan(out: Output) -> Output:
    logits = None if out.logits is None else np.full_like(out.logits, np.nan)
    return replace(out, logits=logits)


def dying(out: Output) -> Output:
    raise RuntimeError("the device\nfell off the bus")


def narrow(out: Output) -> Output:
    return replace(out, logits=None if out.logits is None else out.logits[..., :-1])


def old_state(state: Any, state_prev: Any, r: Any, heads: int) -> Any:
    """A wrong program: reads the state before it was written."""
    del state
    return v7.y(state_prev, r, heads)


def early_decay(w_raw: Any, w0: Any) -> Any:
    """A wrong program: the v6 rule, exp(-exp(.))."""
    return (-(w0 + w_raw).exp()).exp()


def _opener(build: Callable[[Weights], Session]) -> registry.Opener:
    def opener(weights: Weights, **_: Any) -> Session:
        return build(weights)

    return opener


def _unopenable(weights: Weights) -> Session:
    raise OSError("no such\ndevice")


KINDS: dict[str, Callable[[Weights], Session]] = {
    "right": Right,
    "double": lambda w: EquationSession(w, "double", "f64"),
    "wrong": lambda w: Broken(w, lambda out: out, overrides={"blocks.*.att.w": early_decay}),
    "nan": lambda w: Broken(w, nan),
    "dying": lambda w: Broken(w, dying),
    "narrow": lambda w: Broken(w, narrow),
    "writes": lambda w: WritesIntoItsInput(w, "writes", "f32"),
    "modest": Modest,
    "unopenable": _unopenable,
}


@contextmanager
def registered(**more: Callable[[Weights], Session]) -> Iterator[None]:
    """Every kind above, and more, as registered backends."""
    rows = tuple(registry.Backend(name, "for tests", _opener(build)) for name, build in (KINDS | more).items())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(registry, "_TABLE", registry._TABLE + rows)
        registry.table.cache_clear()
        yield
    registry.table.cache_clear()
