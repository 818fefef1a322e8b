"""One layer of RWKV-5 "Eagle" or RWKV-6 "Finch" over a whole prompt (B, T, C); T = 1 is the decode step.

Both share everything but how the token shift mixes and where the decay comes from. In bfloat16 and float16 the weights
and the activations between matrices are in that format; decay, bonus, group norm and state are float32.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from backends.compiled import recurrence
from backends.compiled.linear import linear
from backends.compiled.parts import Across, Reader, group_norm, last_row, norm, shifted
from backends.compiled.state import LayerState
from backends.compiled.wkv_diagonal import Inputs


class Static(NamedTuple):
    """The token shift of RWKV-5: one share of the *current* token for every vector, and a decay that never changes."""

    shares: Tensor  # (4, C), in the order r k v g; 5.0 has no g
    w: Tensor  # (H, N) float32, in (0, 1)


class Dynamic(NamedTuple):
    """The token shift of RWKV-6: shares of the *previous* token that depend on the token, and so does the decay."""

    shared: Tensor  # (C,)
    shares: Tensor  # (5, C), in the order w k v r g
    w1: Tensor  # (5 m, C)
    w2: Tensor  # (5, C, m)
    decay: Tensor  # (C,) float32
    decay_w1: Tensor  # (d, C)
    decay_w2: Tensor  # (C, d)


class Layer(NamedTuple):
    """One layer's weights: matrices (out, in); vectors (C,)."""

    ln1_weight: Tensor
    ln1_bias: Tensor
    mix: Static | Dynamic
    receptance: Tensor
    key: Tensor
    value: Tensor
    gate: Tensor | None
    output: Tensor
    u: Tensor  # (H, N) float32, the bonus
    ln_x_weight: Tensor
    ln_x_bias: Tensor
    ln2_weight: Tensor
    ln2_bias: Tensor
    ffn_mix_k: Tensor
    ffn_mix_r: Tensor
    ffn_key: Tensor
    ffn_receptance: Tensor
    ffn_value: Tensor
    tuned: Tensor | None  # (H, N value, N key) float32


def start(zero: LayerState, p: Layer) -> LayerState:
    """A state-tuned file says what S is before the first token."""
    return zero if p.tuned is None else zero._replace(wkv=p.tuned.expand_as(zero.wkv).contiguous())


def block(x: Tensor, across: Across, state: LayerState, p: Layer) -> tuple[Tensor, Across, LayerState]:
    """One layer.

    Args:
        x: (B, T, C), the residual stream.
        across: what other layers left; passed on as it is.
        state: what the layer remembers of the tokens before; not written to.
        p: the layer's weights.

    Returns:
        The stream, `across`, and the layer's state after the last token.
    """
    h = norm(x, p.ln1_weight, p.ln1_bias)
    mixed, S = time_mix(h, state.att, state.wkv, p)
    x = x + mixed
    h2 = norm(x, p.ln2_weight, p.ln2_bias)
    x = x + channel_mix(h2, state.ffn, p)
    return x, across, LayerState(last_row(h), S, last_row(h2))


def time_mix(h: Tensor, last: Tensor, S: Tensor, p: Layer) -> tuple[Tensor, Tensor]:
    """The attention: normed inputs (B, T, C) -> output (B, T, C), new S."""
    heads = (*h.shape[:2], *p.u.shape)
    previous = shifted(h, last)
    if isinstance(p.mix, Static):
        (xr, xk, xv, *xg), w = _static(h, previous, p.mix, heads)
    else:
        (xr, xk, xv, *xg), w = _dynamic(h, previous, p.mix, heads)
    r, k, v = (linear(z, W).float().view(heads) for z, W in ((xr, p.receptance), (xk, p.key), (xv, p.value)))
    y, S = recurrence.diagonal(Inputs(r, w, k, v), p.u, S)
    y = group_norm(y, p.ln_x_weight, p.ln_x_bias)
    if p.gate is not None:
        y = y * functional.silu(linear(xg[0], p.gate))
    return linear(y.to(h.dtype), p.output), S


def _static(h: Tensor, previous: Tensor, mix: Static, heads: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    """Inputs of r, k, v, g and the decay (B, T, H, N) of RWKV-5."""
    return [torch.addcmul(previous, h - previous, share) for share in mix.shares], mix.w.expand(heads)


def _dynamic(h: Tensor, previous: Tensor, mix: Dynamic, heads: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    """Inputs of r, k, v, g and the decay (B, T, H, N) of RWKV-6."""
    d = previous - h
    low = torch.tanh(linear(torch.addcmul(h, d, mix.shared), mix.w1)).chunk(5, dim=-1)
    xw, xk, xv, xr, xg = (
        torch.addcmul(h, d, share + linear(z, W)) for z, W, share in zip(low, mix.w2, mix.shares, strict=True)
    )
    exponent = mix.decay + linear(torch.tanh(linear(xw, mix.decay_w1)), mix.decay_w2)
    return [xr, xk, xv, xg], torch.exp(-torch.exp(exponent)).view(heads)


def channel_mix(h: Tensor, last: Tensor, p: Layer) -> Tensor:
    """The feed-forward half: normed inputs (B, T, C) -> (B, T, C)."""
    previous = shifted(h, last)
    start, end = (previous, h) if isinstance(p.mix, Static) else (h, previous)
    xk, xr = (torch.addcmul(start, end - start, share) for share in (p.ffn_mix_k, p.ffn_mix_r))
    k = torch.relu(linear(xk, p.ffn_key)).square()
    return torch.sigmoid(linear(xr, p.ffn_receptance)) * linear(k, p.ffn_value)


def layer_5(get: Reader, i: int) -> Layer:
    """Read one layer of RWKV-5.0, 5.1 or 5.2."""
    att = get.under(f"blocks.{i}.att.")
    gated = "gate.weight" in att
    shares = torch.stack([att(f"time_mix_{name}") for name in ("rkvg" if gated else "rkv")])
    u = att("time_faaaa") if "time_faaaa" in att else att("time_first").float().exp()
    w = torch.exp(-torch.exp(att("time_decay").float()))
    heads = (len(w), shares.shape[-1] // len(w))  # one number a head in 5.0 and 5.1
    mix = Static(shares, w.view(len(w), -1).expand(heads))
    return _layer(get, i, mix, u.float().view(len(w), -1).expand(heads), "time_mix", gated)


def layer_6(get: Reader, i: int) -> Layer:
    """Read one layer of RWKV-6."""
    att = get.under(f"blocks.{i}.att.")
    mix = Dynamic(
        shared=att("time_maa_x"),
        shares=torch.stack([att(f"time_maa_{name}") for name in "wkvrg"]),
        w1=att.turned("time_maa_w1"),
        w2=att.turned("time_maa_w2"),
        decay=att("time_decay").float(),
        decay_w1=att.turned("time_decay_w1"),
        decay_w2=att.turned("time_decay_w2"),
    )
    return _layer(get, i, mix, att("time_faaaa").float(), "time_maa", gated=True)


def _layer(get: Reader, i: int, mix: Static | Dynamic, u: Tensor, shift: str, gated: bool) -> Layer:
    """What both versions have alike; `shift` is what the names of the shares begin with."""
    block, att, ffn = (get.under(f"blocks.{i}.{part}") for part in ("", "att.", "ffn."))
    return Layer(
        ln1_weight=block("ln1.weight"),
        ln1_bias=block("ln1.bias"),
        mix=mix,
        **{name: att(f"{name}.weight") for name in ("receptance", "key", "value", "output")},
        gate=att("gate.weight") if gated else None,
        u=u.contiguous(),
        ln_x_weight=att("ln_x.weight").float(),
        ln_x_bias=att("ln_x.bias").float(),
        ln2_weight=block("ln2.weight"),
        ln2_bias=block("ln2.bias"),
        ffn_mix_k=ffn(f"{shift}_k"),
        ffn_mix_r=ffn(f"{shift}_r"),
        tuned=att("time_state").float() if "time_state" in att else None,
        **{f"ffn_{name}": ffn(f"{name}.weight") for name in ("key", "receptance", "value")},
    )
