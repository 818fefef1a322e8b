"""RWKV-7's weights as the decode step reads them: matrices that meet the same activations in one piece of memory.

The prompts' program goes on with views of the same memory, so nothing is held twice.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from backends.compiled.block import Layer
from backends.compiled.net import Ends

ALIGNED = 16
"""Entries: every row and every place is a multiple of it, so that the kernels load 16 bytes at once."""

ENTRY = 6
"""Numbers that the kernel's table has for a block of rows."""

ACTS = {"": 0, "tanh": 1, "sigmoid": 2, "relu2": 3}
"""What follows a product, as `triton_step.followed` numbers it."""

TALLEST = 64
"""Rows of the largest block: as many may be read behind the last matrix."""


class Part(NamedTuple):
    """One matrix of a stack.

    Attributes:
        matrix: (out, in).
        source: where its input begins in a row of activations.
        target: where its output begins.
        act: what follows.
    """

    matrix: Tensor
    source: int = 0
    target: int = 0
    act: str = ""


class Stack:
    """Matrices that are multiplied in one launch.

    Attributes:
        weights: their entries, one matrix behind the other, rows padded to a multiple of 16.
        views: the matrices themselves, in that memory.
        depth: inputs of the longest row.
        rows: outputs of all together.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        padded = [pad(part.matrix, (0, -part.matrix.shape[1] % ALIGNED)) for part in parts]
        begins = [0]
        for matrix in padded:
            begins.append(begins[-1] + matrix.numel() + -matrix.numel() % ALIGNED)
        self.depth = max(matrix.shape[1] for matrix in padded)
        self.rows = sum(matrix.shape[0] for matrix in padded)
        self.weights = padded[0].new_zeros(begins[-1] + TALLEST * self.depth)
        self._parts = [
            (begin, matrix.shape[1], part.source, part.target, matrix.shape[0], ACTS[part.act])
            for begin, matrix, part in zip(begins, padded, parts, strict=False)
        ]
        self.views: list[Tensor] = []
        for begin, matrix, part in zip(begins, padded, parts, strict=False):
            place = self.weights[begin : begin + matrix.numel()].view(matrix.shape)
            place.copy_(matrix)
            self.views.append(place[:, : part.matrix.shape[1]])
        self._tables: dict[int, Tensor] = {}

    def table(self, rows: int) -> Tensor:
        """What the kernel has to know of every block of so many rows, (blocks, ENTRY) int64; made once."""
        if rows not in self._tables:
            entries = [
                (begin + at * K, K, source, target + at, min(rows, count - at), act)
                for begin, K, source, target, count, act in self._parts
                for at in range(0, count, rows)
            ]
            self._tables[rows] = torch.tensor(entries, dtype=torch.int64, device=self.weights.device)
        return self._tables[rows]


class PackedLayer(NamedTuple):
    """One layer, from norm to norm.

    Attributes:
        first: r k v and the inner ends of w a g v; out (B, width): r k v, then the inner activations.
        second: the outer ends; out (B, 4, C): w a g v.
        width: of what `first` gives.
        vectors: (8, C) float32: w0 a0 v0 k_k a k_a r_k, weight and bias of the group norm.
        value_rows: (F, C), the channel mix's value matrix turned, where zeros are skipped; then `value` is None.
    """

    ln1: tuple[Tensor, Tensor]
    ln2: tuple[Tensor, Tensor]
    mixes: Tensor
    ffn_mix: Tensor
    vectors: Tensor
    first: Stack
    second: Stack
    output: Stack
    key: Stack
    value: Stack | None
    value_rows: Tensor | None
    width: int


ORDER = "rwkvag"
"""Of the six token shifts, as `Layer.mixes` has them."""


def packed(p: Layer, sparse: bool) -> tuple[PackedLayer, Layer]:
    """A layer for the decode step, and the same layer for prompts, in the same memory.

    Args:
        p: the layer.
        sparse: whether the channel mix's value matrix is turned, so that its rows can be skipped.
    """
    first, second, width = _projections(p)
    output, key = Stack([Part(p.output)]), Stack([Part(p.ffn_key, act="relu2")])
    value = None if sparse else Stack([Part(p.ffn_value)])
    ffn_value = value.views[0] if value else p.ffn_value.mT.contiguous().mT
    v0 = p.v0 if p.v0 is not None else torch.zeros_like(p.w0)
    layer = PackedLayer(
        ln1=(p.ln1_weight, p.ln1_bias),
        ln2=(p.ln2_weight, p.ln2_bias),
        mixes=p.mixes,
        ffn_mix=p.ffn_mix,
        vectors=torch.stack([p.w0, p.a0, v0, p.k_k, p.k_a, p.r_k.flatten(), p.ln_x_weight, p.ln_x_bias]),
        first=first,
        second=second,
        output=output,
        key=key,
        value=value,
        value_rows=None if value else ffn_value.mT,
        width=width,
    )
    r, k, v, w1, a1, g1, *v1 = first.views
    w2, a2, g2, *v2 = second.views
    same = p._replace(
        receptance=r, key=k, value=v, w1=w1, a1=a1, g1=g1, w2=w2, a2=a2, g2=g2, output=output.views[0],
        ffn_key=key.views[0], ffn_value=ffn_value,
    )  # fmt: skip
    return layer, same._replace(v1=v1[0], v2=v2[0]) if v1 else same


def _projections(p: Layer) -> tuple[Stack, Stack, int]:
    """Both stacks of the time mix, and the width of what the first one gives."""
    C = p.key.shape[1]
    parts = [
        Part(W, ORDER.index(at) * C, i * C)
        for i, (at, W) in enumerate(zip("rkv", (p.receptance, p.key, p.value), strict=True))
    ]
    pairs = [("w", p.w1, p.w2, "tanh"), ("a", p.a1, p.a2, ""), ("g", p.g1, p.g2, "sigmoid"), ("v", p.v1, p.v2, "")]
    outer, at = [], 3 * C
    for place, (name, inner, other, act) in enumerate(pairs):
        if inner is not None and other is not None:
            parts.append(Part(inner, ORDER.index(name) * C, at, act))
            outer.append(Part(other, at, place * C))
            at += len(inner) + -len(inner) % ALIGNED
    return Stack(parts), Stack(outer), at


class PackedEnds(NamedTuple):
    """What stands before the first and behind the last layer."""

    ends: Ends
    head: Stack


def packed_ends(ends: Ends) -> PackedEnds:
    """The ends; the head is held once."""
    head = Stack([Part(ends.head)])
    return PackedEnds(ends._replace(head=head.views[0]), head)
