"""Faults of RWKV-5 and 6: token shift, decay, bonus, state without removal, gate and receptance."""
# ruff: noqa: D103 - the row in backends/fault_list.py says in words what each function gets wrong

import math

import torch
from torch import Tensor
from torch.nn.functional import linear

from backends.fault_list import DIAGONAL, EAGLE, FINCH
from backends.reference import v5, v6, v7
from backends.reference.faults.mix import ONE
from backends.reference.faults.plant import plant
from backends.reference.faults.stream import without_row
from backends.reference.forms import column, row
from backends.reference.v7 import lerp, split

# ---- token shift --------------------------------------------------------------------------------


@plant("time-mix-complement", "blocks.*.att.xr")
def xr_complement(shift: Tensor, ln1: Tensor, time_mix_r: Tensor) -> Tensor:
    return lerp(ln1, shift, time_mix_r)


@plant("time-mix-complement", "blocks.*.att.xk")
def xk_complement(shift: Tensor, ln1: Tensor, time_mix_k: Tensor) -> Tensor:
    return lerp(ln1, shift, time_mix_k)


@plant("time-mix-complement", "blocks.*.att.xv")
def xv_complement(shift: Tensor, ln1: Tensor, time_mix_v: Tensor) -> Tensor:
    return lerp(ln1, shift, time_mix_v)


@plant("time-mix-complement", "blocks.*.att.xg")
def xg_complement(shift: Tensor, ln1: Tensor, time_mix_g: Tensor) -> Tensor:
    return lerp(ln1, shift, time_mix_g)


@plant("maa-complement", "blocks.*.att.xx")
def xx_complement(ln1: Tensor, shift: Tensor, time_maa_x: Tensor) -> Tensor:
    return lerp(shift, ln1, time_maa_x)


@plant("maa-complement", "blocks.*.att.xw")
def maa_w_complement(ln1: Tensor, shift: Tensor, mix_w: Tensor) -> Tensor:
    return lerp(shift, ln1, mix_w)


@plant("maa-complement", "blocks.*.att.xk")
def maa_k_complement(ln1: Tensor, shift: Tensor, mix_k: Tensor) -> Tensor:
    return lerp(shift, ln1, mix_k)


@plant("maa-complement", "blocks.*.att.xv")
def maa_v_complement(ln1: Tensor, shift: Tensor, mix_v: Tensor) -> Tensor:
    return lerp(shift, ln1, mix_v)


@plant("maa-complement", "blocks.*.att.xr")
def maa_r_complement(ln1: Tensor, shift: Tensor, mix_r: Tensor) -> Tensor:
    return lerp(shift, ln1, mix_r)


@plant("maa-complement", "blocks.*.att.xg")
def maa_g_complement(ln1: Tensor, shift: Tensor, mix_g: Tensor) -> Tensor:
    return lerp(shift, ln1, mix_g)


@plant("maa-x-missing")
def maa_x_missing(ln1: Tensor) -> Tensor:
    return ln1


@plant("maa-no-tanh")
def maa_no_tanh(xx: Tensor, time_maa_w1: Tensor) -> Tensor:
    return xx @ time_maa_w1


@plant("maa-order", "blocks.*.att.mix_w")
def mix_w_reordered(mix_lora: Tensor, time_maa_w: Tensor, time_maa_w2_k: Tensor) -> Tensor:
    return v6.share(mix_lora, 1, time_maa_w, time_maa_w2_k)


@plant("maa-order", "blocks.*.att.mix_k")
def mix_k_reordered(mix_lora: Tensor, time_maa_k: Tensor, time_maa_w2_v: Tensor) -> Tensor:
    return v6.share(mix_lora, 2, time_maa_k, time_maa_w2_v)


@plant("maa-order", "blocks.*.att.mix_v")
def mix_v_reordered(mix_lora: Tensor, time_maa_v: Tensor, time_maa_w2_r: Tensor) -> Tensor:
    return v6.share(mix_lora, 3, time_maa_v, time_maa_w2_r)


@plant("maa-order", "blocks.*.att.mix_r")
def mix_r_reordered(mix_lora: Tensor, time_maa_r: Tensor, time_maa_w2_w: Tensor) -> Tensor:
    return v6.share(mix_lora, 0, time_maa_r, time_maa_w2_w)


def _alone(maa: Tensor, mix_lora: Tensor) -> Tensor:
    return maa.expand(*mix_lora.shape[:-1], -1)


@plant("maa-no-low-rank", "blocks.*.att.mix_w")
def mix_w_static(mix_lora: Tensor, time_maa_w: Tensor) -> Tensor:
    return _alone(time_maa_w, mix_lora)


@plant("maa-no-low-rank", "blocks.*.att.mix_k")
def mix_k_static(mix_lora: Tensor, time_maa_k: Tensor) -> Tensor:
    return _alone(time_maa_k, mix_lora)


@plant("maa-no-low-rank", "blocks.*.att.mix_v")
def mix_v_static(mix_lora: Tensor, time_maa_v: Tensor) -> Tensor:
    return _alone(time_maa_v, mix_lora)


@plant("maa-no-low-rank", "blocks.*.att.mix_r")
def mix_r_static(mix_lora: Tensor, time_maa_r: Tensor) -> Tensor:
    return _alone(time_maa_r, mix_lora)


@plant("maa-no-low-rank", "blocks.*.att.mix_g")
def mix_g_static(mix_lora: Tensor, time_maa_g: Tensor) -> Tensor:
    return _alone(time_maa_g, mix_lora)


@plant("maa-no-static", "blocks.*.att.mix_w")
def mix_w_dynamic(mix_lora: Tensor, time_maa_w2_w: Tensor) -> Tensor:
    return v6.share(mix_lora, 0, time_maa_w2_w.new_zeros(()), time_maa_w2_w)


@plant("maa-one-matrix", "blocks.*.att.mix_k")
def mix_k_first(mix_lora: Tensor, time_maa_k: Tensor, time_maa_w2_w: Tensor) -> Tensor:
    return v6.share(mix_lora, 1, time_maa_k, time_maa_w2_w)


@plant("maa-one-matrix", "blocks.*.att.mix_v")
def mix_v_first(mix_lora: Tensor, time_maa_v: Tensor, time_maa_w2_w: Tensor) -> Tensor:
    return v6.share(mix_lora, 2, time_maa_v, time_maa_w2_w)


@plant("maa-one-matrix", "blocks.*.att.mix_r")
def mix_r_first(mix_lora: Tensor, time_maa_r: Tensor, time_maa_w2_w: Tensor) -> Tensor:
    return v6.share(mix_lora, 3, time_maa_r, time_maa_w2_w)


@plant("maa-one-matrix", "blocks.*.att.mix_g")
def mix_g_first(mix_lora: Tensor, time_maa_g: Tensor, time_maa_w2_w: Tensor) -> Tensor:
    return v6.share(mix_lora, 4, time_maa_g, time_maa_w2_w)


for _module, _versions in ((v5, EAGLE), (v6, FINCH)):
    plant("mix-xk-xv-swapped", "blocks.*.att.xk", versions=_versions)(_module.xv)
    plant("mix-xk-xv-swapped", "blocks.*.att.xv", versions=_versions)(_module.xk)
    plant("ffn-mixes-swapped", "blocks.*.ffn.xk", versions=_versions)(_module.ffn_xr)
    plant("ffn-mixes-swapped", "blocks.*.ffn.xr", versions=_versions)(_module.ffn_xk)

# ---- decay --------------------------------------------------------------------------------------


@plant("w-no-tanh", versions=FINCH)
def w_no_tanh(xw: Tensor, time_decay_w1: Tensor) -> Tensor:
    return xw @ time_decay_w1


@plant("w-sigmoid-inside", versions=FINCH)
def w_sigmoid_inside(xw: Tensor, time_decay_w1: Tensor) -> Tensor:
    return (xw @ time_decay_w1).sigmoid()


@plant("decay-twice")
def decay_twice(k: Tensor, time_decay: Tensor) -> Tensor:
    return v5.w(k, (-time_decay.exp()).exp())


@plant("decay-static")
def decay_static(w_raw: Tensor, time_decay: Tensor) -> Tensor:
    return v6.w(torch.zeros_like(w_raw), time_decay)


@plant("decay-no-static")
def decay_no_static(w_raw: Tensor) -> Tensor:
    return v6.w(w_raw, w_raw.new_zeros(()))


@plant("decay-once", versions=EAGLE)
def eagle_once(k: Tensor, time_decay: Tensor) -> Tensor:
    return time_decay.exp().flatten().expand_as(k)


@plant("decay-once", versions=FINCH)
def finch_once(w_raw: Tensor, time_decay: Tensor) -> Tensor:
    return (time_decay + w_raw).exp()


@plant("decay-v7", versions=EAGLE)
def eagle_bounded(k: Tensor, time_decay: Tensor) -> Tensor:
    return v7.w(torch.zeros_like(k), time_decay.flatten())


@plant("decay-v7", versions=FINCH)
def finch_bounded(w_raw: Tensor, time_decay: Tensor) -> Tensor:
    return v7.w(w_raw, time_decay)


@plant("decay-sigmoid", versions=EAGLE)
def eagle_sigmoid(k: Tensor, time_decay: Tensor) -> Tensor:
    return time_decay.sigmoid().flatten().expand_as(k)


@plant("decay-sigmoid", versions=FINCH)
def finch_sigmoid(w_raw: Tensor, time_decay: Tensor) -> Tensor:
    return (time_decay + w_raw).sigmoid()


# ---- projections and gate -----------------------------------------------------------------------


@plant("key-transposed", ONE + "k")
def key_transposed(xk: Tensor, key_weight: Tensor) -> Tensor:
    return linear(xk, key_weight.mT)


@plant("value-transposed", ONE + "v")
def value_transposed(xv: Tensor, value_weight: Tensor) -> Tensor:
    return linear(xv, value_weight.mT)


@plant("out-transposed", ONE + "out", versions=DIAGONAL)
def out_transposed(ln_x: Tensor, g: Tensor, output_weight: Tensor) -> Tensor:
    return linear(ln_x * g, output_weight.mT)


@plant("gate-no-silu")
def gate_no_silu(xg: Tensor, gate_weight: Tensor) -> Tensor:
    return linear(xg, gate_weight)


@plant("gate-sigmoid")
def gate_sigmoid(xg: Tensor, gate_weight: Tensor) -> Tensor:
    return linear(xg, gate_weight).sigmoid()


@plant("gate-before-norm", "blocks.*.att.ln_x")
def ln_x_of_gated(y: Tensor, g: Tensor, ln_x_weight: Tensor, ln_x_bias: Tensor, heads: int) -> Tensor:
    return v7.ln_x(y * g, ln_x_weight, ln_x_bias, heads)


@plant("gate-before-norm", "blocks.*.att.out")
@plant("out-no-gate", versions=DIAGONAL)
def out_no_gate(ln_x: Tensor, output_weight: Tensor) -> Tensor:
    return linear(ln_x, output_weight)


# ---- bonus, state and what reads it --------------------------------------------------------------


@plant("u-exp")
def u_exp(r: Tensor, k: Tensor, v: Tensor, u: Tensor, heads: int) -> Tensor:
    return v5.bonus(r, k, v, u.exp(), heads)


@plant("u-missing")
def u_missing(r: Tensor, k: Tensor, v: Tensor, u: Tensor, heads: int) -> Tensor:
    return v5.bonus(r, k, v, torch.ones_like(u), heads)


@plant("u-heads-swapped")
def u_heads_swapped(r: Tensor, k: Tensor, v: Tensor, u: Tensor, heads: int) -> Tensor:
    return v5.bonus(r, k, v, u.flip(0), heads)


plant("u-on-state", "blocks.*.att.bonus")(u_missing)


@plant("u-on-state", "blocks.*.att.y")
def y_of_scaled_state(state_prev: Tensor, r: Tensor, bonus: Tensor, u: Tensor, heads: int) -> Tensor:
    return v5.y(state_prev * u.unsqueeze(-2), r, bonus, heads)


@plant("bonus-per-channel", versions=DIAGONAL)
def bonus_per_channel(r: Tensor, k: Tensor, v: Tensor, u: Tensor) -> Tensor:
    return r * u.flatten() * k * v


@plant("y-new-state")
def y_new_state(state: Tensor, r: Tensor, bonus: Tensor, heads: int) -> Tensor:
    return v5.y(state, r, bonus, heads)


@plant("y-decayed-state")
def y_decayed_state(state_prev: Tensor, w: Tensor, r: Tensor, bonus: Tensor, heads: int) -> Tensor:
    return v5.y(state_prev * row(w, heads), r, bonus, heads)


@plant("y-transposed", versions=DIAGONAL)
def y_transposed(state_prev: Tensor, r: Tensor, bonus: Tensor, heads: int) -> Tensor:
    return v5.y(state_prev.mT, r, bonus, heads)


@plant("y-reads-k", versions=DIAGONAL)
def y_reads_k(state_prev: Tensor, k: Tensor, bonus: Tensor, heads: int) -> Tensor:
    return v5.y(state_prev, k, bonus, heads)


@plant("y-scaled", versions=DIAGONAL)
def y_scaled(state_prev: Tensor, r: Tensor, bonus: Tensor, heads: int) -> Tensor:
    return v5.y(state_prev, r / math.sqrt(state_prev.shape[-1]), bonus, heads)


@plant("state-decay-axis", versions=DIAGONAL)
def state_decay_axis(state_prev: Tensor, w: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return state_prev * column(w, heads) + column(v, heads) * row(k, heads)


@plant("state-decay-last", versions=DIAGONAL)
def state_decay_last(state_prev: Tensor, w: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return (state_prev + column(v, heads) * row(k, heads)) * row(w, heads)


@plant("state-outer-swapped", versions=DIAGONAL)
def state_outer_swapped(state_prev: Tensor, w: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return v5.state(state_prev, w, v, k, heads)


@plant("state-no-decay")
def state_no_decay(state_prev: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return state_prev + column(v, heads) * row(k, heads)


@plant("state-bonus-written")
def state_bonus_written(state_prev: Tensor, w: Tensor, k: Tensor, v: Tensor, u: Tensor, heads: int) -> Tensor:
    return v5.state(state_prev, w, k * (1 + u.flatten()), v, heads)


@plant("state-bf16", versions=DIAGONAL)
def state_bf16(state_prev: Tensor, w: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return v5.state(state_prev, w, k, v, heads).bfloat16().to(state_prev.dtype)


@plant("state-heads-swapped", versions=DIAGONAL)
def state_heads_swapped(state_prev: Tensor, w: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return v5.state(state_prev, w, k, split(v, heads).flip(-2).flatten(-2), heads)


@plant("state-batch-leak", versions=DIAGONAL)
def state_batch_leak(state_prev: Tensor, w: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return v5.state(state_prev[:1].expand_as(state_prev), w, k, v, heads)


# ---- channel mix --------------------------------------------------------------------------------


@plant("ffn-mix-other", "blocks.*.ffn.xk", versions=EAGLE)
def eagle_xk_other(shift: Tensor, ln2: Tensor, time_mix_k: Tensor) -> Tensor:
    return lerp(ln2, shift, time_mix_k)


@plant("ffn-mix-other", "blocks.*.ffn.xr", versions=EAGLE)
def eagle_xr_other(shift: Tensor, ln2: Tensor, time_mix_r: Tensor) -> Tensor:
    return lerp(ln2, shift, time_mix_r)


@plant("ffn-mix-other", "blocks.*.ffn.xk", versions=FINCH)
def finch_xk_other(ln2: Tensor, shift: Tensor, time_maa_k: Tensor) -> Tensor:
    return lerp(shift, ln2, time_maa_k)


@plant("ffn-mix-other", "blocks.*.ffn.xr", versions=FINCH)
def finch_xr_other(ln2: Tensor, shift: Tensor, time_maa_r: Tensor) -> Tensor:
    return lerp(shift, ln2, time_maa_r)


@plant("ffn-no-receptance")
def ffn_no_receptance(act: Tensor, value_weight: Tensor) -> Tensor:
    return linear(act, value_weight)


@plant("ffn-r-no-sigmoid")
def ffn_r_no_sigmoid(xr: Tensor, receptance_weight: Tensor) -> Tensor:
    return linear(xr, receptance_weight)


@plant("ffn-r-transposed")
def ffn_r_transposed(xr: Tensor, receptance_weight: Tensor) -> Tensor:
    return v5.ffn_r(xr, receptance_weight.mT)


@plant("ffn-row-zero", "blocks.1.ffn.out", versions=DIAGONAL)
def ffn_row_zero(r: Tensor, act: Tensor, value_weight: Tensor) -> Tensor:
    return v5.ffn_out(r, act, without_row(value_weight))
