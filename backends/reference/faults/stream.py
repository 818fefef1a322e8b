"""Faults of embedding, norms, token shift, channel mix and head. A function's parameters are the equation's."""
# ruff: noqa: D103 - the row in backends/fault_list.py says in words what each function gets wrong

import torch
from torch import Tensor
from torch.nn.functional import gelu, layer_norm, linear, silu

from backends.fault_list import DIAGONAL, GOOSE
from backends.reference import v7
from backends.reference.faults.plant import plant
from backends.reference.v7 import lerp

ROW = 5  # the row of a matrix that is zero


def norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """Layer norm with an epsilon of its own."""
    return layer_norm(x, x.shape[-1:], weight, bias, eps)


def without_row(weight: Tensor) -> Tensor:
    """A copy of a matrix with one row zero."""
    copy = weight.clone()
    copy[ROW] = 0
    return copy


@plant("emb-row-shift")
def emb_row_shift(tokens: Tensor, emb_weight: Tensor) -> Tensor:
    return emb_weight[(tokens + 1) % len(emb_weight)]


@plant("ln0-missing")
def ln0_missing(emb: Tensor) -> Tensor:
    return emb


@plant("ln0-eps-1e-6")
def ln0_eps(emb: Tensor, ln0_weight: Tensor, ln0_bias: Tensor) -> Tensor:
    return norm(emb, ln0_weight, ln0_bias, 1e-6)


@plant("ln1-eps-1e-6")
def ln1_small(x: Tensor, ln1_weight: Tensor, ln1_bias: Tensor) -> Tensor:
    return norm(x, ln1_weight, ln1_bias, 1e-6)


@plant("ln1-eps-1e-4")
def ln1_large(x: Tensor, ln1_weight: Tensor, ln1_bias: Tensor) -> Tensor:
    return norm(x, ln1_weight, ln1_bias, 1e-4)


@plant("ln1-eps-outside")
def ln1_outside(x: Tensor, ln1_weight: Tensor, ln1_bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True).sqrt() + v7.LN_EPS) * ln1_weight + ln1_bias


@plant("ln1-rms")
def ln1_rms(x: Tensor, ln1_weight: Tensor, ln1_bias: Tensor) -> Tensor:
    return x * (x.square().mean(-1, keepdim=True) + v7.LN_EPS).rsqrt() * ln1_weight + ln1_bias


@plant("ln1-no-bias")
def ln1_no_bias(x: Tensor, ln1_weight: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], ln1_weight, None, v7.LN_EPS)


@plant("ln1-unbiased")
def ln1_unbiased(x: Tensor, ln1_weight: Tensor, ln1_bias: Tensor) -> Tensor:
    centred = x - x.mean(-1, keepdim=True)
    return centred * (x.var(-1, keepdim=True) + v7.LN_EPS).rsqrt() * ln1_weight + ln1_bias


@plant("ln2-eps-1e-6")
def ln2_small(x: Tensor, ln2_weight: Tensor, ln2_bias: Tensor) -> Tensor:
    return norm(x, ln2_weight, ln2_bias, 1e-6)


@plant("ln2-no-weight")
def ln2_no_weight(x: Tensor, ln2_bias: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], None, ln2_bias, v7.LN_EPS)


@plant("ln-out-eps-1e-6")
def ln_out_small(x: Tensor, ln_out_weight: Tensor, ln_out_bias: Tensor) -> Tensor:
    return norm(x, ln_out_weight, ln_out_bias, 1e-6)


@plant("ln-out-missing")
def ln_out_missing(x: Tensor) -> Tensor:
    return x


@plant("shift-first-token")
def shift_first_token(ln1: Tensor, ln1_prev: Tensor) -> Tensor:
    nothing = ~ln1_prev.any(-1, keepdim=True)  # only what comes before a text is exactly zero
    return torch.where(nothing, ln1, ln1_prev)


@plant("shift-raw")
def shift_raw(x_prev: Tensor, ln1_prev: Tensor) -> Tensor:
    del ln1_prev  # read so that the state keeps its part
    return x_prev


@plant("shift-two-back")
def shift_two_back(ln1_prev: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(ln1_prev[:, :1]), ln1_prev[:, :-1]], dim=1)


@plant("shift-missing")
def shift_missing(ln1_prev: Tensor) -> Tensor:
    return torch.zeros_like(ln1_prev)


@plant("mix-complement", "blocks.*.att.xr")
def xr_complement(ln1: Tensor, shift: Tensor, x_r: Tensor) -> Tensor:
    return lerp(shift, ln1, x_r)


@plant("mix-complement", "blocks.*.att.xw")
def xw_complement(ln1: Tensor, shift: Tensor, x_w: Tensor) -> Tensor:
    return lerp(shift, ln1, x_w)


@plant("mix-complement", "blocks.*.att.xk")
def xk_complement(ln1: Tensor, shift: Tensor, x_k: Tensor) -> Tensor:
    return lerp(shift, ln1, x_k)


@plant("mix-complement", "blocks.*.att.xv")
def xv_complement(ln1: Tensor, shift: Tensor, x_v: Tensor) -> Tensor:
    return lerp(shift, ln1, x_v)


@plant("mix-complement", "blocks.*.att.xa")
def xa_complement(ln1: Tensor, shift: Tensor, x_a: Tensor) -> Tensor:
    return lerp(shift, ln1, x_a)


@plant("mix-complement", "blocks.*.att.xg")
def xg_complement(ln1: Tensor, shift: Tensor, x_g: Tensor) -> Tensor:
    return lerp(shift, ln1, x_g)


plant("mix-order", "blocks.*.att.xw")(v7.xv)
plant("mix-order", "blocks.*.att.xk")(v7.xw)
plant("mix-order", "blocks.*.att.xv")(v7.xk)
plant("mix-xk-xv-swapped", "blocks.*.att.xk", versions=GOOSE)(v7.xv)
plant("mix-xk-xv-swapped", "blocks.*.att.xv", versions=GOOSE)(v7.xk)
plant("mix-xa-is-xg")(v7.xg)


@plant("res-from-norm", versions=(*DIAGONAL, "7", "7a"))
def res_from_norm(ln1: Tensor, out: Tensor) -> Tensor:
    return ln1 + out


@plant("ffn-shift-missing")
def ffn_shift_missing(ln2_prev: Tensor) -> Tensor:
    return torch.zeros_like(ln2_prev)


@plant("ffn-mix-complement")
def ffn_complement(ln2: Tensor, shift: Tensor, x_k: Tensor) -> Tensor:
    return lerp(shift, ln2, x_k)


@plant("ffn-transposed")
def ffn_transposed(xk: Tensor, key_weight: Tensor) -> Tensor:
    C = xk.shape[-1]
    return linear(xk, torch.cat([key_weight[:C].mT, key_weight[C:]]))


@plant("ffn-relu")
def ffn_relu(k: Tensor) -> Tensor:
    return k.relu()


@plant("ffn-silu")
def ffn_silu(k: Tensor) -> Tensor:
    return silu(k)


@plant("ffn-gelu")
def ffn_gelu(k: Tensor) -> Tensor:
    return gelu(k)


@plant("ffn-square")
def ffn_square(k: Tensor) -> Tensor:
    return k.square()


@plant("ffn-row-zero", "blocks.1.ffn.out", versions=("7",))
def ffn_row_zero(act: Tensor, value_weight: Tensor) -> Tensor:
    return linear(act, without_row(value_weight))


@plant("head-row-shift")
def head_row_shift(ln_out: Tensor, head_weight: Tensor) -> Tensor:
    return linear(ln_out, head_weight).roll(1, -1)


@plant("head-row-zero")
def head_row_zero(ln_out: Tensor, head_weight: Tensor) -> Tensor:
    return linear(ln_out, without_row(head_weight))
