"""The WKV-7 recurrence in float32: one token, or a whole prompt in chunks of matrix products.

Per head, with S[v, k] (row = value channel, column = key channel):

    S_t = S_{t-1} (diag(w_t) - κ̂_t (κ̂_t ⊙ a_t)ᵀ) + v_t k_tᵀ,    y_t = S_t r_t

Formulas: "RWKV-7 Goose with Expressive Dynamic State Evolution" (Peng et al., 2025); the chunk form
is the WY representation of a product of such matrices.
"""

from collections.abc import Callable
from typing import NamedTuple, Self

import torch
from torch import Tensor

CHUNK = 64
"""Tokens a chunk. Since log w > -e^(-1/2), decays over 64 tokens stay within e^±20 of the middle one."""


class Inputs(NamedTuple):
    """What one layer feeds to the recurrence, each (B, T, H, N) float32.

    Attributes:
        r: receptance.
        log_w: logarithm of the decay, in (-e^(-1/2), 0).
        k: key.
        v: value.
        kk: κ̂, the normalised removal key.
        a: in-context learning rate, in (0, 1).
    """

    r: Tensor
    log_w: Tensor
    k: Tensor
    v: Tensor
    kk: Tensor
    a: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Self:
        """The same change of every tensor."""
        return type(self)(*(change(x) for x in self))


def wkv(x: Inputs, S: Tensor) -> tuple[Tensor, Tensor]:
    """Feed T tokens to the recurrence.

    Args:
        x: r, log w, k, v, κ̂, a of every token.
        S: (B, H, N, N), the state before; not written to.

    Returns:
        y (B, T, H, N) and the state after the last token.
    """
    T = x.r.shape[1]
    if T == 1:
        y, S = wkv_step(x.map(lambda z: z[:, 0]), S)
        return y[:, None], S
    whole = T // CHUNK * CHUNK
    if whole in (0, T):
        return wkv_chunks(x, S, min(T, CHUNK))
    y, S = wkv_chunks(x.map(lambda z: z[:, :whole]), S, CHUNK)
    rest, S = wkv(x.map(lambda z: z[:, whole:]), S)
    return torch.cat([y, rest], dim=1), S


def wkv_step(x: Inputs, S: Tensor) -> tuple[Tensor, Tensor]:
    """One token: inputs (B, H, N), S (B, H, N, N) -> y (B, H, N) and the new state."""
    r, w, k, kk, b = (z.unsqueeze(-2) for z in (x.r, x.log_w.exp(), x.k, x.kk, x.kk * x.a))  # rows over the keys
    removed = (S * kk).sum(-1, keepdim=True)  # (B, H, N, 1), S κ̂
    S = S * w - removed * b + x.v.unsqueeze(-1) * k
    return (S * r).sum(-1), S


def wkv_chunks(x: Inputs, S: Tensor, L: int) -> tuple[Tensor, Tensor]:
    """T = n L tokens in n chunks of L.

    With P_t the product of the chunk's decays up to t and u_t = -S_{t-1} κ̂_t, unrolling gives
    S_t = S_0 diag(P_t) + Σ_{i<=t} (u_i (κ̂_i ⊙ a_i)ᵀ + v_i k_iᵀ) diag(P_t / P_i). The u_t of a chunk solve a unit
    lower triangular system, linear in S_0, so every chunk is prepared at once and only S walks.

    Each quotient P_t / P_i is a product of two factors that refer to the chunk's middle. Above the
    diagonal such a product may be huge: it is selected away, since multiplying it by 0 may give NaN.
    The exponents are summed in float64: at log P = -39 the last bit of a float32 is 4e-6, which the exponential would
    turn into that much relative error, ten times that of the sequential form.

    Args:
        x: inputs of T tokens.
        S: (B, H, N, N), the state before.
        L: chunk length, which divides T.

    Returns:
        y (B, T, H, N) and the state after the last token.
    """
    B, T, H, N = x.r.shape
    r, log_w, k, v, kk, a = x.map(lambda z: z.reshape(B, T // L, L, H, N).permute(0, 3, 1, 2, 4))  # (B, H, n, L, N)
    log_P = log_w.double().cumsum(dim=-2)
    middle, last = log_P[..., (L - 1) // 2, None, :], log_P[..., -1:, :]  # (B, H, n, 1, N)
    up = (log_P - middle).exp().float()  # P_t / P_middle
    P_middle, P_last, to_end = middle.exp().float(), last.exp().float(), up[..., -1:, :]
    earlier = torch.cat([(-middle).exp().float(), up[..., :-1, :]], dim=-2)  # P_{t-1} / P_middle
    A, R, D, K = -kk * earlier, r * up, kk * a / up, k / up
    within = torch.ones(L, L, dtype=torch.bool, device=r.device).tril()
    before = within.tril(-1)
    AD, AK = _select(before, A @ D.mT), _select(before, A @ K.mT)  # (B, H, n, L, L)
    RD, RK = _select(within, R @ D.mT), _select(within, R @ K.mT)

    # The solver takes the diagonal as 1 and reads only below it: -AD stands for I - AD.
    solved = torch.linalg.solve_triangular(-AD, torch.cat([A, AK @ v], dim=-1), upper=False, unitriangular=True)
    from_S, from_v = solved.split(N, dim=-1)  # u = from_S (S diag(P_middle))ᵀ + from_v

    D_end, K_end = D * to_end, K * to_end
    kept = torch.diag_embed(P_last.squeeze(-2)) + P_middle.mT * (from_S.mT @ D_end)  # (B, H, n, N, N)
    added = from_v.mT @ D_end + v.mT @ K_end
    starts = []
    for c in range(T // L):
        starts.append(S)
        S = S @ kept[:, :, c] + added[:, :, c]
    start = (torch.stack(starts, dim=2) * P_middle).mT  # (B, H, n, N key, N value)
    y = R @ start + RK @ v + RD @ (from_v + from_S @ start)
    return y.permute(0, 2, 3, 1, 4).reshape(B, T, H, N), S


def _select(mask: Tensor, x: Tensor) -> Tensor:
    return x.masked_fill(~mask, 0.0)
