"""RWKV-7 "Goose": one function per named tensor, read top to bottom like the paper.

A parameter names what the equation reads: another tensor of the same sub-layer (`xw`), a weight of the
block (`w0`, `receptance_weight`), the stream `x` that enters the sub-layer, `heads`, or a tensor's
value at the previous token (`ln1_prev`). Vectors are (..., C), the WKV state is (..., H, N value,
N key); the dots are (B, T) or any other leading axes. Source: "RWKV-7 Goose with Expressive Dynamic
State Evolution" (arXiv 2503.14456) and the official inference code.
"""

import math

from torch import Tensor, linalg
from torch.nn.functional import layer_norm, linear

from backends.reference.walk import Table, Version

DECAY_SCALE = math.exp(-0.5)  # the decay exponent's bound: w > exp(-DECAY_SCALE) = 0.5452
LN_EPS = 1e-5
GROUP_NORM_EPS = 64e-5  # 1e-5 * 8^2: training divides the input by 8; does not scale with N
KEY_NORM_FLOOR = 1e-12  # a floor of the norm, not a term under the root


def split(x: Tensor, heads: int) -> Tensor:
    """(..., C) -> (..., H, N)."""
    return x.view(*x.shape[:-1], heads, -1)


def lerp(x: Tensor, previous: Tensor, share: Tensor) -> Tensor:
    """Token shift: `share` is the part of the previous token."""
    return x + (previous - x) * share


def emb(tokens: Tensor, emb_weight: Tensor) -> Tensor:  # (..., C)
    return emb_weight[tokens]


def ln0(emb: Tensor, ln0_weight: Tensor, ln0_bias: Tensor) -> Tensor:
    return layer_norm(emb, emb.shape[-1:], ln0_weight, ln0_bias, LN_EPS)


# ---- time mix -----------------------------------------------------------------------------------


def ln1(x: Tensor, ln1_weight: Tensor, ln1_bias: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], ln1_weight, ln1_bias, LN_EPS)


def att_shift(ln1_prev: Tensor) -> Tensor:  # what the sub-layer remembers is the normed input
    return ln1_prev


def xr(ln1: Tensor, shift: Tensor, x_r: Tensor) -> Tensor:
    return lerp(ln1, shift, x_r)


def xw(ln1: Tensor, shift: Tensor, x_w: Tensor) -> Tensor:
    return lerp(ln1, shift, x_w)


def xk(ln1: Tensor, shift: Tensor, x_k: Tensor) -> Tensor:
    return lerp(ln1, shift, x_k)


def xv(ln1: Tensor, shift: Tensor, x_v: Tensor) -> Tensor:
    return lerp(ln1, shift, x_v)


def xa(ln1: Tensor, shift: Tensor, x_a: Tensor) -> Tensor:
    return lerp(ln1, shift, x_a)


def xg(ln1: Tensor, shift: Tensor, x_g: Tensor) -> Tensor:
    return lerp(ln1, shift, x_g)


def r(xr: Tensor, receptance_weight: Tensor) -> Tensor:  # no activation
    return linear(xr, receptance_weight)


def w_lora(xw: Tensor, w1: Tensor) -> Tensor:  # (..., Rw)
    return (xw @ w1).tanh()


def w_raw(w_lora: Tensor, w2: Tensor) -> Tensor:
    return w_lora @ w2


def w(w_raw: Tensor, w0: Tensor) -> Tensor:  # decay, in (0.5452, 1)
    return (-DECAY_SCALE * (w0 + w_raw).sigmoid()).exp()


def k_raw(xk: Tensor, key_weight: Tensor) -> Tensor:
    return linear(xk, key_weight)


def kk(k_raw: Tensor, k_k: Tensor, heads: int) -> Tensor:  # removal key: unit norm per head, from the raw key
    kappa = split(k_raw * k_k, heads)
    norm: Tensor = linalg.vector_norm(kappa, dim=-1, keepdim=True)
    return (kappa / norm.clamp_min(KEY_NORM_FLOOR)).flatten(-2)


def a_lora(xa: Tensor, a1: Tensor) -> Tensor:  # (..., Ra); nothing in the middle
    return xa @ a1


def a(a_lora: Tensor, a0: Tensor, a2: Tensor) -> Tensor:  # in-context learning rate, in (0, 1)
    return (a0 + a_lora @ a2).sigmoid()


def k(k_raw: Tensor, a: Tensor, k_a: Tensor) -> Tensor:
    return k_raw * (1 + (a - 1) * k_a)


def v_raw(xv: Tensor, value_weight: Tensor) -> Tensor:
    return linear(xv, value_weight)


def v_lora(xv: Tensor, v1: Tensor) -> Tensor:  # (..., Rv); layers > 0 only
    return xv @ v1


def v(v_raw: Tensor, v_first: Tensor, v_lora: Tensor, v0: Tensor, v2: Tensor) -> Tensor:  # value residual
    return v_raw + (v_first - v_raw) * (v0 + v_lora @ v2).sigmoid()


def v_layer0(v_raw: Tensor) -> Tensor:  # this is the v_first of every later layer
    return v_raw


def g_lora(xg: Tensor, g1: Tensor) -> Tensor:  # (..., Rg)
    return (xg @ g1).sigmoid()


def g(g_lora: Tensor, g2: Tensor) -> Tensor:  # no bias, nothing outside
    return g_lora @ g2


def state(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """S' = S (diag(w) - kk (kk a)^T) + v k^T, rows = value channels; the only equation that walks over time."""
    w, kk, a, k, v = (split(z, heads) for z in (w, kk, a, k, v))
    removed = state_prev @ kk.unsqueeze(-1)  # (..., H, N value, 1): what the state answers to the removal key
    return state_prev * w.unsqueeze(-2) - removed * (kk * a).unsqueeze(-2) + v.unsqueeze(-1) * k.unsqueeze(-2)


def state_start(heads: int, ln_x_weight: Tensor) -> Tensor:  # (H, N, N), before the first token
    N = len(ln_x_weight) // heads
    return ln_x_weight.new_zeros(heads, N, N)


def y(state: Tensor, r: Tensor, heads: int) -> Tensor:  # reads the state *after* it was written
    return (state @ split(r, heads).unsqueeze(-1)).squeeze(-1).flatten(-2)


def ln_x(y: Tensor, ln_x_weight: Tensor, ln_x_bias: Tensor, heads: int) -> Tensor:  # group norm: one group a head
    y = split(y, heads)
    return layer_norm(y, y.shape[-1:], eps=GROUP_NORM_EPS).flatten(-2) * ln_x_weight + ln_x_bias


def bonus(r: Tensor, k: Tensor, v: Tensor, r_k: Tensor, heads: int) -> Tensor:  # modified k, residual-mixed v
    r, k, v = (split(z, heads) for z in (r, k, v))
    return ((r * k * r_k).sum(-1, keepdim=True) * v).flatten(-2)


def att_out(ln_x: Tensor, bonus: Tensor, g: Tensor, output_weight: Tensor) -> Tensor:
    return linear((ln_x + bonus) * g, output_weight)


def res(x: Tensor, out: Tensor) -> Tensor:  # the stream behind this sub-layer
    return x + out


# ---- channel mix --------------------------------------------------------------------------------


def ln2(x: Tensor, ln2_weight: Tensor, ln2_bias: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], ln2_weight, ln2_bias, LN_EPS)


def ffn_shift(ln2_prev: Tensor) -> Tensor:
    return ln2_prev


def ffn_xk(ln2: Tensor, shift: Tensor, x_k: Tensor) -> Tensor:
    return lerp(ln2, shift, x_k)


def ffn_k(xk: Tensor, key_weight: Tensor) -> Tensor:  # (..., F)
    return linear(xk, key_weight)


def ffn_act(k: Tensor) -> Tensor:  # squared ReLU
    return k.relu() ** 2


def ffn_out(act: Tensor, value_weight: Tensor) -> Tensor:
    return linear(act, value_weight)


# ---- head ---------------------------------------------------------------------------------------


def ln_out(x: Tensor, ln_out_weight: Tensor, ln_out_bias: Tensor) -> Tensor:
    return layer_norm(x, x.shape[-1:], ln_out_weight, ln_out_bias, LN_EPS)


def head(ln_out: Tensor, head_weight: Tensor) -> Tensor:  # (..., V) logits
    return linear(ln_out, head_weight)


# Tables in the order of evaluation: tensor name -> equation. A tensor's full name is "blocks.3.att." or
# "blocks.3.ffn." and the name here; those of EMBED and HEAD stand alone.

EMBED: Table = {"emb": emb, "ln0": ln0}
TIME_MIX: Table = {
    "ln1": ln1, "shift": att_shift, "xr": xr, "xw": xw, "xk": xk, "xv": xv, "xa": xa, "xg": xg,
    "r": r, "w_lora": w_lora, "w_raw": w_raw, "w": w, "k_raw": k_raw, "kk": kk, "a_lora": a_lora, "a": a, "k": k,
    "v_raw": v_raw, "v_lora": v_lora, "v": v, "g_lora": g_lora, "g": g,
    "state": state, "y": y, "ln_x": ln_x, "bonus": bonus, "out": att_out, "res": res,
}  # fmt: skip
TIME_MIX_LAYER0: Table = {name: v_layer0 if name == "v" else eq for name, eq in TIME_MIX.items() if name != "v_lora"}
CHANNEL_MIX: Table = {
    "ln2": ln2, "shift": ffn_shift, "xk": ffn_xk, "k": ffn_k, "act": ffn_act, "out": ffn_out, "res": res,
}  # fmt: skip
HEAD: Table = {"ln_out": ln_out, "head": head}

KEPT_F32 = frozenset({"w", "state"})  # what a low-precision port must not round: decay and WKV state

VERSION = Version(
    embed=EMBED,
    block={"att": TIME_MIX, "ffn": CHANNEL_MIX},
    head=HEAD,
    kept_f32=KEPT_F32,
    start={"att.state": state_start},
    carried={"att_shift": "att.ln1", "wkv": "att.state", "ffn_shift": "ffn.ln2"},
    first_block={"att": TIME_MIX_LAYER0},
    outside={"v_first": "blocks.0.att.v"},
    unused=frozenset({"blocks.0.att.v0", "blocks.0.att.v1", "blocks.0.att.v2"}),  # training code saves them
)
