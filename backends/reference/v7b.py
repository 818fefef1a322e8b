"""RWKV-7b: v7a with DEA, an attention over all tokens that stands beside the time mix; see v7.py for how to read it.

DEA reads the stream before `ln1`. Its keys and values are low-rank, times a vector of their token, so that only the
ids and two rows of 32 numbers a token and layer are kept: this state grows. Source: the official 7b demo.
"""

from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from backends.reference import v7, v7a
from backends.reference.v7 import LN_EPS, lerp
from backends.reference.walk import Table

SCORE_BOUND = 64.0  # scores lie in (-64, 64)
SCORE_SCALE = 1024.0  # holds the usual 1 / sqrt(256): 1024 = 64 * 16


def q(x: Tensor, qq_weight: Tensor) -> Tensor:  # (..., 256)
    return linear(x, qq_weight)


def k_lora(x: Tensor, k1: Tensor) -> Tensor:  # (..., 32); kept for later tokens
    return x @ k1


def k_emb(tokens: Tensor, ln0: Tensor, k_emb_weight: Tensor, k_emb_x_weight: Tensor) -> Tensor:  # (..., 256)
    return k_emb_weight[tokens] + linear(ln0, k_emb_x_weight)


def k(k_lora: Tensor, k_emb: Tensor, k2: Tensor) -> Tensor:
    return (k_lora @ k2) * k_emb


def v_lora(x: Tensor, v1: Tensor) -> Tensor:  # (..., 32); kept for later tokens
    return x @ v1


def v_emb(tokens: Tensor, ln0: Tensor, v_emb_weight: Tensor, v_emb_x_weight: Tensor) -> Tensor:  # (..., C)
    return v_emb_weight[tokens] + linear(ln0, v_emb_x_weight)


def v(v_lora: Tensor, v_emb: Tensor, v2: Tensor) -> Tensor:
    return (v_lora @ v2).tanh() * v_emb


def qn(q: Tensor, q_prev: Tensor, x_q: Tensor, lnq_weight: Tensor, lnq_bias: Tensor) -> Tensor:
    return layer_norm(lerp(q, q_prev, x_q), q.shape[-1:], lnq_weight, lnq_bias, LN_EPS)


def kn(k: Tensor, k_prev: Tensor, x_k: Tensor, lnk_weight: Tensor, lnk_bias: Tensor) -> Tensor:
    return layer_norm(lerp(k, k_prev, x_k), k.shape[-1:], lnk_weight, lnk_bias, LN_EPS)


def vn(v: Tensor, v_prev: Tensor, x_v: Tensor, lnv_weight: Tensor, lnv_bias: Tensor) -> Tensor:
    return layer_norm(lerp(v, v_prev, x_v), v.shape[-1:], lnv_weight, lnv_bias, LN_EPS)


def dea(qn: Tensor, kn_all: Tensor, vn_all: Tensor) -> Tensor:
    """One head of width 256 over all tokens up to the own one; (B, T, 256), (B, S + T, 256), (B, S + T, C)."""
    T, past = qn.shape[-2], kn_all.shape[-2] - qn.shape[-2]
    score = SCORE_BOUND * (qn @ kn_all.mT / SCORE_SCALE).tanh()
    later = torch.ones(T, past + T, dtype=torch.bool).triu(past + 1)
    return score.masked_fill(later, -torch.inf).softmax(-1) @ vn_all


def res(x: Tensor, out: Tensor, dea: Tensor) -> Tensor:  # the time mix's output and DEA's enter the stream together
    return x + out + dea


DEA: Table = {
    "q": q, "k_lora": k_lora, "k_emb": k_emb, "k": k, "v_lora": v_lora, "v_emb": v_emb, "v": v,
    "qn": qn, "kn": kn, "vn": vn, "out": dea,
}  # fmt: skip
TIME_MIX: Table = {**v7.TIME_MIX, "res": res}
TIME_MIX_LAYER0: Table = {**v7.TIME_MIX_LAYER0, "res": res}

VERSION = replace(
    v7a.VERSION,
    block={"qkv": DEA, "att": TIME_MIX, "ffn": v7a.CHANNEL_MIX},
    first_block={"att": TIME_MIX_LAYER0},
    outside={**v7a.VERSION.outside, "dea": "blocks.{layer}.qkv.out"},
    carried={**v7.VERSION.carried, "dea_q": "qkv.q"},
    growing={"tokens": "tokens", "dea_k": "qkv.k_lora", "dea_v": "qkv.v_lora"},
)
