"""RWKV-6 "Finch": one function per named tensor, see v7.py for how to read it.

What v5 mixed with fixed shares is mixed with shares that depend on the token, and so does the decay. Source: "Eagle and
Finch: RWKV with Matrix-Valued States and Dynamic Recurrence" (arXiv 2404.05892) and the official inference code.
"""

from torch import Tensor

from backends.reference.v5 import att_out, bonus, ffn_out, ffn_r, g, k, r, state, v, y
from backends.reference.v7 import EMBED, HEAD, att_shift, ffn_act, ffn_k, ffn_shift, lerp, ln1, ln2, ln_x, res
from backends.reference.walk import Scope, Table, Version

# ---- time mix; `maa` is the share of the previous token: 1 - `time_mix` of v5 --------------------


def xx(ln1: Tensor, shift: Tensor, time_maa_x: Tensor) -> Tensor:  # what the five shares are computed from
    return lerp(ln1, shift, time_maa_x)


def mix_lora(xx: Tensor, time_maa_w1: Tensor) -> Tensor:  # (..., 5 Rm)
    return (xx @ time_maa_w1).tanh()


def share(mix_lora: Tensor, row: int, maa: Tensor, w2: Tensor) -> Tensor:
    """One of the five rows of `mix_lora`, w k v r g, through its own matrix (Rm, C)."""
    return maa + mix_lora.chunk(5, dim=-1)[row] @ w2


def mix_w(mix_lora: Tensor, time_maa_w: Tensor, time_maa_w2_w: Tensor) -> Tensor:
    return share(mix_lora, 0, time_maa_w, time_maa_w2_w)


def mix_k(mix_lora: Tensor, time_maa_k: Tensor, time_maa_w2_k: Tensor) -> Tensor:
    return share(mix_lora, 1, time_maa_k, time_maa_w2_k)


def mix_v(mix_lora: Tensor, time_maa_v: Tensor, time_maa_w2_v: Tensor) -> Tensor:
    return share(mix_lora, 2, time_maa_v, time_maa_w2_v)


def mix_r(mix_lora: Tensor, time_maa_r: Tensor, time_maa_w2_r: Tensor) -> Tensor:
    return share(mix_lora, 3, time_maa_r, time_maa_w2_r)


def mix_g(mix_lora: Tensor, time_maa_g: Tensor, time_maa_w2_g: Tensor) -> Tensor:
    return share(mix_lora, 4, time_maa_g, time_maa_w2_g)


def xw(ln1: Tensor, shift: Tensor, mix_w: Tensor) -> Tensor:
    return lerp(ln1, shift, mix_w)


def xk(ln1: Tensor, shift: Tensor, mix_k: Tensor) -> Tensor:
    return lerp(ln1, shift, mix_k)


def xv(ln1: Tensor, shift: Tensor, mix_v: Tensor) -> Tensor:
    return lerp(ln1, shift, mix_v)


def xr(ln1: Tensor, shift: Tensor, mix_r: Tensor) -> Tensor:
    return lerp(ln1, shift, mix_r)


def xg(ln1: Tensor, shift: Tensor, mix_g: Tensor) -> Tensor:
    return lerp(ln1, shift, mix_g)


def w_lora(xw: Tensor, time_decay_w1: Tensor) -> Tensor:  # (..., Rd)
    return (xw @ time_decay_w1).tanh()


def w_raw(w_lora: Tensor, time_decay_w2: Tensor) -> Tensor:
    return w_lora @ time_decay_w2


def w(w_raw: Tensor, time_decay: Tensor) -> Tensor:  # decay, anywhere in (0, 1)
    return (-(time_decay + w_raw).exp()).exp()


def state_start(time_state: Tensor) -> Tensor:  # (H, N value, N key): zero but in state-tuned files
    return time_state


# ---- channel mix --------------------------------------------------------------------------------


def ffn_xk(ln2: Tensor, shift: Tensor, time_maa_k: Tensor) -> Tensor:
    return lerp(ln2, shift, time_maa_k)


def ffn_xr(ln2: Tensor, shift: Tensor, time_maa_r: Tensor) -> Tensor:
    return lerp(ln2, shift, time_maa_r)


TIME_MIX: Table = {
    "ln1": ln1, "shift": att_shift, "xx": xx, "mix_lora": mix_lora,
    "mix_w": mix_w, "mix_k": mix_k, "mix_v": mix_v, "mix_r": mix_r, "mix_g": mix_g,
    "xw": xw, "xk": xk, "xv": xv, "xr": xr, "xg": xg, "r": r, "k": k, "v": v, "g": g,
    "w_lora": w_lora, "w_raw": w_raw, "w": w, "bonus": bonus, "state": state, "y": y,
    "ln_x": ln_x, "out": att_out, "res": res,
}  # fmt: skip
CHANNEL_MIX: Table = {
    "ln2": ln2, "shift": ffn_shift, "xk": ffn_xk, "xr": ffn_xr, "k": ffn_k, "act": ffn_act, "r": ffn_r, "out": ffn_out,
    "res": res,
}  # fmt: skip

KEPT_F32 = frozenset({"w", "state"})  # what a low-precision port must not round: decay and WKV state


def prepared(weights: Scope) -> Scope:
    """The bonus as `u`, the five second matrices of the mixes apart, and a state to begin with."""
    if "time_faaaa" not in weights:
        return weights
    named = dict(weights)
    u = named["u"] = named.pop("time_faaaa")
    named |= dict(zip((f"time_maa_w2_{mix}" for mix in "wkvrg"), named.pop("time_maa_w2"), strict=True))
    named.setdefault("time_state", u.new_zeros(*u.shape, u.shape[-1]))
    return named


VERSION = Version(
    embed=EMBED,
    block={"att": TIME_MIX, "ffn": CHANNEL_MIX},
    head=HEAD,
    kept_f32=KEPT_F32,
    start={"att.state": state_start},
    carried={"att_shift": "att.ln1", "wkv": "att.state", "ffn_shift": "ffn.ln2"},
    prepared=prepared,
)
