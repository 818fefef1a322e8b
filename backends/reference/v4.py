"""RWKV-4: one function per named tensor, see v7.py for how to read it.

Its memory is a weighted mean of values per channel, numerator and denominator over a common exponent. Source: "RWKV:
Reinventing RNNs for the Transformer Era" (arXiv 2305.13048) and the official inference code.
"""

import torch
from torch import Tensor
from torch.nn.functional import linear

from backends.reference.v5 import CHANNEL_MIX, k, v, xk, xr, xv
from backends.reference.v7 import EMBED, HEAD, att_shift, ln1, res
from backends.reference.walk import Table, Version

NOTHING = -1e30  # exponent of an empty memory


def r(xr: Tensor, receptance_weight: Tensor) -> Tensor:
    return linear(xr, receptance_weight).sigmoid()


def log_w(k: Tensor, time_decay: Tensor) -> Tensor:  # what the exponent loses a token: the same for every token
    return (-time_decay.exp()).expand_as(k)


def uk(k: Tensor, time_first: Tensor) -> Tensor:  # exponent of the current token, before it is memory
    return time_first + k


def state(state_prev: Tensor, log_w: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """(..., 3, C): aa, bb, pp, where aa e^pp = sum of e^k v and bb e^pp = sum of e^k, both fading."""
    aa, bb, pp = state_prev.unbind(-2)
    top = torch.maximum(pp + log_w, k)
    old, new = (pp + log_w - top).exp(), (k - top).exp()
    return torch.stack([old * aa + new * v, old * bb + new, top], dim=-2)


def state_start(time_decay: Tensor) -> Tensor:  # (3, C)
    nothing = torch.zeros_like(time_decay)
    return torch.stack([nothing, nothing, nothing + NOTHING])


def y(state_prev: Tensor, uk: Tensor, v: Tensor) -> Tensor:  # the mean, read *before* the state is written
    aa, bb, pp = state_prev.unbind(-2)
    top = torch.maximum(pp, uk)
    old, new = (pp - top).exp(), (uk - top).exp()
    return (old * aa + new * v) / (old * bb + new)


def att_out(r: Tensor, y: Tensor, output_weight: Tensor) -> Tensor:
    return linear(r * y, output_weight)


TIME_MIX: Table = {
    "ln1": ln1, "shift": att_shift, "xk": xk, "xv": xv, "xr": xr, "r": r, "k": k, "v": v, "log_w": log_w, "uk": uk,
    "state": state, "y": y, "out": att_out, "res": res,
}  # fmt: skip

VERSION = Version(
    embed=EMBED,
    block={"att": TIME_MIX, "ffn": CHANNEL_MIX},
    head=HEAD,
    kept_f32=frozenset({"k", "v", "log_w", "uk", "state"}),
    start={"att.state": state_start},
    carried={"att_shift": "att.ln1", "memory": "att.state", "ffn_shift": "ffn.ln2"},
)
