"""One layer of RWKV-7 over a whole prompt (B, T, C); T = 1 is the decode step.

In bfloat16 and float16 the weights and the activations between matrices are in that format. The decay,
the learning rate, the keys' norm, the group norm and the state are computed in float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from backends.compiled.linear import linear
from backends.compiled.state import LayerState
from backends.compiled.wkv import Inputs, wkv

LN_EPS = 1e-5
GN_EPS = 64e-5
"""1e-5 times 8²: training divided the input by 8 and used 1e-5. It does not scale with the head size."""
KEY_FLOOR = 1e-12
"""Least norm that a removal key is divided by: a zero key stays zero."""
DECAY = 0.6065306597126334
"""e^(-1/2), the bound of -log w."""


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


def block(x: Tensor, v_first: Tensor | None, state: LayerState, p: Layer) -> tuple[Tensor, Tensor, LayerState]:
    """One layer.

    Args:
        x: (B, T, C), the residual stream.
        v_first: (B, T, H, N), layer 0's values; None in layer 0.
        state: what the layer remembers of the tokens before; not written to.
        p: the layer's weights.

    Returns:
        The stream, `v_first`, and the layer's state after the last token.
    """
    h = norm(x, p.ln1_weight, p.ln1_bias)
    mixed, v_first, S = time_mix(h, state.att, state.wkv, v_first, p)
    x = x + mixed
    h2 = norm(x, p.ln2_weight, p.ln2_bias)
    x = x + channel_mix(h2, state.ffn, p)
    return x, v_first, LayerState(_last(h), S, _last(h2))


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
    y, S = wkv(inputs, S)
    y = functional.layer_norm(y, (N,), eps=GN_EPS).view(B, T, C) * p.ln_x_weight + p.ln_x_bias
    bonus = (inputs.r * inputs.k * p.r_k).sum(-1, keepdim=True) * inputs.v
    y = (y + bonus.view(B, T, C)) * g
    return linear(y.to(h.dtype), p.output), v_first, S


def channel_mix(h: Tensor, last: Tensor, p: Layer) -> Tensor:
    """The feed-forward half: normed inputs (B, T, C) -> (B, T, C)."""
    k = linear(torch.addcmul(h, shifted(h, last) - h, p.ffn_mix), p.ffn_key)
    return linear(torch.relu(k).square(), p.ffn_value)


def shifted(h: Tensor, last: Tensor) -> Tensor:
    """Every token's predecessor: (B, T, C) and the input before the first, (B, C) -> (B, T, C)."""
    return torch.cat([last[:, None], h[:, :-1]], dim=1)


def _last(h: Tensor) -> Tensor:
    """The last token's row, copied: a view would keep the whole prompt alive.

    The copy asks for plain strides, because for B = 1 it would keep those of the prompt, and the compiled step would be
    compiled again after every new length.
    """
    return h[:, -1].clone(memory_format=torch.contiguous_format)


def norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Layer norm over C; the statistics accumulate in float32 whatever the format."""
    return functional.layer_norm(x, (x.shape[-1],), weight, bias, LN_EPS)
