"""RWKV-7a: v7 with DeepEmbed, a 32 x 32 matrix for every token in the channel mix; see v7.py for how to read it.

Source: the official inference code (`RWKV_DE_VERSION`).
"""

from dataclasses import replace

from torch import Tensor
from torch.nn.functional import linear

from backends.reference import v7
from backends.reference.walk import Table


def s_emb(tokens: Tensor, ln0: Tensor, s_emb_weight: Tensor, s_emb_x_weight: Tensor) -> Tensor:  # (..., 1024)
    return s_emb_weight[tokens] + linear(ln0, s_emb_x_weight)  # ln0: the stream before the first block


def s_lora(ln2: Tensor, s1: Tensor) -> Tensor:  # (..., 32); of the current token alone, not of `xk`
    return ln2 @ s1


def s_mid(s_lora: Tensor, s_emb: Tensor) -> Tensor:  # (..., 32): the row vector times the token's matrix
    matrix = s_emb.view(*s_emb.shape[:-1], 32, 32)
    return (s_lora.unsqueeze(-2) @ matrix).squeeze(-2)


def s(s_mid: Tensor, s2: Tensor, s0: Tensor) -> Tensor:  # (..., F)
    return s_mid @ s2 + s0


def ffn_out(act: Tensor, s: Tensor, value_weight: Tensor) -> Tensor:
    return linear(act * s, value_weight)


CHANNEL_MIX: Table = {
    **{name: equation for name, equation in v7.CHANNEL_MIX.items() if name not in ("out", "res")},
    "s_emb": s_emb, "s_lora": s_lora, "s_mid": s_mid, "s": s, "out": ffn_out, "res": v7.res,
}  # fmt: skip

VERSION = replace(
    v7.VERSION,
    block={"att": v7.TIME_MIX, "ffn": CHANNEL_MIX},
    outside={**v7.VERSION.outside, "ln0": "ln0"},
)
