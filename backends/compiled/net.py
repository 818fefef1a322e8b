"""The stack of layers: weights from a checkpoint, tokens to logits and states."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from backends.compiled.block import Layer, block, norm
from backends.compiled.linear import linear
from backends.compiled.state import LayerState, NetState
from backends.weights import DTYPES, Weights

SEGMENT = 2048
"""Tokens that walk through the layers together: bounds the memory that a long prompt takes."""


class Ends(NamedTuple):
    """What stands before the first and behind the last layer."""

    emb: Tensor  # (V, C)
    ln0_weight: Tensor
    ln0_bias: Tensor
    ln_out_weight: Tensor
    ln_out_bias: Tensor
    head: Tensor  # (V, C)


def embed(ids: Tensor, ends: Ends) -> Tensor:
    """Ids (B, T) -> residual stream (B, T, C)."""
    return norm(functional.embedding(ids, ends.emb), ends.ln0_weight, ends.ln0_bias)


def read_out(x: Tensor, ends: Ends) -> Tensor:
    """Residual stream (B, T, C) -> logits (B, T, V)."""
    return linear(norm(x, ends.ln_out_weight, ends.ln_out_bias), ends.head)


@dataclass(frozen=True)
class Net:
    """A loaded model: plain functions over tensors, without state of its own.

    Attributes:
        ends, layers: the weights.
        dtype: of weights and activations.
        block, read_out: what evaluates a layer and the head; `inductor.compiled` swaps them.
    """

    ends: Ends
    layers: tuple[Layer, ...]
    dtype: torch.dtype
    block: Callable[..., tuple[Tensor, Tensor, LayerState]] = block
    read_out: Callable[[Tensor, Ends], Tensor] = read_out

    def stream(self, ids: Tensor, state: NetState) -> tuple[Tensor, NetState]:
        """Ids (B, T) -> the stream after the last layer (B, T, C) and the new state."""
        x, v_first, after = embed(ids, self.ends), None, []
        for p, layer_state in zip(self.layers, state, strict=True):
            x, v_first, layer_state = self.block(x, v_first, layer_state, p)  # noqa: PLW2901
            after.append(layer_state)
        return x, tuple(after)

    def run(self, ids: Tensor, state: NetState, logits: str) -> tuple[Tensor | None, NetState]:
        """Feed a prompt, segment by segment.

        Args:
            ids: (B, T) int64 on the weights' device.
            state: what came before; not written to.
            logits: "none", "last" or "all".

        Returns:
            Logits (B, 1 or T, V) in the activations' format, or None; and the state after the last token.
        """
        parts = []
        x = torch.empty(0)
        for segment in torch.split(ids, SEGMENT, dim=1):
            x, state = self.stream(segment, state)
            if logits == "all":
                parts.append(self.read_out(x, self.ends))
        if logits == "last":
            parts.append(self.read_out(x[:, -1:], self.ends))
        return (torch.cat(parts, dim=1) if parts else None), state


def load(weights: Weights, dtype: str, device: str) -> Net:
    """Read a checkpoint's weights in the number format and onto the device asked for."""

    def get(name: str) -> Tensor:
        return weights.get(name, dtype, device).contiguous()

    ends = Ends(
        get("emb.weight"),
        get("blocks.0.ln0.weight"),
        get("blocks.0.ln0.bias"),
        get("ln_out.weight"),
        get("ln_out.bias"),
        get("head.weight"),
    )
    layers = tuple(_layer(get, i) for i in range(weights.facts.n_layer))
    return Net(ends, layers, DTYPES[dtype])


def _layer(get: Callable[[str], Tensor], i: int) -> Layer:
    def att(name: str) -> Tensor:
        return get(f"blocks.{i}.att.{name}")

    def ffn(name: str) -> Tensor:
        return get(f"blocks.{i}.ffn.{name}")

    def low_rank(name: str) -> Tensor:
        return att(name).T.contiguous()  # stored (in, out), applied from the right

    return Layer(
        ln1_weight=get(f"blocks.{i}.ln1.weight"),
        ln1_bias=get(f"blocks.{i}.ln1.bias"),
        mixes=torch.stack([att(f"x_{letter}") for letter in "rwkvag"]),
        receptance=att("receptance.weight"),
        key=att("key.weight"),
        value=att("value.weight"),
        output=att("output.weight"),
        **{name: low_rank(name) for name in ("w1", "w2", "a1", "a2", "g1", "g2")},
        v1=low_rank("v1") if i else None,
        v2=low_rank("v2") if i else None,
        w0=att("w0").float(),
        a0=att("a0").float(),
        v0=att("v0").float() if i else None,
        k_k=att("k_k").float(),
        k_a=att("k_a").float(),
        r_k=att("r_k").float(),
        ln_x_weight=att("ln_x.weight").float(),
        ln_x_bias=att("ln_x.bias").float(),
        ln2_weight=get(f"blocks.{i}.ln2.weight"),
        ln2_bias=get(f"blocks.{i}.ln2.bias"),
        ffn_mix=ffn("x_k"),
        ffn_key=ffn("key.weight"),
        ffn_value=ffn("value.weight"),
    )
