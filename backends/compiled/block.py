"""One layer of RWKV-7 or 7a over a whole prompt (B, T, C); T = 1 is the decode step.

In bfloat16 and float16 the weights and the activations between matrices are in that format. The decay,
the learning rate, the keys' norm, the group norm and the state are computed in float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from backends.compiled import recurrence
from backends.compiled.linear import linear
from backends.compiled.parts import Across, Reader, group_norm, last_row, norm, shifted
from backends.compiled.state import LayerState
from backends.compiled.wkv import Inputs

KEY_FLOOR = 1e-12
"""Least norm that a removal key is divided by: a zero key stays zero."""
DECAY = 0.6065306597126334
"""e^(-1/2), the bound of -log w."""


class Deep(NamedTuple):
    """DeepEmbed, which 7a adds to the channel mix: a matrix of 32 x 32 for every token of the vocabulary."""

    emb: Tensor  # (V, 1024)
    emb_x: Tensor  # (1024, C)
    s1: Tensor  # (32, C)
    s2: Tensor  # (F, 32)
    s0: Tensor  # (F,)


class Layer(NamedTuple):
    """One layer's weights: matrices (out, in), the low-rank pairs included; vectors (C,).

    What takes part in float32 arithmetic (w0 ... ln_x_bias) is held in float32. Layer 0 has no v0, v1, v2.
    """

    ln1_weight: Tensor
    ln1_bias: Tensor
    mixes: Tensor  # (6, C), in the order r w k v a g
    receptance: Tensor
    key: Tensor
    value: Tensor
    output: Tensor
    w1: Tensor
    w2: Tensor
    a1: Tensor
    a2: Tensor
    g1: Tensor
    g2: Tensor
    v1: Tensor | None
    v2: Tensor | None
    w0: Tensor
    a0: Tensor
    v0: Tensor | None
    k_k: Tensor
    k_a: Tensor
    r_k: Tensor  # (H, N)
    ln_x_weight: Tensor
    ln_x_bias: Tensor
    ln2_weight: Tensor
    ln2_bias: Tensor
    ffn_mix: Tensor
    ffn_key: Tensor
    ffn_value: Tensor
    deep: Deep | None


def start(zero: LayerState, p: Layer) -> LayerState:
    """Before the first token there is nothing."""
    del p
    return zero


def block(
    x: Tensor, across: Across, state: LayerState, p: Layer, beside: Tensor | None = None
) -> tuple[Tensor, Across, LayerState]:
    """One layer.

    Args:
        x: (B, T, C), the residual stream.
        across: with layer 0's values, or without in layer 0.
        state: what the layer remembers of the tokens before; not written to.
        p: the layer's weights.
        beside: (B, T, C), what 7b adds to the stream with the time mix.

    Returns:
        The stream, `across` with layer 0's values, and the layer's state after the last token.
    """
    h = norm(x, p.ln1_weight, p.ln1_bias)
    mixed, v_first, S = time_mix(h, state.att, state.wkv, across.v_first, p)
    x = x + mixed if beside is None else x + mixed + beside
    h2 = norm(x, p.ln2_weight, p.ln2_bias)
    x = x + channel_mix(h2, state.ffn, across, p)
    return x, across._replace(v_first=v_first), LayerState(last_row(h), S, last_row(h2))


def time_mix(h: Tensor, last: Tensor, S: Tensor, v_first: Tensor | None, p: Layer) -> tuple[Tensor, Tensor, Tensor]:
    """The RWKV-7 attention: normed inputs (B, T, C) -> output (B, T, C), `v_first`, new S."""
    B, T, C = h.shape
    H, N = p.r_k.shape
    d = shifted(h, last) - h
    xr, xw, xk, xv, xa, xg = (torch.addcmul(h, d, mix) for mix in p.mixes)
    r, k, v = (linear(z, W).float() for z, W in ((xr, p.receptance), (xk, p.key), (xv, p.value)))
    log_w = -DECAY * torch.sigmoid(p.w0 + linear(torch.tanh(linear(xw, p.w1)), p.w2))
    a = torch.sigmoid(p.a0 + linear(linear(xa, p.a1), p.a2))
    g = linear(torch.sigmoid(linear(xg, p.g1)), p.g2)
    if p.v0 is None or p.v1 is None or p.v2 is None or v_first is None:
        v_first = v
    else:
        v = torch.lerp(v, v_first, torch.sigmoid(p.v0 + linear(linear(xv, p.v1), p.v2)))
    kk = functional.normalize((k * p.k_k).view(B, T, H, N), dim=-1, eps=KEY_FLOOR)
    k = k * (1 + (a - 1) * p.k_a)

    inputs = Inputs(r, log_w, k, v, kk, a).map(lambda z: z.view(B, T, H, N))
    y, S = recurrence.seven(inputs, S, exact=h.dtype == torch.float32)
    y = group_norm(y, p.ln_x_weight, p.ln_x_bias)
    bonus = (inputs.r * inputs.k * p.r_k).sum(-1, keepdim=True) * inputs.v
    y = (y + bonus.view(B, T, C)) * g
    return linear(y.to(h.dtype), p.output), v_first, S


def channel_mix(h: Tensor, last: Tensor, across: Across, p: Layer) -> Tensor:
    """The feed-forward half: normed inputs (B, T, C) -> (B, T, C)."""
    k = torch.relu(linear(torch.addcmul(h, shifted(h, last) - h, p.ffn_mix), p.ffn_key)).square()
    if p.deep is not None:
        k = k * deep_embed(h, across, p.deep)
    return linear(k, p.ffn_value)


def deep_embed(h: Tensor, across: Across, p: Deep) -> Tensor:
    """What 7a multiplies the inner activations with, (B, T, F); it sees the current token alone."""
    M = (functional.embedding(across.ids, p.emb) + linear(across.emb, p.emb_x)).view(*across.ids.shape, 32, 32)
    return linear((linear(h, p.s1).unsqueeze(-2) @ M).squeeze(-2), p.s2) + p.s0


def layer_7(get: Reader, i: int) -> Layer:
    """Read one layer of RWKV-7 or 7a."""
    block, att, ffn = (get.under(f"blocks.{i}.{part}") for part in ("", "att.", "ffn."))
    return Layer(
        ln1_weight=block("ln1.weight"),
        ln1_bias=block("ln1.bias"),
        mixes=torch.stack([att(f"x_{letter}") for letter in "rwkvag"]),
        receptance=att("receptance.weight"),
        key=att("key.weight"),
        value=att("value.weight"),
        output=att("output.weight"),
        **{name: att.turned(name) for name in ("w1", "w2", "a1", "a2", "g1", "g2")},
        v1=att.turned("v1") if i else None,
        v2=att.turned("v2") if i else None,
        w0=att("w0").float(),
        a0=att("a0").float(),
        v0=att("v0").float() if i else None,
        k_k=att("k_k").float(),
        k_a=att("k_a").float(),
        r_k=att("r_k").float(),
        ln_x_weight=att("ln_x.weight").float(),
        ln_x_bias=att("ln_x.bias").float(),
        ln2_weight=block("ln2.weight"),
        ln2_bias=block("ln2.bias"),
        ffn_mix=ffn("x_k"),
        ffn_key=ffn("key.weight"),
        ffn_value=ffn("value.weight"),
        deep=_deep(ffn) if "s0" in ffn else None,
    )


def _deep(ffn: Reader) -> Deep:
    return Deep(ffn("s_emb.weight"), ffn("s_emb_x.weight"), ffn.turned("s1"), ffn.turned("s2"), ffn("s0"))
