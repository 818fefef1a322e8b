"""Faults of the WKV state, of what reads it, of group norm, bonus and gate."""
# ruff: noqa: D103 - the row in backends/fault_list.py says in words what each function gets wrong

import math

import torch
from torch import Tensor
from torch.nn.functional import layer_norm, linear

from backends.fault_list import GOOSE
from backends.reference import v7
from backends.reference.faults.mix import dealt
from backends.reference.faults.plant import plant
from backends.reference.forms import column, row
from backends.reference.v7 import split


@plant("state-no-removal")
def state_no_removal(state_prev: Tensor, w: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return state_prev * row(w, heads) + column(v, heads) * row(k, heads)


@plant("state-plus")
def state_plus(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return v7.state(state_prev, w, kk, -a, k, v, heads)


@plant("state-decay-axis", versions=GOOSE)
def state_decay_axis(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    removed = state_prev @ column(kk, heads) * row(kk * a, heads)
    return state_prev * column(w, heads) - removed + column(v, heads) * row(k, heads)


@plant("state-removal-axis")
def state_removal_axis(
    state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int
) -> Tensor:
    removed = state_prev.mT @ column(kk, heads) * row(kk * a, heads)
    return state_prev * row(w, heads) - removed + column(v, heads) * row(k, heads)


@plant("state-no-a")
def state_no_a(state_prev: Tensor, w: Tensor, kk: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return v7.state(state_prev, w, kk, torch.ones_like(kk), k, v, heads)


@plant("state-a-on-read")
def state_a_on_read(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    removed = state_prev @ column(kk * a, heads) * row(kk, heads)
    return state_prev * row(w, heads) - removed + column(v, heads) * row(k, heads)


@plant("state-decay-first")
def state_decay_first(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return v7.state(state_prev * row(w, heads), torch.ones_like(w), kk, a, k, v, heads)


@plant("state-decay-last", versions=GOOSE)
def state_decay_last(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return v7.state(state_prev, torch.ones_like(w), kk, a, k, v, heads) * row(w, heads)


@plant("state-outer-swapped", versions=GOOSE)
def state_outer_swapped(
    state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int
) -> Tensor:
    return v7.state(state_prev, w, kk, a, v, k, heads)


@plant("state-raw-key")
def state_raw_key(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k_raw: Tensor, v: Tensor, heads: int) -> Tensor:
    return v7.state(state_prev, w, kk, a, k_raw, v, heads)


@plant("state-bf16", versions=GOOSE)
def state_bf16(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return v7.state(state_prev, w, kk, a, k, v, heads).bfloat16().to(state_prev.dtype)


@plant("state-heads-swapped", versions=GOOSE)
def state_heads_swapped(
    state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int
) -> Tensor:
    return v7.state(state_prev, w, kk, a, k, split(v, heads).flip(-2).flatten(-2), heads)


@plant("state-batch-leak", versions=GOOSE)
def state_batch_leak(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return v7.state(state_prev[:1].expand_as(state_prev), w, kk, a, k, v, heads)


@plant("y-old-state")
def y_old_state(state: Tensor, state_prev: Tensor, r: Tensor, heads: int) -> Tensor:
    del state  # read so that the walk knows this for a reader of the state
    return v7.y(state_prev, r, heads)


@plant("y-transposed", versions=GOOSE)
def y_transposed(state: Tensor, r: Tensor, heads: int) -> Tensor:
    return v7.y(state.mT, r, heads)


@plant("y-reads-k", versions=GOOSE)
def y_reads_k(state: Tensor, k: Tensor, heads: int) -> Tensor:
    return v7.y(state, k, heads)


@plant("y-scaled", versions=GOOSE)
def y_scaled(state: Tensor, r: Tensor, heads: int) -> Tensor:
    return v7.y(state, r / math.sqrt(state.shape[-1]), heads)


def group_norm(y: Tensor, weight: Tensor, bias: Tensor, heads: int, eps: float) -> Tensor:
    """Group norm with an epsilon of its own."""
    groups = split(y, heads)
    return layer_norm(groups, groups.shape[-1:], eps=eps).flatten(-2) * weight + bias


@plant("ln-x-eps-1e-5")
def ln_x_small(y: Tensor, ln_x_weight: Tensor, ln_x_bias: Tensor, heads: int) -> Tensor:
    return group_norm(y, ln_x_weight, ln_x_bias, heads, 1e-5)


@plant("ln-x-eps-8e-5")
def ln_x_not_squared(y: Tensor, ln_x_weight: Tensor, ln_x_bias: Tensor, heads: int) -> Tensor:
    return group_norm(y, ln_x_weight, ln_x_bias, heads, 8e-5)


@plant("ln-x-unbiased")
def ln_x_unbiased(y: Tensor, ln_x_weight: Tensor, ln_x_bias: Tensor, heads: int) -> Tensor:
    y = split(y, heads)
    scale = (y.var(-1, keepdim=True) + v7.GROUP_NORM_EPS).rsqrt()
    normed: Tensor = ((y - y.mean(-1, keepdim=True)) * scale).flatten(-2)
    return normed * ln_x_weight + ln_x_bias


@plant("ln-x-one-group")
def ln_x_one_group(y: Tensor, ln_x_weight: Tensor, ln_x_bias: Tensor) -> Tensor:
    return group_norm(y, ln_x_weight, ln_x_bias, 1, v7.GROUP_NORM_EPS)


@plant("ln-x-no-bias")
def ln_x_no_bias(y: Tensor, ln_x_weight: Tensor, heads: int) -> Tensor:
    return v7.ln_x(y, ln_x_weight, torch.zeros_like(ln_x_weight), heads)


@plant("ln-x-interleaved")
def ln_x_interleaved(y: Tensor, ln_x_weight: Tensor, ln_x_bias: Tensor, heads: int) -> Tensor:
    groups = dealt(y, heads)
    normed = layer_norm(groups, groups.shape[-1:], eps=v7.GROUP_NORM_EPS)
    return normed.mT.flatten(-2) * ln_x_weight + ln_x_bias


@plant("bonus-missing")
def bonus_missing(v: Tensor) -> Tensor:
    return torch.zeros_like(v)


@plant("bonus-raw-key")
def bonus_raw_key(r: Tensor, k_raw: Tensor, v: Tensor, r_k: Tensor, heads: int) -> Tensor:
    return v7.bonus(r, k_raw, v, r_k, heads)


@plant("bonus-raw-value")
def bonus_raw_value(r: Tensor, k: Tensor, v_raw: Tensor, r_k: Tensor, heads: int) -> Tensor:
    return v7.bonus(r, k, v_raw, r_k, heads)


@plant("bonus-no-r_k")
def bonus_no_r_k(r: Tensor, k: Tensor, v: Tensor, r_k: Tensor, heads: int) -> Tensor:
    return v7.bonus(r, k, v, torch.ones_like(r_k), heads)


@plant("bonus-per-channel", versions=GOOSE)
def bonus_per_channel(r: Tensor, k: Tensor, v: Tensor, r_k: Tensor) -> Tensor:
    return r * k * r_k.flatten() * v


@plant("bonus-before-norm", "blocks.*.att.ln_x")
def ln_x_of_both(
    y: Tensor, r: Tensor, k: Tensor, v: Tensor, r_k: Tensor, ln_x_weight: Tensor, ln_x_bias: Tensor, heads: int
) -> Tensor:
    return v7.ln_x(y + v7.bonus(r, k, v, r_k, heads), ln_x_weight, ln_x_bias, heads)


@plant("bonus-before-norm", "blocks.*.att.out")
def out_without_bonus(ln_x: Tensor, g: Tensor, output_weight: Tensor) -> Tensor:
    return linear(ln_x * g, output_weight)


@plant("out-no-gate", versions=GOOSE)
def out_no_gate(ln_x: Tensor, bonus: Tensor, output_weight: Tensor) -> Tensor:
    return linear(ln_x + bonus, output_weight)


@plant("out-gate-first")
def out_gate_first(ln_x: Tensor, bonus: Tensor, g: Tensor, output_weight: Tensor) -> Tensor:
    return linear(ln_x * g + bonus, output_weight)
