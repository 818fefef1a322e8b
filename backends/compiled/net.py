"""The stack of layers: weights from a checkpoint, tokens to logits and states."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from backends.base import ModelFacts, State
from backends.compiled import block, dea, finch, wkv, wkv_diagonal
from backends.compiled.linear import linear
from backends.compiled.parts import Across, Reader, norm
from backends.compiled.state import GROWN, LayerState, NetState, zero_state
from backends.weights import DTYPES, Weights

Block = Callable[[Tensor, Across, Any, Any], tuple[Tensor, Across, Any]]
"""Evaluates a layer: stream, what layers hand on, state and weights -> the same three after it."""

Start = Callable[[LayerState, Any], Any]
"""Makes the state before the first token out of zeros and a layer's weights."""

SEGMENT, CUDA_SEGMENT = 2048, 8192
"""Tokens of a row, on CUDA of all rows, that walk through the layers together: bounds what a long prompt takes."""


class Ends(NamedTuple):
    """What stands before the first and behind the last layer."""

    emb: Tensor  # (V, C)
    ln0_weight: Tensor
    ln0_bias: Tensor
    ln_out_weight: Tensor
    ln_out_bias: Tensor
    head: Tensor  # (V, C)


def embed(ids: Tensor, ends: Ends) -> Tensor:
    """Ids (B, T) -> residual stream (B, T, C). The table may lie in the host's memory."""
    rows = functional.embedding(ids.to(ends.emb.device), ends.emb).to(ids.device)
    return norm(rows, ends.ln0_weight, ends.ln0_bias)


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
        began: makes the state before the first token of a layer.
    """

    ends: Ends
    layers: tuple[Any, ...]
    dtype: torch.dtype
    block: Block
    began: Start
    read_out: Callable[[Tensor, Ends], Tensor] = read_out

    @property
    def grows(self) -> bool:
        """Whether the state is larger after every token."""
        return self.began is dea.start

    def with_ends(self, ends: Ends) -> "Net":
        """The same layers between other ends."""
        return replace(self, ends=ends)

    def start(self, facts: ModelFacts, B: int) -> NetState:
        """The state before the first token, for B rows."""
        zeros = zero_state(facts, B, self.dtype, self.ends.head.device)
        return tuple(map(self.began, zeros, self.layers))

    def resume(self, plain: tuple[LayerState, ...], state: State) -> NetState:
        """The handle that continues from a state in the agreed layout, whose common part is `plain`."""
        if not self.grows:
            return plain
        ids = torch.from_numpy(state.extra["tokens"][0].astype(np.int64)).to(self.ends.head.device)
        across = Across(ids, embed(ids, self.ends))
        parts = zip(*(torch.from_numpy(state.extra[name]).to(self.ends.head) for name in GROWN), strict=True)
        layers = zip(plain, parts, self.layers, strict=True)
        return tuple(dea.recalled(before, across, own, p) for before, own, p in layers)

    def stream(self, ids: Tensor, state: NetState) -> tuple[Tensor, NetState]:
        """Ids (B, T) -> the stream after the last layer (B, T, C) and the new state."""
        x = embed(ids, self.ends)
        across, after = Across(ids, x), []
        for p, layer_state in zip(self.layers, state, strict=True):
            x, across, layer_state = self.block(x, across, layer_state, p)  # noqa: PLW2901
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
        size = max(1, CUDA_SEGMENT // len(ids)) if ids.is_cuda else SEGMENT
        for segment in torch.split(ids, size, dim=1):
            x, state = self.stream(segment, state)
            if logits == "all":
                parts.append(self.read_out(x, self.ends))
        if logits == "last":
            parts.append(self.read_out(x[:, -1:], self.ends))
        return (torch.cat(parts, dim=1) if parts else None), state


class Version(NamedTuple):
    """How a version is computed: what evaluates a layer, what reads its weights, its recurrence in words."""

    block: Block
    read: Callable[[Reader, int], Any]
    attention: str
    start: Start


_DIAGONAL = f"chunk {wkv_diagonal.CHUNK}"
_DELTA = f"chunk {wkv.CHUNK}"

VERSIONS: Mapping[str, Version] = {
    **{f"5.{n}": Version(finch.block, finch.layer_5, f"chunked WKV-5 ({_DIAGONAL})", finch.start) for n in range(3)},
    "6": Version(finch.block, finch.layer_6, f"chunked WKV-6 ({_DIAGONAL})", finch.start),
    "7": Version(block.block, block.layer_7, f"chunked WKV-7 ({_DELTA})", block.start),
    "7a": Version(block.block, block.layer_7, f"chunked WKV-7 ({_DELTA})", block.start),
    "7b": Version(dea.block, dea.layer, f"chunked WKV-7 ({_DELTA}), DEA over all tokens", dea.start),
}
"""RWKV version -> its row."""


def attention(version: str) -> str:
    """How the recurrence of a version is evaluated, in words."""
    return VERSIONS[version].attention


def load(
    weights: Weights, dtype: str, device: str, change: Callable[[Any], Any] = lambda p: p, host_table: bool = False
) -> Net:
    """Read a checkpoint's weights in the number format and onto the device asked for.

    Args:
        weights: the checkpoint.
        dtype: short name of the number format.
        device: where they shall lie.
        change: of every layer, as soon as it was read.
        host_table: whether the embedding table stays in the host's memory, where CUDA's kernels can read it.
    """
    get = Reader(weights, dtype, device)
    ends = Ends(
        _on_host(weights.get("emb.weight", dtype), device) if host_table else get("emb.weight"),
        get("blocks.0.ln0.weight"),
        get("blocks.0.ln0.bias"),
        get("ln_out.weight"),
        get("ln_out.bias"),
        get("head.weight"),
    )
    version = VERSIONS[weights.facts.version]
    layers = tuple(change(version.read(get, i)) for i in range(weights.facts.n_layer))
    return Net(ends, layers, DTYPES[dtype], version.block, version.start)


def _on_host(table: Tensor, device: str) -> Tensor:
    table = table.contiguous()
    return table.pin_memory() if device.startswith("cuda") else table
