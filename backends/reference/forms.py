"""Equivalent forms: the same functions written otherwise, as public code writes them. None of them is a mistake.

Exact arithmetic gives the same with each; float32 does not. They serve twice: as negative controls, since a gate that
calls one of them a failure raises a false alarm, and as honest variants, since what they differ by belongs
to the band of honest arithmetic.
"""
# ruff: noqa: D103 - the row in backends/fault_list.py says in words what is written otherwise

from collections.abc import Mapping

import torch
from torch import Tensor, linalg
from torch.nn.functional import layer_norm, linear, softplus

from backends.reference import v5, v6, v7, v7a, v7b
from backends.reference.rows import ByRow
from backends.reference.v7 import split
from backends.reference.walk import Equation, Version


def column(x: Tensor, heads: int) -> Tensor:
    """(..., C) -> (..., H, N, 1): over the value axis."""
    return split(x, heads).unsqueeze(-1)


def row(x: Tensor, heads: int) -> Tensor:
    """(..., C) -> (..., H, 1, N): over the key axis."""
    return split(x, heads).unsqueeze(-2)


def w_rounded(w_raw: Tensor, w0: Tensor) -> Tensor:
    return (-0.606531 * (w0 + w_raw).sigmoid()).exp()


def w_softplus(w_raw: Tensor, w0: Tensor) -> Tensor:
    return (-(-softplus(-(w0 + w_raw)) - 0.5).exp()).exp()


def kk_root(k_raw: Tensor, k_k: Tensor, heads: int) -> Tensor:
    kappa = split(k_raw * k_k, heads)
    return (kappa / (kappa.square().sum(-1, keepdim=True) + v7.KEY_NORM_FLOOR).sqrt()).flatten(-2)


def kk_plus(k_raw: Tensor, k_k: Tensor, heads: int) -> Tensor:
    kappa = split(k_raw * k_k, heads)
    norm: Tensor = linalg.vector_norm(kappa, dim=-1, keepdim=True)
    return (kappa / (norm + v7.KEY_NORM_FLOOR)).flatten(-2)


def kk_rsqrt(k_raw: Tensor, k_k: Tensor, heads: int) -> Tensor:
    kappa = split(k_raw * k_k, heads)
    return (kappa * kappa.square().sum(-1, keepdim=True).clamp_min(v7.KEY_NORM_FLOOR**2).rsqrt()).flatten(-2)


def k_expanded(k_raw: Tensor, a: Tensor, k_a: Tensor) -> Tensor:
    return k_raw + k_raw * (a - 1) * k_a


def v_weighted(v_raw: Tensor, v_first: Tensor, v_lora: Tensor, v0: Tensor, v2: Tensor) -> Tensor:
    gate = (v0 + v_lora @ v2).sigmoid()
    return v_raw * (1 - gate) + v_first * gate


def mix_weighted(ln1: Tensor, shift: Tensor, x_r: Tensor) -> Tensor:
    return ln1 * (1 - x_r) + shift * x_r


def state_transposed(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    flipped = state_prev.mT
    removed = column(kk * a, heads) * (row(kk, heads) @ flipped)
    return (flipped * column(w, heads) - removed + column(k, heads) * row(v, heads)).mT


def state_matrix(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    transition = torch.diag_embed(split(w, heads)) - column(kk, heads) * row(kk * a, heads)
    return state_prev @ transition + column(v, heads) * row(k, heads)


def ln_x_divided(y: Tensor, ln_x_weight: Tensor, ln_x_bias: Tensor, heads: int) -> Tensor:
    groups = split(y / 8, heads)
    return layer_norm(groups, groups.shape[-1:], eps=1e-5).flatten(-2) * ln_x_weight + ln_x_bias


def ln1_two_moments(x: Tensor, ln1_weight: Tensor, ln1_bias: Tensor) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = x.square().mean(-1, keepdim=True) - mean.square()
    return (x - mean) / (variance + v7.LN_EPS).sqrt() * ln1_weight + ln1_bias


def bonus_reordered(r: Tensor, k: Tensor, v: Tensor, r_k: Tensor, heads: int) -> Tensor:
    products = split(k, heads) * (r_k * split(r, heads))
    return (products.flip(-1).sum(-1, keepdim=True) * split(v, heads)).flatten(-2)


def ffn_clamp(k: Tensor) -> Tensor:
    return k * k.clamp_min(0)


# ---- RWKV-5 and 6 -------------------------------------------------------------------------------


def share_weighted(ln1: Tensor, shift: Tensor, mix_r: Tensor) -> Tensor:
    return ln1 * (1 - mix_r) + shift * mix_r


def time_mix_added(shift: Tensor, ln1: Tensor, time_mix_r: Tensor) -> Tensor:
    return ln1 * time_mix_r + shift - shift * time_mix_r


def decay_reciprocal_static(k: Tensor, time_decay: Tensor) -> Tensor:
    return 1 / time_decay.exp().exp().flatten().expand_as(k)


def decay_reciprocal(w_raw: Tensor, time_decay: Tensor) -> Tensor:
    return 1 / (time_decay + w_raw).exp().exp()


def gate_divided(xg: Tensor, gate_weight: Tensor) -> Tensor:
    z = linear(xg, gate_weight)
    return z / (1 + (-z).exp())


def bonus_summed_back(r: Tensor, k: Tensor, v: Tensor, u: Tensor, heads: int) -> Tensor:
    products = split(k, heads) * (u * split(r, heads))
    return (products.flip(-1).sum(-1, keepdim=True) * split(v, heads)).flatten(-2)


def state_columns(state_prev: Tensor, w: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return (state_prev.mT * column(w, heads) + column(k, heads) * row(v, heads)).mT


# ---- RWKV-7a and 7b -----------------------------------------------------------------------------


def deep_summed(s_lora: Tensor, s_emb: Tensor) -> Tensor:
    return (s_lora.unsqueeze(-1) * s_emb.view(*s_emb.shape[:-1], 32, 32)).sum(-2)


def dea_exponents(qn: Tensor, kn_all: Tensor, vn_all: Tensor) -> Tensor:
    T, S = qn.shape[-2], kn_all.shape[-2]
    score = v7b.SCORE_BOUND * (qn @ kn_all.mT / v7b.SCORE_SCALE).tanh()
    parts = (score - score.amax(-1, keepdim=True)).exp().tril(S - T)
    return parts @ vn_all / parts.sum(-1, keepdim=True)


V = "blocks.[!0]*.att.v"  # the first block has no value residual

FORMS: Mapping[str, tuple[str, Equation, Equation]] = {
    "w-0.606531": ("blocks.*.att.w", v7.w, w_rounded),
    "w-softplus": ("blocks.*.att.w", v7.w, w_softplus),
    "kk-root-1e-12": ("blocks.*.att.kk", v7.kk, kk_root),
    "kk-norm-plus-1e-12": ("blocks.*.att.kk", v7.kk, kk_plus),
    "kk-rsqrt": ("blocks.*.att.kk", v7.kk, kk_rsqrt),
    "k-expanded": ("blocks.*.att.k", v7.k, k_expanded),
    "v-weighted": (V, v7.v, v_weighted),
    "mix-weighted": ("blocks.*.att.xr", v7.xr, mix_weighted),
    "state-transposed": ("blocks.*.att.state", v7.state, state_transposed),
    "state-matrix": ("blocks.*.att.state", v7.state, state_matrix),
    "ln-x-divided": ("blocks.*.att.ln_x", v7.ln_x, ln_x_divided),
    "ln1-two-moments": ("blocks.*.att.ln1", v7.ln1, ln1_two_moments),
    "bonus-reordered": ("blocks.*.att.bonus", v7.bonus, bonus_reordered),
    "ffn-clamp": ("blocks.*.ffn.act", v7.ffn_act, ffn_clamp),
    "share-weighted": ("blocks.*.att.xr", v6.xr, share_weighted),
    "time-mix-added": ("blocks.*.att.xr", v5.xr, time_mix_added),
    "decay-reciprocal": ("blocks.*.att.w", v6.w, decay_reciprocal),
    "decay-reciprocal-static": ("blocks.*.att.w", v5.w, decay_reciprocal_static),
    "gate-divided": ("blocks.*.att.g", v5.g, gate_divided),
    "bonus-summed-back": ("blocks.*.att.bonus", v5.bonus, bonus_summed_back),
    "deep-summed": ("blocks.*.ffn.s_mid", v7a.s_mid, deep_summed),
    "dea-exponents": ("blocks.*.qkv.out", v7b.dea, dea_exponents),
    "state-columns": ("blocks.*.att.state", v5.state, state_columns),
}
"""Name -> pattern of full tensor names, the equation as it stands in its version's module, the other form."""


def varied(seed: int, version: Version = v7.VERSION) -> dict[str, Equation]:
    """Every equation that has other forms, written in one form after another from row to row of a batch.

    Args:
        seed: of which form row 0 takes.
        version: whose equations; forms of an equation that it does not have are left out.
    """
    own = set(version.equations())
    written: dict[str, list[Equation]] = {}
    for pattern, plain, other in FORMS.values():
        if plain in own:
            written.setdefault(pattern, [plain]).append(other)
    return {pattern: _in_turn(equations, seed) for pattern, equations in written.items()}


def _in_turn(equations: list[Equation], seed: int) -> Equation:
    """Row i of a batch is evaluated by equation (seed + i) modulo their number."""
    return ByRow(equations[0], lambda B: [equations[(seed + i) % len(equations)] for i in range(B)])
