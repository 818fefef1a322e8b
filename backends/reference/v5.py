"""RWKV-5 "Eagle" (5.0, 5.1, 5.2): one function per named tensor, see v7.py for how to read it.

5.0 and 5.1 have one decay and one bonus a head, 5.2 one a channel; the former are spread over the channels when they
are read, so that all have the same equations. 5.0 has no gate. Source: "Eagle and Finch" (arXiv 2404.05892) and the
official inference code.
"""

from dataclasses import replace

from torch import Tensor
from torch.nn.functional import linear, silu

from backends.reference.v7 import (  # what all versions share
    EMBED,
    HEAD,
    att_shift,
    ffn_act,
    ffn_k,
    ffn_shift,
    lerp,
    ln1,
    ln2,
    ln_x,
    res,
    split,
    state_start,
)
from backends.reference.walk import Scope, Table, Version

# ---- time mix; unlike in v6 and v7, a mix is the share of the current token ----------------------


def xr(shift: Tensor, ln1: Tensor, time_mix_r: Tensor) -> Tensor:
    return lerp(shift, ln1, time_mix_r)


def xk(shift: Tensor, ln1: Tensor, time_mix_k: Tensor) -> Tensor:
    return lerp(shift, ln1, time_mix_k)


def xv(shift: Tensor, ln1: Tensor, time_mix_v: Tensor) -> Tensor:
    return lerp(shift, ln1, time_mix_v)


def xg(shift: Tensor, ln1: Tensor, time_mix_g: Tensor) -> Tensor:
    return lerp(shift, ln1, time_mix_g)


def r(xr: Tensor, receptance_weight: Tensor) -> Tensor:  # no activation, unlike in v4
    return linear(xr, receptance_weight)


def k(xk: Tensor, key_weight: Tensor) -> Tensor:
    return linear(xk, key_weight)


def v(xv: Tensor, value_weight: Tensor) -> Tensor:
    return linear(xv, value_weight)


def g(xg: Tensor, gate_weight: Tensor) -> Tensor:
    return silu(linear(xg, gate_weight))


def w(k: Tensor, time_decay: Tensor) -> Tensor:  # decay, in (0, 1): the same for every token
    return (-time_decay.exp()).exp().flatten().expand_as(k)


def bonus(r: Tensor, k: Tensor, v: Tensor, u: Tensor, heads: int) -> Tensor:  # what the current token adds by itself
    r, k, v = (split(z, heads) for z in (r, k, v))
    return ((r * u * k).sum(-1, keepdim=True) * v).flatten(-2)


def state(state_prev: Tensor, w: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """S' = S diag(w) + v k^T, rows = value channels."""
    w, k, v = (split(z, heads) for z in (w, k, v))
    return state_prev * w.unsqueeze(-2) + v.unsqueeze(-1) * k.unsqueeze(-2)


def y(state_prev: Tensor, r: Tensor, bonus: Tensor, heads: int) -> Tensor:  # reads the state *before* it was written
    return (state_prev @ split(r, heads).unsqueeze(-1)).squeeze(-1).flatten(-2) + bonus


def att_out(ln_x: Tensor, g: Tensor, output_weight: Tensor) -> Tensor:
    return linear(ln_x * g, output_weight)


def att_out_ungated(ln_x: Tensor, output_weight: Tensor) -> Tensor:  # 5.0
    return linear(ln_x, output_weight)


# ---- channel mix, as in v4 ----------------------------------------------------------------------


def ffn_xk(shift: Tensor, ln2: Tensor, time_mix_k: Tensor) -> Tensor:
    return lerp(shift, ln2, time_mix_k)


def ffn_xr(shift: Tensor, ln2: Tensor, time_mix_r: Tensor) -> Tensor:
    return lerp(shift, ln2, time_mix_r)


def ffn_r(xr: Tensor, receptance_weight: Tensor) -> Tensor:
    return linear(xr, receptance_weight).sigmoid()


def ffn_out(r: Tensor, act: Tensor, value_weight: Tensor) -> Tensor:
    return r * linear(act, value_weight)


TIME_MIX: Table = {
    "ln1": ln1, "shift": att_shift, "xr": xr, "xk": xk, "xv": xv, "xg": xg, "r": r, "k": k, "v": v, "g": g, "w": w,
    "bonus": bonus, "state": state, "y": y, "ln_x": ln_x, "out": att_out, "res": res,
}  # fmt: skip
TIME_MIX_UNGATED: Table = {
    name: att_out_ungated if name == "out" else equation
    for name, equation in TIME_MIX.items()
    if name not in ("xg", "g")
}
CHANNEL_MIX: Table = {
    "ln2": ln2, "shift": ffn_shift, "xk": ffn_xk, "xr": ffn_xr, "k": ffn_k, "act": ffn_act, "r": ffn_r, "out": ffn_out,
    "res": res,
}  # fmt: skip

KEPT_F32 = frozenset({"w", "state"})  # what a low-precision port must not round: decay and WKV state


def prepared(weights: Scope) -> Scope:
    """The bonus under one name: files have it as `time_faaaa`, or its logarithm as `time_first`."""
    named = dict(weights)
    if "time_first" in named:
        named["u"] = _per_channel(named.pop("time_first").exp(), weights)
    elif "time_faaaa" in named:
        named["u"] = _per_channel(named.pop("time_faaaa"), weights)
    if "time_decay" in named:
        named["time_decay"] = _per_channel(named["time_decay"], weights)
    return named


def _per_channel(z: Tensor, weights: Scope) -> Tensor:
    """(H,) or (H, N) -> (H, N)."""
    N = len(weights["ln_x_weight"]) // len(z)
    return z.reshape(len(z), -1).expand(len(z), N)


VERSION = Version(
    embed=EMBED,
    block={"att": TIME_MIX, "ffn": CHANNEL_MIX},
    head=HEAD,
    kept_f32=KEPT_F32,
    start={"att.state": state_start},
    carried={"att_shift": "att.ln1", "wkv": "att.state", "ffn_shift": "ffn.ln2"},
    prepared=prepared,
)
VERSION_50 = replace(VERSION, block={"att": TIME_MIX_UNGATED, "ffn": CHANNEL_MIX})
