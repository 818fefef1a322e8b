"""How the tests of the torch backends open a model, feed a prompt and compare what comes back."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from backends.base import Array, Ids, Output, Session, Want, greedy
from backends.native import build
from backends.torch_compiled import open_torch_compiled
from tests.backends.random_model import as_weights, random_rwkv7

ALL = Want(logits="all", state=True)
F32_BAND = 6e-5
"""Largest difference between honest float32 programs, on logits of standard deviation 1 and states up to 11.

Typical is 1e-5; the official package reaches 3.4e-5 at a token whose heads have little variance, which the group norm
amplifies."""


def opened(tensors: dict[str, torch.Tensor], dtype: str = "f32") -> Session:
    return open_torch_compiled(as_weights(tensors), device="cpu", dtype=dtype, threads=0)


def small_model() -> dict[str, torch.Tensor]:
    return random_rwkv7(C=64, N=16, L=3, V=97)


def ids_for(T: int, V: int = 97, seed: int = 0) -> Ids:
    return np.random.default_rng(seed).integers(0, V, T)


def logits_of(out: Output) -> Array:
    assert out.logits is not None
    return out.logits


def fed(session: Session, ids: Ids, sizes: list[int], state: Any = None) -> Output:
    """The prompt in pieces of these sizes: all logits joined, the last state."""
    logits, at = [], 0
    for size in sizes:
        out = session.forward(ids[..., at : at + size], state, ALL)
        logits.append(logits_of(out))
        state, at = out.state, at + size
    return Output(np.concatenate(logits, axis=1), state)


def assert_within(got: Array, want: Array, limit: float) -> None:
    """Same shape, and every difference a number within the limit."""
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= limit


def assert_near(got: Sequence[Array], want: Sequence[Array], band: float) -> None:
    """Same shapes, and every difference within a share of the largest value."""
    for mine, truth in zip(got, want, strict=True):
        assert_within(mine, truth, band * np.abs(truth).max())


def assert_close(session: Session, got: Output, want: Output, limit: float = F32_BAND) -> None:
    """The same for logits and every part of the state."""
    assert_within(logits_of(got), logits_of(want), limit)
    parts = (session.export_state(out.state).parts().values() for out in (got, want))
    for mine, theirs in zip(*parts, strict=True):
        assert_within(mine, theirs, limit)


def needs_compiler() -> None:
    """Skip, in words, where the C program cannot be built."""
    try:
        build.compiler()
    except build.NoProgramError as error:
        pytest.skip(str(error))


def foreign_greedy(logits: Array) -> Ids:
    """Greedy, but not the function that a backend recognises."""
    return greedy(logits)
