"""Faults of the vectors of the time mix: projections, low-rank pairs, decay, keys, learning rate, value, gate."""
# ruff: noqa: D103 - the row in backends/fault_list.py says in words what each function gets wrong

from torch import Tensor, linalg
from torch.nn.functional import hardsigmoid, linear

from backends.fault_list import GOOSE
from backends.reference import v7
from backends.reference.faults.plant import LATER, Planted, plant, wire
from backends.reference.faults.stream import without_row
from backends.reference.v7 import split

ONE = "blocks.1.att."  # the layer that is spoiled where the others are right


def dealt(x: Tensor, heads: int) -> Tensor:
    """(..., C) -> (..., H, N) with every H-th channel in a head, which is wrong."""
    return x.view(*x.shape[:-1], -1, heads).mT


@plant("r-transposed", ONE + "r")
def r_transposed(xr: Tensor, receptance_weight: Tensor) -> Tensor:
    return linear(xr, receptance_weight.mT)


@plant("r-sigmoid")
def r_sigmoid(xr: Tensor, receptance_weight: Tensor) -> Tensor:
    return linear(xr, receptance_weight).sigmoid()


@plant("r-row-zero", ONE + "r")
def r_row_zero(xr: Tensor, receptance_weight: Tensor) -> Tensor:
    return linear(xr, without_row(receptance_weight))


@plant("k-transposed", ONE + "k_raw")
def k_transposed(xk: Tensor, key_weight: Tensor) -> Tensor:
    return linear(xk, key_weight.mT)


@plant("v-transposed", ONE + "v_raw")
def v_transposed(xv: Tensor, value_weight: Tensor) -> Tensor:
    return linear(xv, value_weight.mT)


@plant("out-transposed", ONE + "out", versions=GOOSE)
def out_transposed(ln_x: Tensor, bonus: Tensor, g: Tensor, output_weight: Tensor) -> Tensor:
    return linear((ln_x + bonus) * g, output_weight.mT)


@plant("w-no-tanh", versions=GOOSE)
def w_no_tanh(xw: Tensor, w1: Tensor) -> Tensor:
    return xw @ w1


@plant("w-sigmoid-inside", versions=GOOSE)
def w_sigmoid_inside(xw: Tensor, w1: Tensor) -> Tensor:
    return (xw @ w1).sigmoid()


@plant("w-no-bias")
def w_no_bias(w_raw: Tensor) -> Tensor:
    return (-v7.DECAY_SCALE * w_raw.sigmoid()).exp()


@plant("w-v6")
def w_v6(w_raw: Tensor, w0: Tensor) -> Tensor:
    return (-(w0 + w_raw).exp()).exp()


@plant("w-sigmoid")
def w_sigmoid(w_raw: Tensor, w0: Tensor) -> Tensor:
    return (w0 + w_raw).sigmoid()


@plant("w-no-scale")
def w_no_scale(w_raw: Tensor, w0: Tensor) -> Tensor:
    return (-(w0 + w_raw).sigmoid()).exp()


@plant("w-log")
def w_log(w_raw: Tensor, w0: Tensor) -> Tensor:
    return -v7.DECAY_SCALE * (w0 + w_raw).sigmoid()


@plant("w-scale-0.6")
def w_scale(w_raw: Tensor, w0: Tensor) -> Tensor:
    return (-0.6 * (w0 + w_raw).sigmoid()).exp()


@plant("kk-not-normalised")
def kk_not_normalised(k_raw: Tensor, k_k: Tensor) -> Tensor:
    return k_raw * k_k


@plant("kk-norm-over-c")
def kk_norm_over_c(k_raw: Tensor, k_k: Tensor) -> Tensor:
    return v7.kk(k_raw, k_k, 1)


@plant("kk-from-modified-k")
def kk_from_modified_k(
    k_raw: Tensor, k_k: Tensor, k_a: Tensor, xa: Tensor, a0: Tensor, a1: Tensor, a2: Tensor, heads: int
) -> Tensor:
    return v7.kk(v7.k(k_raw, v7.a(v7.a_lora(xa, a1), a0, a2), k_a), k_k, heads)


@plant("kk-no-scale")
def kk_no_scale(k_raw: Tensor, k_k: Tensor, heads: int) -> Tensor:
    return v7.kk(k_raw, k_k.new_ones(()), heads)


@plant("kk-eps-in-root")
def kk_eps_in_root(k_raw: Tensor, k_k: Tensor, heads: int) -> Tensor:
    kappa = split(k_raw * k_k, heads)
    return (kappa * (kappa.square().sum(-1, keepdim=True) + 1e-6).rsqrt()).flatten(-2)


@plant("kk-floor-1e-4")
def kk_floor(k_raw: Tensor, k_k: Tensor, heads: int) -> Tensor:
    kappa = split(k_raw * k_k, heads)
    return (kappa * kappa.square().sum(-1, keepdim=True).clamp_min(1e-4).rsqrt()).flatten(-2)


@plant("kk-no-floor")
def kk_no_floor(k_raw: Tensor, k_k: Tensor, heads: int) -> Tensor:
    kappa = split(k_raw * k_k, heads)
    norm: Tensor = linalg.vector_norm(kappa, dim=-1, keepdim=True)
    return (kappa / norm).flatten(-2)


@plant("kk-interleaved")
def kk_interleaved(k_raw: Tensor, k_k: Tensor, heads: int) -> Tensor:
    kappa = dealt(k_raw * k_k, heads)
    norm: Tensor = linalg.vector_norm(kappa, dim=-1, keepdim=True)
    return (kappa / norm.clamp_min(v7.KEY_NORM_FLOOR)).mT.flatten(-2)


@plant("a-tanh")
def a_tanh(xa: Tensor, a1: Tensor) -> Tensor:
    return (xa @ a1).tanh()


@plant("a-no-bias")
def a_no_bias(a_lora: Tensor, a2: Tensor) -> Tensor:
    return (a_lora @ a2).sigmoid()


@plant("a-hard-sigmoid")
def a_hard_sigmoid(a_lora: Tensor, a0: Tensor, a2: Tensor) -> Tensor:
    return hardsigmoid(a0 + a_lora @ a2)


@plant("a-twice")
def a_twice(a_lora: Tensor, a0: Tensor, a2: Tensor) -> Tensor:
    return 2 * (a0 + a_lora @ a2).sigmoid()


@plant("k-not-modified")
def k_not_modified(k_raw: Tensor) -> Tensor:
    return k_raw


@plant("k-no-k_a")
def k_no_k_a(k_raw: Tensor, a: Tensor) -> Tensor:
    return k_raw * a


@plant("k-a-plus")
def k_a_plus(k_raw: Tensor, a: Tensor, k_a: Tensor) -> Tensor:
    return k_raw * (1 + a * k_a)


@plant("v-residual-missing", LATER + "att.v")
def v_residual_missing(v_raw: Tensor) -> Tensor:
    return v_raw


@plant("v-residual-reversed", LATER + "att.v")
def v_residual_reversed(v_raw: Tensor, v_first: Tensor, v_lora: Tensor, v0: Tensor, v2: Tensor) -> Tensor:
    return v7.v(v_first, v_raw, v_lora, v0, v2)


@wire("v-residual-previous")
def v_residual_previous() -> Planted:
    """The equations hand the value on from layer to layer; layer 0, which begins every walk, starts anew."""
    before: list[Tensor] = []

    def first(v_raw: Tensor) -> Tensor:
        before[:] = [v_raw]
        return v_raw

    def later(v_raw: Tensor, v_lora: Tensor, v0: Tensor, v2: Tensor) -> Tensor:
        before[:] = [v7.v(v_raw, before[0], v_lora, v0, v2)]
        return before[0]

    return {"blocks.0.att.v": first, LATER + "att.v": later}


@plant("v-residual-raw", LATER + "att.v")
def v_residual_raw(v_raw: Tensor, v_first: Tensor, v_lora: Tensor, v0: Tensor, v2: Tensor) -> Tensor:
    return v_raw + v_first * (v0 + v_lora @ v2).sigmoid()


@plant("v-no-bias", LATER + "att.v")
def v_no_bias(v_raw: Tensor, v_first: Tensor, v_lora: Tensor, v2: Tensor) -> Tensor:
    return v_raw + (v_first - v_raw) * (v_lora @ v2).sigmoid()


@plant("v-tanh")
def v_tanh(xv: Tensor, v1: Tensor) -> Tensor:
    return (xv @ v1).tanh()


@plant("g-no-sigmoid")
def g_no_sigmoid(xg: Tensor, g1: Tensor) -> Tensor:
    return xg @ g1


@plant("g-tanh")
def g_tanh(xg: Tensor, g1: Tensor) -> Tensor:
    return (xg @ g1).tanh()


@plant("g-sigmoid-outside")
def g_sigmoid_outside(g_lora: Tensor, g2: Tensor) -> Tensor:
    return (g_lora @ g2).sigmoid()
