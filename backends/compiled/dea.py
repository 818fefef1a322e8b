"""RWKV-7b: a layer of 7a and, beside it, DEA: softmax attention of one wide head over everything that was read.

What it remembers grows with every token. A state that is handed over holds the narrow half of it (the low-rank inputs
of keys and values, 64 numbers a token); a handle also holds the keys and values themselves, so that no step computes
them again.
"""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from backends.compiled import block as seven
from backends.compiled.linear import linear
from backends.compiled.parts import Across, Reader, norm, shifted
from backends.compiled.state import DeaState, LayerState

WIDE, LOW = 256, 32
"""Constants of the architecture: width of the head, of the low-rank pairs."""

SCORE, BEND = 64.0, 1024.0
"""score = 64 tanh(q·k / 1024); the usual 1/sqrt(256) is inside the 1024."""


class Dea(NamedTuple):
    """The attention's weights: matrices (out, in); vectors of 256 for queries and keys, of C for values."""

    query: Tensor  # (256, C)
    k1: Tensor  # (32, C)
    k2: Tensor  # (256, 32)
    v1: Tensor  # (32, C)
    v2: Tensor  # (C, 32)
    k_emb: Tensor  # (V, 256)
    k_emb_x: Tensor  # (256, C)
    v_emb: Tensor  # (V, C)
    v_emb_x: Tensor  # (C, C)
    mix_q: Tensor
    mix_k: Tensor
    mix_v: Tensor
    lnq_weight: Tensor
    lnq_bias: Tensor
    lnk_weight: Tensor
    lnk_bias: Tensor
    lnv_weight: Tensor
    lnv_bias: Tensor


class Layer(NamedTuple):
    """One layer of 7b."""

    plain: seven.Layer
    dea: Dea


def start(zero: LayerState, p: Layer) -> DeaState:
    """A layer that remembers nothing yet."""
    del p
    B, C = zero.att.shape

    def empty(*shape: int) -> Tensor:
        return zero.att.new_zeros(B, *shape)

    ids = torch.zeros(B, 0, dtype=torch.int64, device=zero.att.device)
    last = (empty(WIDE), empty(WIDE), empty(C))
    return DeaState(*zero, ids, empty(0, LOW), empty(0, LOW), *last, empty(0, WIDE), empty(0, C))


def block(x: Tensor, across: Across, state: DeaState, p: Layer) -> tuple[Tensor, Across, DeaState]:
    """One layer, as `block.block`; DEA reads the stream before its norm."""
    attended, memory = attend(x, across, state, p.dea)
    x, across, plain = seven.block(x, across, state.plain(), p.plain, attended)
    return x, across, memory._replace(att=plain.att, wkv=plain.wkv, ffn=plain.ffn)


def attend(x: Tensor, across: Across, state: DeaState, p: Dea) -> tuple[Tensor, DeaState]:
    """What every token finds in itself and in all before it: stream (B, T, C) -> (B, T, C), new memory."""
    q = linear(x, p.query)
    queries = norm(torch.lerp(q, shifted(q, state.q), p.mix_q), p.lnq_weight, p.lnq_bias)
    memory = remember(linear(x, p.k1), linear(x, p.v1), across, state, p)._replace(q=q[:, -1].clone())
    score = SCORE * torch.tanh((queries.float() @ memory.keys.float().mT) / BEND)  # (B, T, S)
    T, S = score.shape[1:]
    later = torch.ones(T, S, dtype=torch.bool, device=x.device).triu(S - T + 1)
    weights = torch.softmax(score.masked_fill(later, -torch.inf), dim=-1)
    return (weights @ memory.values.float()).to(x.dtype), memory


def remember(low_k: Tensor, low_v: Tensor, across: Across, before: DeaState, p: Dea) -> DeaState:
    """A memory with T tokens more: their low-rank inputs (B, T, 32), ids and embeddings."""
    k = linear(low_k, p.k2) * (functional.embedding(across.ids, p.k_emb) + linear(across.emb, p.k_emb_x))
    v = torch.tanh(linear(low_v, p.v2)) * (functional.embedding(across.ids, p.v_emb) + linear(across.emb, p.v_emb_x))
    keys = norm(torch.lerp(k, shifted(k, before.k), p.mix_k), p.lnk_weight, p.lnk_bias)
    values = norm(torch.lerp(v, shifted(v, before.v), p.mix_v), p.lnv_weight, p.lnv_bias)
    return before._replace(
        ids=torch.cat([before.ids, across.ids], dim=1),
        low_k=torch.cat([before.low_k, low_k], dim=1),
        low_v=torch.cat([before.low_v, low_v], dim=1),
        k=k[:, -1].clone(),
        v=v[:, -1].clone(),
        keys=torch.cat([before.keys, keys], dim=1),
        values=torch.cat([before.values, values], dim=1),
    )


def recalled(before: LayerState, across: Across, cached: tuple[Tensor, ...], p: Layer) -> DeaState:
    """A memory made anew of what a state in the agreed layout holds: q, low_k, low_v of `DeaState`."""
    q, low_k, low_v = cached
    nothing = start(before, p)
    return remember(low_k, low_v, across, nothing, p.dea)._replace(q=q) if low_k.shape[1] else nothing


def layer(get: Reader, i: int) -> Layer:
    """Read one layer of RWKV-7b."""
    qkv = get.under(f"blocks.{i}.qkv.")
    norms = {f"{name}_{part}": qkv(f"{name}.{part}") for name in ("lnq", "lnk", "lnv") for part in ("weight", "bias")}
    dea = Dea(
        query=qkv("qq.weight"),
        **{name: qkv.turned(name) for name in ("k1", "k2", "v1", "v2")},
        **{name: qkv(f"{name}.weight") for name in ("k_emb", "k_emb_x", "v_emb", "v_emb_x")},
        mix_q=qkv("x_q"),
        mix_k=qkv("x_k"),
        mix_v=qkv("x_v"),
        **norms,
    )
    return Layer(seven.layer_7(get, i), dea)
