"""One token of RWKV-7 through the kernels of `triton_step`: buffers that stay where they are, state in place.

Eight launches a layer, nine where zeros are skipped: shift · r k v and low-rank · low-rank · head · output · shift ·
key · value. Nothing here depends on values, so the whole step can be one CUDA graph.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from backends.base import ModelFacts
from backends.compiled import triton_ops
from backends.compiled.block import DECAY, KEY_FLOOR
from backends.compiled.graph import overwrite
from backends.compiled.packed import ENTRY, TALLEST, PackedEnds, PackedLayer, Stack
from backends.compiled.parts import GN_EPS, LN_EPS
from backends.compiled.state import LayerState, NetState


class Tile(NamedTuple):
    """How a product is cut: rows and inputs that a block has at a time."""

    rows: int
    depth: int


AT_ONCE = 4096
"""Weights that a block of one row's product has at a time. With three loads of them under way, a card with 132
processors has some 25 kB and more on each, which is what its memory needs: bandwidth times latency."""

DEEPEST = {False: 1024, True: 512}
"""Most inputs at a time, by whether a product has `ENOUGH` rows; the deeper, the more blocks there are."""

ENOUGH = 6000
"""Rows from which on every processor has blocks anyway."""

STAGES, WARPS = 4, 4
"""Loads under way in a product, warps of its blocks."""


def tile_for(stack: Stack, B: int) -> Tile:
    """The cut of a product for a batch of B."""
    many = stack.rows >= ENOUGH
    whole = max(32, 1 << (stack.depth - 1).bit_length())
    if B > 1:
        return Tile(32 if many else 16, min(128 if B <= 16 else 64, whole))
    depth = min(DEEPEST[many], whole)
    return Tile(min(AT_ONCE // depth, TALLEST), depth)


HEAD_ROWS = 64
"""Rows of a state in one block of threads; with a whole head, its norm needs no second launch."""

SPARSE_COLUMNS, SPARSE_DEPTH, SPARSE_PARTS = 256, 16, 16
"""Where zeros are skipped: columns and inputs of a block at a time, parts that the inputs are cut into."""


class Model(NamedTuple):
    """What a step reads.

    Attributes:
        zeros: (1,) int64: inputs of the channel mix's value matrices that were zero, whose rows were left unread.
    """

    facts: ModelFacts
    dtype: torch.dtype
    device: torch.device
    layers: Sequence[PackedLayer]
    ends: PackedEnds
    zeros: Tensor

    def spared(self) -> int:
        """Bytes of weights left unread so far."""
        return int(self.zeros) * self.facts.n_embd * self.dtype.itemsize


class Step:
    """A token of B rows.

    Attributes:
        ids: (B, 1) int64, the tokens that are fed next.
        state: what came before them; overwritten by `run`.
        logits: (B, V), written by `run`.
    """

    def __init__(self, model: Model, B: int) -> None:
        facts, self._model, self._B = model.facts, model, B
        self._kernels = triton_ops.module("triton_step")
        self._block = 1 << (facts.n_embd - 1).bit_length()
        C = facts.n_embd

        def room(*shape: int, dtype: torch.dtype = model.dtype) -> Tensor:
            return torch.zeros(B, *shape, dtype=dtype, device=model.device)  # zeros: inner rows are padded

        self.ids, self.logits = room(1, dtype=torch.int64), room(facts.vocab_size)
        L, H, N = facts.n_layer, facts.n_head, facts.head_size
        self._shifts = torch.zeros(2, L, B, C, dtype=model.dtype, device=model.device)
        self._wkv = torch.zeros(L, B, H, N, N, device=model.device)
        self.state = _layers(self._shifts, self._wkv)
        self._x, self._h, self._y, self._mixed = room(C), room(C), room(C), room(6, C)
        self._low, self._inner = room(4, C), room(facts.n_ffn)
        self._proj = [room(p.width) for p in model.layers]
        self._v_first, self._read, self._bonus = (room(C, dtype=torch.float32) for _ in range(3))
        self._sums = torch.zeros(SPARSE_PARTS, C, device=model.device)

    def load(self, ids: Tensor, state: NetState) -> None:
        """Begin anew, behind a state that is left as it is."""
        self.ids.copy_(ids)
        overwrite(self.state, state)

    def kept(self) -> NetState:
        """A copy of the state."""
        return _layers(self._shifts.clone(), self._wkv.clone())

    @torch.no_grad()
    def advance(self) -> None:
        """Feed `ids`; afterwards `ids` is the greedy continuation, and `state` and `logits` are of the token fed."""
        with triton_ops.on(self._model.device):
            self.run()
            self.ids.copy_(self.logits.argmax(dim=-1, keepdim=True))

    def run(self) -> None:
        """Feed `ids`."""
        ends, sizes = self._model.ends.ends, self._row_sizes
        self._kernels.embed_kernel[self._B,](self.ids, ends.emb, ends.ln0_weight, ends.ln0_bias, self._x, **sizes)
        for i, p in enumerate(self._model.layers):
            self._time_mix(i, p)
            self._channel_mix(i, p)
        norm = (ends.ln_out_weight, ends.ln_out_bias)
        self._shift(norm, self._h, self._h, self._h, 0)
        self._product(self._h, self._model.ends.head, self.logits)

    def _time_mix(self, i: int, p: PackedLayer) -> None:
        state, proj = self.state[i], self._proj[i]
        self._shift(p.ln1, state.att, p.mixes, self._mixed, 6)
        self._product(self._mixed, p.first, proj)
        self._product(proj, p.second, self._low)
        H, N = self._model.facts.n_head, self._model.facts.head_size
        rows = min(N, HEAD_ROWS)
        whole = rows == N
        self._kernels.attend_kernel[self._B * H, N // rows](
            proj, self._low, p.vectors, state.wkv, self._v_first, self._y if whole else self._read, self._bonus,
            p.width, H=H, N=N, ROWS=rows, FIRST=i == 0, DECAY=DECAY, FLOOR=KEY_FLOOR, EPS=GN_EPS, num_warps=4,
        )  # fmt: skip
        if not whole:
            heads = (self._read, self._bonus, self._low, p.vectors, self._y)
            self._kernels.finish_kernel[self._B * H,](*heads, H=H, N=N, EPS=GN_EPS, num_warps=2)
        self._product(self._y, p.output, self._x, add=True)

    def _channel_mix(self, i: int, p: PackedLayer) -> None:
        self._shift(p.ln2, self.state[i].ffn, p.ffn_mix, self._h, 1)
        self._product(self._h, p.key, self._inner)
        if p.value is not None:
            self._product(self._inner, p.value, self._x, add=True)
        elif self._B == 1:
            self._skipping(p)
        else:
            self._x.addmm_(self._inner, p.value_rows)  # type: ignore[arg-type]

    def _shift(self, norm: tuple[Tensor, Tensor], last: Tensor, mixes: Tensor, out: Tensor, count: int) -> None:
        self._kernels.shift_kernel[self._B,](self._x, *norm, last, mixes, out, MIXES=count, **self._row_sizes)

    def _product(self, x: Tensor, stack: Stack, out: Tensor, add: bool = False) -> None:
        """Write x Wᵀ of every matrix of a stack, and what follows, to `out`; or add x Wᵀ to it."""
        tile = tile_for(stack, self._B)
        table = stack.table(tile.rows)
        batch = 1 if self._B == 1 else min(64, max(16, 1 << (self._B - 1).bit_length()))
        self._kernels.product_kernel[len(table), -(-self._B // batch)](
            x, stack.weights, table, out, self._B, x.stride(0), out.stride(0), ENTRY=ENTRY, ROWS=tile.rows,
            DEPTH=tile.depth, BATCH=batch, STAGES=STAGES, ADD=add, WIDE=not x.is_cuda, PRECISION="ieee",
            num_warps=WARPS, num_stages=STAGES,
        )  # fmt: skip

    def _skipping(self, p: PackedLayer) -> None:
        """Add k W for one row, without reading the rows of W that meet zeros."""
        F, C = self._model.facts.n_ffn, self._model.facts.n_embd
        step = SPARSE_PARTS * SPARSE_DEPTH
        each = -(-F // step) * SPARSE_DEPTH
        grid = (-(-C // SPARSE_COLUMNS), SPARSE_PARTS)
        sizes = {"COLUMNS": SPARSE_COLUMNS, "DEPTH": SPARSE_DEPTH, "EACH": each, "STAGES": STAGES}
        self._kernels.sparse_kernel[grid](
            self._inner, p.value_rows, self._sums, self._model.zeros, F, C, **sizes, num_warps=4
        )
        self._kernels.collect_kernel[-(-C // 128),](self._sums, self._x, C, PARTS=SPARSE_PARTS, COLUMNS=128)

    @property
    def _row_sizes(self) -> dict[str, Any]:
        return {"C": self._model.facts.n_embd, "EPS": LN_EPS, "BLOCK": self._block, "num_warps": 8}


def _layers(shifts: Tensor, wkv: Tensor) -> tuple[LayerState, ...]:
    """Views by layer of what lies in one piece, so that a copy is two launches: (2, L, B, C) and (L, B, H, N, N)."""
    att, ffn = shifts.unbind()
    return tuple(map(LayerState, att.unbind(), wkv.unbind(), ffn.unbind()))
