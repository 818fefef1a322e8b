"""The recurrence of RWKV-5 and 6 in float32: diagonal decay, bonus for the current token.

Per head, with S[v, k] (row = value channel, column = key channel):

    y_t = S_{t-1} r_t + v_t Σ_k r_t u k_t,    S_t = S_{t-1} diag(w_t) + v_t k_tᵀ

A decay may lie anywhere in [0, 1], so that the quotient of two cumulative decays, on which the chunk form of RWKV-7 is
built, overflows within a few tokens. Here every factor is the product of the decays that lie between two tokens, which
is at most 1: no inverse and no exponent of a difference is ever formed.

Formulas: "Eagle and Finch: RWKV with Matrix-Valued States and Dynamic Recurrence" (Peng et al., 2024).
"""

from typing import NamedTuple

import torch
from torch import Tensor

CHUNK = 16
"""Tokens a chunk: inside, each pair of tokens costs N products; between chunks S walks."""


class Inputs(NamedTuple):
    """What one layer feeds to the recurrence, each (B, T, H, N) float32.

    Attributes:
        r: receptance.
        w: decay, in [0, 1].
        k: key.
        v: value.
    """

    r: Tensor
    w: Tensor
    k: Tensor
    v: Tensor

    def part(self, start: int, end: int | None = None) -> "Inputs":
        """Some of the tokens."""
        return Inputs(*(z[:, start:end] for z in self))


def wkv(x: Inputs, u: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """Feed T tokens to the recurrence.

    Args:
        x: r, w, k, v of every token.
        u: (H, N), the bonus.
        S: (B, H, N, N), the state before; not written to.

    Returns:
        y (B, T, H, N) and the state after the last token.
    """
    T = x.r.shape[1]
    if T == 1:
        return wkv_step(x, u, S)
    whole = T // CHUNK * CHUNK
    if whole in (0, T):
        return wkv_chunks(x, u, S, min(T, CHUNK))
    y, S = wkv_chunks(x.part(0, whole), u, S, CHUNK)
    rest, S = wkv(x.part(whole), u, S)
    return torch.cat([y, rest], dim=1), S


def wkv_step(x: Inputs, u: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """One token: inputs (B, 1, H, N), S (B, H, N, N) -> y (B, 1, H, N) and the new state."""
    r, w, k = (z[:, 0, :, None, :] for z in (x.r, x.w, x.k))  # rows over the keys
    v = x.v[:, 0, :, :, None]
    y = (S * r).sum(-1) + v[..., 0] * (r * u[:, None, :] * k).sum(-1)
    return y[:, None], S * w + v * k


def wkv_chunks(x: Inputs, u: Tensor, S: Tensor, L: int) -> tuple[Tensor, Tensor]:
    """T = n L tokens in n chunks of L; as `wkv`.

    Within a chunk, token i reaches token t > i through Σ_k r_t k_i w_{i+1} ... w_{t-1}; what came before the chunk
    reaches t through r_t w_1 ... w_{t-1}, and i reaches the chunk's end through k_i w_{i+1} ... w_L.
    """
    B, T, H, N = x.r.shape
    r, w, k, v = (z.reshape(B, T // L, L, H, N).permute(0, 3, 1, 2, 4) for z in x)  # (B, H, n, L, N)
    up_to = w.cumprod(dim=-2)
    one = torch.ones_like(w[..., :1, :])
    before = torch.cat([one, up_to[..., :-1, :]], dim=-2)
    behind = torch.cat([w[..., 1:, :].flip(-2).cumprod(dim=-2).flip(-2), one], dim=-2)

    added = v.mT @ (k * behind)  # (B, H, n, N value, N key)
    kept = up_to[..., -1, None, :]  # (B, H, n, 1, N key)
    starts = []
    for c in range(T // L):
        starts.append(S)
        S = S * kept[:, :, c] + added[:, :, c]
    y = (r * before) @ torch.stack(starts, dim=2).mT + _reach(r, w, k, u) @ v
    return y.permute(0, 2, 3, 1, 4).reshape(B, T, H, N), S


def _reach(r: Tensor, w: Tensor, k: Tensor, u: Tensor) -> Tensor:
    """How much of every value of a chunk each of its tokens reads: (B, H, n, L, N) -> lower triangular (..., L, L)."""
    L = r.shape[-2]
    reach = r.new_zeros(*r.shape[:-1], L)
    reach.diagonal(0, -2, -1).copy_((r * k * u[:, None, None, :]).sum(-1))
    between = torch.ones_like(r[..., 1:, :])  # of t and t - apart: the decays that lie between them
    for apart in range(1, L):
        pairs = (r[..., apart:, :] * between * k[..., : L - apart, :]).sum(-1)
        reach.diagonal(-apart, -2, -1).copy_(pairs)
        between = between[..., 1:, :] * w[..., 1 : L - apart, :]
    return reach
