"""The recurrence of RWKV-5 and 6 alone, against a float64 loop."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import Array
from backends.compiled.wkv_diagonal import Inputs, wkv
from tests.backends.feeding import assert_near

BAND = 1e-6
"""Of the largest value; measured 3e-7."""

H, N = 2, 64


def inputs(kind: str, T: int, seed: int = 0) -> list[Array]:
    """r, w, k, v of one row, two heads of 64, and u; decays near 1, mixed, tiny, or exactly 0 now and then."""
    draw = np.random.default_rng(seed)
    r, k, v, s = (draw.standard_normal((1, T, H, N)) for _ in range(4))
    exponent = {"slow": s - 6, "mixed": 3 * s, "fast": s + 4, "gone": np.where(s > 1, np.inf, s)}[kind]
    w = np.exp(-np.exp(exponent))
    return [x.astype(np.float32) for x in (r, w, k, v, draw.standard_normal((H, N)))]


def in_float64(x: list[Array], S: Array) -> tuple[Array, Array]:
    """The two lines of the paper, token by token; S[v, k]."""
    r, w, k, v, u = (z.astype(np.float64) for z in x)
    S, y = S.astype(np.float64), []
    for t in range(r.shape[1]):
        written = v[:, t, :, :, None] * k[:, t, :, None, :]
        y.append(((S + u[:, None, :] * written) * r[:, t, :, None, :]).sum(-1))
        S = S * w[:, t, :, None, :] + written
    return np.stack(y, axis=1), S


def in_torch(x: list[Array], S: Array) -> tuple[Array, Array]:
    *timed, u = map(torch.from_numpy, x)
    y, after = wkv(Inputs(*timed), u, torch.from_numpy(S.astype(np.float32)))
    return y.numpy(), after.numpy()


@pytest.mark.parametrize("start", [0.0, 1.0])
@pytest.mark.parametrize("kind", ["slow", "mixed", "fast", "gone"])
@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 63, 64, 65, 300])
def test_equals_float64(kind: str, T: int, start: float) -> None:
    x, S = inputs(kind, T), start * np.random.default_rng(1).standard_normal((1, H, N, N))
    assert_near(in_torch(x, S), in_float64(x, S.astype(np.float32)), BAND)


@settings(max_examples=20, deadline=None)
@given(T=st.integers(2, 100), data=st.data())
def test_a_split_changes_nothing(T: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, T - 1))
    x, S = inputs("mixed", T, seed=T), np.ones((1, H, N, N))
    first, middle = in_torch([*(z[:, :cut] for z in x[:4]), x[4]], S)
    second, last = in_torch([*(z[:, cut:] for z in x[:4]), x[4]], middle)
    assert_near((np.concatenate([first, second], axis=1), last), in_torch(x, S), 2 * BAND)


def test_a_decay_that_forgets_everything_leaves_nothing_behind() -> None:
    """With w = 0 at every token, y reads the token before and the bonus, and S holds the last token alone."""
    r, w, k, v, u = inputs("slow", 40)
    w[:] = 0
    y, S = in_torch([r, w, k, v, u], np.ones((1, H, N, N)))
    written = v[..., :, None] * k[..., None, :]
    before = np.concatenate([np.ones((1, 1, H, N, N)), written[:, :-1]], axis=1)
    assert np.allclose(y, ((before + u[:, None, :] * written) * r[..., None, :]).sum(-1), atol=1e-4)
    assert np.array_equal(S, written[:, -1])


def test_huge_keys_do_not_leak() -> None:
    """What a quotient of decays would let overflow: a key of 1e23 whose trace has decayed below 1e-38."""
    x, S = inputs("fast", 48), np.zeros((1, H, N, N))
    x[2] *= np.float32(1e23)
    got = in_torch(x, S)
    assert all(np.isfinite(part).all() for part in got)
    assert_near(got, in_float64(x, S), BAND)


def test_the_state_before_is_not_written_to() -> None:
    for T in (1, 40):
        S = torch.ones(1, H, N, N)
        *timed, u = map(torch.from_numpy, inputs("mixed", T))
        wkv(Inputs(*timed), u, S)
        assert torch.equal(S, torch.ones_like(S))
