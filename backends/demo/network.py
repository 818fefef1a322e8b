"""RWKV-7 for training: differentiable, whole sequences, the recurrence in chunks of matrix products.

Written for autograd and for `torch.compile`; shares nothing with the backends that are validated on what it makes.
Letters: B rows, T tokens, C width, H heads, N head size, L chunk length, n chunks.
Formulas: "RWKV-7 Goose with Expressive Dynamic State Evolution" (Peng et al., 2025).
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

import torch
from torch import Tensor
from torch.nn import functional

DECAY = math.exp(-0.5)  # log w lies in (-DECAY, 0)
CHUNK = 16
"""Tokens a chunk: 1 / P stays below e^(16 DECAY) = 1.6e4, harmless in float32."""

Params = Mapping[str, Tensor]
"""Official name, of the checkpoint or without the block's prefix -> tensor."""


class Carried(NamedTuple):
    """What a layer remembers between two segments: (B, C), (B H, N value, N key), (B, C)."""

    att: Tensor
    wkv: Tensor
    ffn: Tensor

    def detached(self) -> Self:
        """The same numbers without the graph behind them."""
        return type(self)(*(z.detach() for z in self))

    def kept(self, kept: Tensor) -> Self:
        """Rows where `kept` (B,) is 0 begin anew."""
        heads = self.wkv.shape[0] // kept.shape[0]
        return type(self)(
            self.att * kept[:, None], self.wkv * kept.repeat_interleave(heads)[:, None, None], self.ffn * kept[:, None]
        )


def fresh(layers: int, B: int, H: int, N: int) -> list[Carried]:
    """The zero state of every layer."""
    zero = torch.zeros
    return [Carried(zero(B, H * N), zero(B * H, N, N), zero(B, H * N)) for _ in range(layers)]


Scan = Callable[..., tuple[Tensor, Tensor]]
"""`wkv`, or what computes the same."""


def scan(name: str) -> Scan:
    """How the recurrence is evaluated: "chunks" here, "native" by a small C program."""
    if name == "chunks":
        return wkv
    from backends.demo import scan as native

    found: Scan = native.wkv
    return found


def run(
    weights: Params,
    ids: Tensor,
    carried: Sequence[Carried],
    dtype: torch.dtype,
    scan: Scan,
    layer: Callable[..., tuple[Tensor, Tensor, Carried]] | None = None,
) -> tuple[Tensor, list[Carried]]:
    """The whole network over a segment.

    Args:
        weights: official name -> tensor.
        ids: (B, T) int64.
        carried: what each layer remembers.
        dtype: number format of the factors of matrix products.
        scan: evaluates the recurrence.
        layer: evaluates a layer, default `block`; a compiled copy of it, say.

    Returns:
        Logits (B, T, V), and what each layer remembers afterwards.
    """
    x = _norm(
        functional.embedding(ids, weights["emb.weight"]), weights["blocks.0.ln0.weight"], weights["blocks.0.ln0.bias"]
    )
    v_first, after = x, []
    for number, last in enumerate(carried):
        prefix = f"blocks.{number}."
        p = {name.removeprefix(prefix): weights[name] for name in weights if name.startswith(prefix)}
        x, v_first, last = (layer or block)(x, v_first, last, p, dtype, scan)  # noqa: PLW2901
        after.append(last)
    x = _norm(x, weights["ln_out.weight"], weights["ln_out.bias"])
    return linear(x, weights["head.weight"], dtype), after


def linear(x: Tensor, W: Tensor, dtype: torch.dtype) -> Tensor:
    """The product x Wᵀ, factors rounded to `dtype`, the result in float32 again."""
    return functional.linear(x.to(dtype), W.to(dtype)).float() if dtype != x.dtype else functional.linear(x, W)


def wkv(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor, S: Tensor, L: int = CHUNK
) -> tuple[Tensor, Tensor]:
    """The recurrence S_t = S_{t-1} (diag(w_t) - κ̂_t (κ̂_t ⊙ a_t)ᵀ) + v_t k_tᵀ, y_t = S_t r_t, chunk by chunk.

    With P_t the product of a chunk's decays up to t, u_t = -S_{t-1} κ̂_t solves a unit lower triangular system whose
    inverse is the finite product (I + M)(I + M²)(I + M⁴)…, M being nilpotent. All chunks are prepared at once; only
    S walks.

    Args:
        r: receptance; this and the next five are (B, T, H, N), and L divides T.
        log_w: logarithm of the decay, in (-DECAY, 0).
        k: key.
        v: value.
        kk: κ̂, the normalised removal key.
        a: in-context learning rate.
        S: (B H, N value, N key), the state before.
        L: chunk length, a power of two.

    Returns:
        y (B, T, H, N), and the state after the last token.
    """
    B, T, H, N = r.shape
    n = T // L
    r, log_w, k, v, kk, a = (
        z.reshape(B, n, L, H, N).permute(1, 0, 3, 2, 4).reshape(n * B * H, L, N) for z in (r, log_w, k, v, kk, a)
    )
    within = torch.ones(L, L, dtype=torch.bool, device=r.device).tril()
    log_P = within.to(r.dtype) @ log_w
    P, earlier, inverse = log_P.exp(), (log_P - log_w).exp(), (-log_P).exp()
    A, R, Z = -kk * earlier, r * P, torch.cat([kk * a * inverse, k * inverse], dim=1)
    strictly = within.tril(-1)
    mask = torch.cat([torch.cat([strictly, strictly], dim=1), torch.cat([within, within], dim=1)])
    products = (torch.cat([A, R], dim=1) @ Z.mT).masked_fill(~mask, 0.0)  # (n B H, 2L, 2L)
    AD, AK, RD = products[:, :L, :L], products[:, :L, L:], products[:, L:, :L]

    solved = _inverse(AD, L) @ torch.cat([A, AK @ v], dim=-1)
    from_S, from_v = torch.split(solved, N, dim=-1)  # u = from_S Sᵀ + from_v
    P_last = P[:, -1:]
    inputs, Z_end = torch.cat([from_v, v], dim=1), Z * P_last
    kept = torch.diag_embed(P_last.squeeze(1)) + from_S.mT @ Z_end[:, :L]
    added = inputs.mT @ Z_end
    starts = []
    for K, X in zip(kept.view(n, B * H, N, N).unbind(), added.view(n, B * H, N, N).unbind(), strict=True):
        starts.append(S)
        S = torch.baddbmm(X, S, K)
    y = (R + RD @ from_S) @ torch.cat(starts).mT + products[:, L:] @ inputs
    return y.view(n, B, H, L, N).permute(1, 0, 3, 2, 4).reshape(B, T, H, N), S


def _inverse(M: Tensor, L: int) -> Tensor:
    """(I - M)⁻¹ of strictly lower triangular M (..., L, L)."""
    product, power = torch.eye(L, dtype=M.dtype, device=M.device) + M, M
    for _ in range(L.bit_length() - 2):
        power = power @ power
        product = product + product @ power
    return product


def compiled() -> Callable[..., tuple[Tensor, Tensor, Carried]]:
    """`block`, compiled at first use for the sizes that it is then called with."""
    done: Callable[..., tuple[Tensor, Tensor, Carried]] = torch.compile(block, dynamic=False)
    return done


def block(
    x: Tensor, v_first: Tensor, last: Carried, p: Params, dtype: torch.dtype, scan: Scan = wkv
) -> tuple[Tensor, Tensor, Carried]:
    """One layer over a segment.

    Args:
        x: (B, T, C), the stream.
        v_first: (B, T, C), layer 0's value; ignored in layer 0, which has no `att.v1`.
        last: what the layer remembers.
        p: the block's tensors, by official name without the prefix.
        dtype: number format of the factors of matrix products.
        scan: evaluates the recurrence.

    Returns:
        The stream, layer 0's value, and what to remember.
    """
    h = _norm(x, p["ln1.weight"], p["ln1.bias"])
    mixed, v_first, S = _time_mix(h, v_first, last, p, dtype, scan)
    x = x + mixed
    h2 = _norm(x, p["ln2.weight"], p["ln2.bias"])
    hidden = linear(_mix(h2, last.ffn, p["ffn.x_k"]), p["ffn.key.weight"], dtype)
    x = x + linear(hidden.relu().square(), p["ffn.value.weight"], dtype)
    return x, v_first, Carried(h[:, -1], S, h2[:, -1])


def _time_mix(
    h: Tensor, v_first: Tensor, last: Carried, p: Params, dtype: torch.dtype, scan: Scan
) -> tuple[Tensor, Tensor, Tensor]:
    """The attention: normed inputs (B, T, C) -> output (B, T, C), layer 0's value, new S."""
    B, T, C = h.shape
    H, N = p["att.r_k"].shape
    xr, xw, xk, xv, xa, xg = (_mix(h, last.att, p[f"att.x_{letter}"]) for letter in "rwkvag")
    r, k, v = (linear(z, p[f"att.{m}.weight"], dtype) for z, m in ((xr, "receptance"), (xk, "key"), (xv, "value")))
    log_w = -DECAY * torch.sigmoid(p["att.w0"] + _low_rank(xw, p, "w", dtype))
    a = torch.sigmoid(p["att.a0"] + _low_rank(xa, p, "a", dtype))
    g = _low_rank(xg, p, "g", dtype)
    if "att.v1" in p:
        v = v + (v_first - v) * torch.sigmoid(p["att.v0"] + _low_rank(xv, p, "v", dtype))
    else:
        v_first = v
    kk = functional.normalize((k * p["att.k_k"]).view(B, T, H, N), dim=-1, eps=1e-12)
    k = k * (1 + (a - 1) * p["att.k_a"])
    r, log_w, k, v, a = (z.view(B, T, H, N) for z in (r, log_w, k, v, a))
    y, S = scan(r, log_w, k, v, kk, a, last.wkv)
    y = functional.layer_norm(y, (N,), eps=64e-5).view(B, T, C) * p["att.ln_x.weight"] + p["att.ln_x.bias"]
    y = y + ((r * k * p["att.r_k"]).sum(-1, keepdim=True) * v).view(B, T, C)
    return linear(y * g, p["att.output.weight"], dtype), v_first, S


def _low_rank(x: Tensor, p: Params, letter: str, dtype: torch.dtype) -> Tensor:
    inner = linear(x, p[f"att.{letter}1"].mT, dtype)
    inner = {"w": torch.tanh, "g": torch.sigmoid}.get(letter, lambda z: z)(inner)
    return linear(inner, p[f"att.{letter}2"].mT, dtype)


def _mix(h: Tensor, last: Tensor, share: Tensor) -> Tensor:
    """Token shift: `share` is the part of the previous token; `last` stands before the first."""
    return h + (torch.cat([last[:, None], h[:, :-1]], dim=1) - h) * share


def _norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return functional.layer_norm(x, (x.shape[-1],), weight, bias, 1e-5)
