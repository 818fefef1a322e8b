"""Mistakes that the catalogue does not hold, to see that nobody is accused of what he did not do."""

from collections.abc import Mapping

from torch import Tensor
from torch.nn.functional import linear, silu

from backends.reference import v7
from backends.reference.equations import Equation


def gate_from_receptance_mix(xr: Tensor, g1: Tensor) -> Tensor:
    return (xr @ g1).sigmoid()


def rate_from_decay_mix(xw: Tensor, a1: Tensor) -> Tensor:
    return xw @ a1


def gate_through_silu(ln_x: Tensor, bonus: Tensor, g: Tensor, output_weight: Tensor) -> Tensor:
    return linear((ln_x + bonus) * silu(g), output_weight)


def static_value_residual(v_raw: Tensor, v_first: Tensor, v0: Tensor) -> Tensor:
    return v_raw + (v_first - v_raw) * v0.sigmoid()


def key_scaled_twice(k_raw: Tensor, a: Tensor, k_a: Tensor, k_k: Tensor) -> Tensor:
    return v7.k(k_raw, a, k_a) * k_k


def halved_activation(k: Tensor) -> Tensor:
    return v7.ffn_act(k) / 2


def decay_squared(w_raw: Tensor, w0: Tensor) -> Tensor:
    return v7.w(w_raw, w0) ** 2


def group_norm_without_weight(y: Tensor, ln_x_bias: Tensor, heads: int) -> Tensor:
    return v7.ln_x(y, 1.0, ln_x_bias, heads)  # type: ignore[arg-type]


def channel_mix_on_normed_stream(ln2: Tensor, out: Tensor) -> Tensor:
    return ln2 + out


def bonus_of_other_heads(r: Tensor, k: Tensor, v: Tensor, r_k: Tensor, heads: int) -> Tensor:
    return v7.bonus(r, k, v, r_k.flip(0), heads)


def decay_bias_inside(w_raw: Tensor, w0: Tensor) -> Tensor:
    return v7.w(w_raw.tanh(), w0)


def half_the_write(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    return v7.state(state_prev, w, kk, a, k / 2, v, heads)


MISTAKES: Mapping[str, Mapping[str, Equation]] = {
    "gate-from-receptance-mix": {"blocks.*.att.g_lora": gate_from_receptance_mix},
    "rate-from-decay-mix": {"blocks.*.att.a_lora": rate_from_decay_mix},
    "gate-through-silu": {"blocks.*.att.out": gate_through_silu},
    "static-value-residual": {"blocks.[!0]*.att.v": static_value_residual},
    "key-scaled-twice": {"blocks.*.att.k": key_scaled_twice},
    "halved-activation": {"blocks.*.ffn.act": halved_activation},
    "decay-squared": {"blocks.*.att.w": decay_squared},
    "group-norm-without-weight": {"blocks.*.att.ln_x": group_norm_without_weight},
    "channel-mix-on-normed-stream": {"blocks.*.ffn.res": channel_mix_on_normed_stream},
    "bonus-of-other-heads": {"blocks.*.att.bonus": bonus_of_other_heads},
    "decay-bias-inside": {"blocks.*.att.w": decay_bias_inside},
    "half-the-write": {"blocks.*.att.state": half_the_write},
}
"""Name -> what it overrides."""
