"""Faults of what 7a and 7b add to RWKV-7: DeepEmbed in the channel mix, DEA beside the time mix."""
# ruff: noqa: D103 - the row in backends/fault_list.py says in words what each function gets wrong

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from backends.fault_list import DEA, DEEP
from backends.reference import v7, v7a, v7b
from backends.reference.faults.plant import plant
from backends.reference.faults.stream import norm, without_row

# ---- DeepEmbed ----------------------------------------------------------------------------------


@plant("deep-row-shift")
def deep_row_shift(tokens: Tensor, ln0: Tensor, s_emb_weight: Tensor, s_emb_x_weight: Tensor) -> Tensor:
    return v7a.s_emb((tokens + 1) % len(s_emb_weight), ln0, s_emb_weight, s_emb_x_weight)


@plant("deep-no-x")
def deep_no_x(tokens: Tensor, s_emb_weight: Tensor) -> Tensor:
    return s_emb_weight[tokens]


@plant("deep-x-of-stream")
def deep_x_of_stream(tokens: Tensor, ln2: Tensor, s_emb_weight: Tensor, s_emb_x_weight: Tensor) -> Tensor:
    return v7a.s_emb(tokens, ln2, s_emb_weight, s_emb_x_weight)


@plant("deep-shifted")
def deep_shifted(xk: Tensor, s1: Tensor) -> Tensor:
    return xk @ s1


@plant("deep-tanh")
def deep_tanh(ln2: Tensor, s1: Tensor) -> Tensor:
    return (ln2 @ s1).tanh()


@plant("deep-transposed")
def deep_transposed(s_lora: Tensor, s_emb: Tensor) -> Tensor:
    matrix = s_emb.view(*s_emb.shape[:-1], 32, 32)
    return (matrix @ s_lora.unsqueeze(-1)).squeeze(-1)


@plant("deep-no-s0")
def deep_no_s0(s_mid: Tensor, s2: Tensor) -> Tensor:
    return s_mid @ s2


@plant("deep-s0-one")
def deep_s0_one(s_mid: Tensor, s2: Tensor) -> Tensor:
    return 1 + s_mid @ s2


@plant("deep-missing")
def deep_missing(act: Tensor, value_weight: Tensor) -> Tensor:
    return linear(act, value_weight)


@plant("ffn-row-zero", "blocks.1.ffn.out", versions=DEEP)
def ffn_row_zero(act: Tensor, s: Tensor, value_weight: Tensor) -> Tensor:
    return v7a.ffn_out(act, s, without_row(value_weight))


# ---- DEA ----------------------------------------------------------------------------------------


@plant("res-from-norm", versions=DEA)
def res_from_norm(ln1: Tensor, out: Tensor, dea: Tensor) -> Tensor:
    return ln1 + out + dea


def normed(x: Tensor) -> Tensor:
    """A norm where there should be none."""
    return layer_norm(x, x.shape[-1:], eps=v7.LN_EPS)


@plant("dea-normed", "blocks.*.qkv.q")
def q_normed(x: Tensor, qq_weight: Tensor) -> Tensor:
    return v7b.q(normed(x), qq_weight)


@plant("dea-normed", "blocks.*.qkv.k_lora")
def k_lora_normed(x: Tensor, k1: Tensor) -> Tensor:
    return normed(x) @ k1


@plant("dea-normed", "blocks.*.qkv.v_lora")
def v_lora_normed(x: Tensor, v1: Tensor) -> Tensor:
    return normed(x) @ v1


@plant("dea-row-shift")
def k_emb_row_shift(tokens: Tensor, ln0: Tensor, k_emb_weight: Tensor, k_emb_x_weight: Tensor) -> Tensor:
    return v7b.k_emb((tokens + 1) % len(k_emb_weight), ln0, k_emb_weight, k_emb_x_weight)


@plant("dea-v-no-x")
def v_emb_no_x(tokens: Tensor, v_emb_weight: Tensor) -> Tensor:
    return v_emb_weight[tokens]


@plant("dea-k-no-emb")
def k_no_emb(k_lora: Tensor, k2: Tensor) -> Tensor:
    return k_lora @ k2


@plant("dea-k-tanh")
def k_tanh(k_lora: Tensor, k_emb: Tensor, k2: Tensor) -> Tensor:
    return (k_lora @ k2 / v7.LN_EPS).tanh() * k_emb


@plant("dea-v-no-tanh")
def v_no_tanh(v_lora: Tensor, v_emb: Tensor, v2: Tensor) -> Tensor:
    return (v_lora @ v2) * v_emb


@plant("dea-no-query-shift")
def q_not_shifted(q: Tensor, lnq_weight: Tensor, lnq_bias: Tensor) -> Tensor:
    return norm(q, lnq_weight, lnq_bias, v7.LN_EPS)


@plant("dea-lnq-missing")
def lnq_missing(q: Tensor, q_prev: Tensor, x_q: Tensor) -> Tensor:
    return v7.lerp(q, q_prev, x_q)


@plant("dea-lnq-eps-1e-6")
def lnq_eps(q: Tensor, q_prev: Tensor, x_q: Tensor, lnq_weight: Tensor, lnq_bias: Tensor) -> Tensor:
    return norm(v7.lerp(q, q_prev, x_q), lnq_weight, lnq_bias, 1e-6)


@plant("dea-mix-complement", "blocks.*.qkv.qn")
def qn_complement(q: Tensor, q_prev: Tensor, x_q: Tensor, lnq_weight: Tensor, lnq_bias: Tensor) -> Tensor:
    return norm(v7.lerp(q_prev, q, x_q), lnq_weight, lnq_bias, v7.LN_EPS)


@plant("dea-mix-complement", "blocks.*.qkv.kn")
def kn_complement(k: Tensor, k_prev: Tensor, x_k: Tensor, lnk_weight: Tensor, lnk_bias: Tensor) -> Tensor:
    return norm(v7.lerp(k_prev, k, x_k), lnk_weight, lnk_bias, v7.LN_EPS)


@plant("dea-mix-complement", "blocks.*.qkv.vn")
def vn_complement(v: Tensor, v_prev: Tensor, x_v: Tensor, lnv_weight: Tensor, lnv_bias: Tensor) -> Tensor:
    return norm(v7.lerp(v_prev, v, x_v), lnv_weight, lnv_bias, v7.LN_EPS)


@plant("dea-lnk-eps-1e-6")
def lnk_eps(k: Tensor, k_prev: Tensor, x_k: Tensor, lnk_weight: Tensor, lnk_bias: Tensor) -> Tensor:
    return norm(v7.lerp(k, k_prev, x_k), lnk_weight, lnk_bias, 1e-6)


@plant("dea-lnv-missing")
def lnv_missing(v: Tensor, v_prev: Tensor, x_v: Tensor) -> Tensor:
    return v7.lerp(v, v_prev, x_v)


@plant("dea-lnv-eps-1e-6")
def lnv_eps(v: Tensor, v_prev: Tensor, x_v: Tensor, lnv_weight: Tensor, lnv_bias: Tensor) -> Tensor:
    return norm(v7.lerp(v, v_prev, x_v), lnv_weight, lnv_bias, 1e-6)


def seen(score: Tensor, values: Tensor, ahead: int = 0) -> Tensor:
    """Values weighted by the scores of all tokens up to the own one, or so many further."""
    T, S = score.shape[-2:]
    later = torch.ones(T, S, dtype=torch.bool).triu(S - T + 1 + ahead)
    return score.masked_fill(later, -torch.inf).softmax(-1) @ values


def scores(qn: Tensor, kn_all: Tensor) -> Tensor:
    """As they should be."""
    return v7b.SCORE_BOUND * (qn @ kn_all.mT / v7b.SCORE_SCALE).tanh()


@plant("dea-no-bend")
def dea_no_bend(qn: Tensor, kn_all: Tensor, vn_all: Tensor) -> Tensor:
    return seen(qn @ kn_all.mT * v7b.SCORE_BOUND / v7b.SCORE_SCALE, vn_all)


@plant("dea-no-root")
def dea_no_root(qn: Tensor, kn_all: Tensor, vn_all: Tensor) -> Tensor:
    return seen(v7b.SCORE_BOUND * (qn @ kn_all.mT / v7b.SCORE_BOUND).tanh(), vn_all)


@plant("dea-bound-30")
def dea_bound(qn: Tensor, kn_all: Tensor, vn_all: Tensor) -> Tensor:
    return seen(30 * (qn @ kn_all.mT / (30 * 16)).tanh(), vn_all)


@plant("dea-sees-next")
def dea_sees_next(qn: Tensor, kn_all: Tensor, vn_all: Tensor) -> Tensor:
    return seen(scores(qn, kn_all), vn_all, ahead=1)


@plant("dea-not-itself")
def dea_not_itself(qn: Tensor, kn_all: Tensor, vn_all: Tensor) -> Tensor:
    return seen(scores(qn, kn_all), vn_all, ahead=-1).nan_to_num()


@plant("dea-values-late")
def dea_values_late(qn: Tensor, kn_all: Tensor, vn_all: Tensor) -> Tensor:
    return v7b.dea(qn, kn_all, torch.cat([vn_all[:, :1], vn_all[:, :-1]], dim=1))


@plant("dea-linear")
def dea_linear(qn: Tensor, kn_all: Tensor, vn_all: Tensor) -> Tensor:
    T, S = qn.shape[-2], kn_all.shape[-2]
    return scores(qn, kn_all).tril(S - T) @ vn_all / S


@plant("dea-missing")
def dea_missing(x: Tensor, out: Tensor) -> Tensor:
    return x + out


@plant("dea-first")
def dea_first(x: Tensor, dea: Tensor, ln1_weight: Tensor, ln1_bias: Tensor) -> Tensor:
    return v7.ln1(x + dea, ln1_weight, ln1_bias)
