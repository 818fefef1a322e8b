"""The recurrence alone, against a float64 loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import Array
from backends.compiled.wkv import Inputs, wkv
from tests.backends.feeding import assert_near
from tests.backends.numpy_rwkv7 import wkv_token

BAND = 1e-6
"""Of the largest value; measured 5e-7, where a chunk form with exponents summed in float32 reaches 1.3e-6."""


def inputs(kind: str, T: int, seed: int = 0) -> list[Array]:
    """r, log w, k, v, κ̂, a of one row, two heads of 64; decays near 1, mixed, or all at the bound 0.5452."""
    draw = np.random.default_rng(seed)
    r, k, v, kk, a, s = (draw.standard_normal((1, T, 2, 64)) for _ in range(6))
    kk /= np.linalg.norm(kk, axis=-1, keepdims=True)
    exponent = {"slow": s - 6, "random": 1.5 * s, "worst": np.full_like(s, 50.0)}[kind]
    log_w = -np.exp(-0.5) / (1 + np.exp(-exponent))
    return [x.astype(np.float32) for x in (r, log_w, k, v, kk, 1 / (1 + np.exp(-a)))]


def in_float64(x: list[Array], S: Array) -> tuple[Array, Array]:
    r, log_w, k, v, kk, a = (z.astype(np.float64) for z in x)
    y = []
    for t in range(r.shape[1]):
        S, out = wkv_token(S, r[:, t], np.exp(log_w[:, t]), k[:, t], v[:, t], kk[:, t], a[:, t])
        y.append(out)
    return np.stack(y, axis=1), S


def in_torch(x: list[Array], S: Array) -> tuple[Array, Array]:
    y, after = wkv(Inputs(*map(torch.from_numpy, x)), torch.from_numpy(S.astype(np.float32)))
    return y.numpy(), after.numpy()


@pytest.mark.parametrize("start", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["slow", "random", "worst"])
@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 63, 64, 65, 128, 300])
def test_equals_float64(kind: str, T: int, start: float) -> None:
    x, S = inputs(kind, T), start * np.random.default_rng(1).standard_normal((1, 2, 64, 64))
    assert_near(in_torch(x, S), in_float64(x, S.astype(np.float32).astype(np.float64)), BAND)


@settings(max_examples=20, deadline=None)
@given(T=st.integers(2, 200), data=st.data())
def test_a_split_changes_nothing(T: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, T - 1))
    x, S = inputs("random", T, seed=T), np.ones((1, 2, 64, 64))
    first, middle = in_torch([z[:, :cut] for z in x], S)
    second, last = in_torch([z[:, cut:] for z in x], middle)
    assert_near((np.concatenate([first, second], axis=1), last), in_torch(x, S), 2 * BAND)


def test_equal_keys_do_not_cancel() -> None:
    """One key 64 times makes the powers of the triangular matrix explode; a solve does not form them."""
    r, log_w, k, v, kk, a = inputs("slow", 64)
    kk[:] = kk[:, :1]
    a[:] = 1.0
    x, S = [r, log_w, k, v, kk, a], np.zeros((1, 2, 64, 64))
    assert_near(in_torch(x, S), in_float64(x, S), 2 * BAND)


def test_huge_keys_do_not_leak_from_above_the_diagonal() -> None:
    """There the factors of two decays and a key of 1e23 overflow, and 0 times infinity would be NaN."""
    x, S = inputs("worst", 64), np.zeros((1, 2, 64, 64))
    x[2] *= np.float32(1e23)
    assert_near(in_torch(x, S), in_float64(x, S), BAND)


def test_zero_keys_only_decay() -> None:
    x = inputs("random", 70)
    for i in (2, 4):
        x[i][:] = 0
    S = np.ones((1, 2, 64, 64))
    _, after = in_torch(x, S)
    assert np.allclose(after, np.exp(x[1].astype(np.float64).sum(axis=1))[:, :, None, :] * S, rtol=1e-5, atol=0)


def test_the_state_before_is_not_written_to() -> None:
    for T in (1, 70):
        S = torch.ones(1, 2, 64, 64)
        wkv(Inputs(*map(torch.from_numpy, inputs("random", T))), S)
        assert torch.equal(S, torch.ones_like(S))
