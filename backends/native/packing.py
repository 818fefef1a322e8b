"""Weights as the C program reads them: matrices in panels, vectors in float32, all of it on huge pages.

The order of LAYER is that of the pointers in rwkv7.h.
"""

import ctypes
import mmap

import torch
from torch import Tensor

from backends.compiled.parts import Reader

VECTORS = 2
"""Vectors of rows in a panel, as in matmul.h."""

HUGE = 1 << 21
"""Bytes of a huge page: with small ones one core read a layer at 70% of the rate."""

PIECE = 1 << 26 if hasattr(mmap, "MADV_HUGEPAGE") else 0
"""Bytes taken from the system at a time, at least; what is not used is not resident."""

LINE = 64
"""Bytes of a cache line."""

LAYER = (
    "ln1_weight", "ln1_bias", "mixes", "w0", "a0", "v0", "k_k", "k_a", "r_k", "ln_x_weight", "ln_x_bias",
    "ln2_weight", "ln2_bias", "ffn_mix", "receptance", "key", "value", "output", "w1", "a1", "v1", "g1",
    "w2", "a2", "v2", "g2", "ffn_key", "ffn_value",
)  # fmt: skip


class Room:
    """Memory for weights, on huge pages where the system has them; it stays as long as a tensor made here."""

    def __init__(self) -> None:
        self._left = torch.empty(0, dtype=torch.uint8)

    def zeros(self, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A tensor of zeros that begins with a cache line."""
        size = torch.Size(shape).numel() * dtype.itemsize
        if size > len(self._left):
            self._left = on_huge_pages(max(size, PIECE))
        taken, self._left = self._left[:size], self._left[-(-size // LINE) * LINE :]
        return taken.view(dtype).view(shape)

    def panels(self, W: Tensor, lanes: int, step: int) -> Tensor:
        """A matrix (out, in) as the kernels stream it: (out / ROWS, in / step, ROWS, step), zeros where was nothing."""
        height, (rows, K) = VECTORS * lanes, W.shape
        panels, pieces = -(-rows // height), -(-K // step)
        if (rows, K) != (panels * height, pieces * step):
            ragged, W = W, torch.zeros(panels * height, pieces * step, dtype=W.dtype)
            W[:rows, :K] = ragged
        out = self.zeros((panels, pieces, height, step), W.dtype)
        words = torch.int32 if step * W.dtype.itemsize == 4 else W.dtype  # a pair of bf16 moves as one
        whole = W.contiguous().view(words).view(panels, height, pieces, -1)
        out.view(words).copy_(whole.transpose(1, 2))
        return out

    def by_head(self, W: Tensor, heads: int, lanes: int) -> Tensor:
        """The second half of a low-rank pair, (R, C) as stored -> (H, R, N), N padded with zeros to whole vectors."""
        R, C = W.shape
        N = C // heads
        out = self.zeros((heads, R, -(-N // lanes) * lanes), W.dtype)
        out[..., :N] = W.view(R, heads, N).transpose(0, 1)
        return out


def on_huge_pages(size: int) -> Tensor:
    """That many bytes, zeros; many of them on huge pages, where the system has them."""
    if size < HUGE or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.zeros(size, dtype=torch.uint8)
    # Private memory: what is shared, the default, has small pages however it is advised. One page more at each end.
    mapped = mmap.mmap(-1, -(-size // HUGE) * HUGE + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    mapped.madvise(mmap.MADV_HUGEPAGE)
    raw = torch.frombuffer(mapped, dtype=torch.uint8)  # keeps the mapping alive
    start = -raw.data_ptr() % HUGE
    return raw[start : start + size]


def layer(get: Reader, i: int, heads: int, lanes: int, step: int, room: Room) -> dict[str, Tensor]:
    """One layer's weights by the names of LAYER; layer 0 has no v0, v1, v2."""
    block, att, ffn = (get.under(f"blocks.{i}.{part}") for part in ("", "att.", "ffn."))
    pairs = "wavg" if i else "wag"
    vectors = {
        **{f"{name}_{part}": block(f"{name}.{part}") for name in ("ln1", "ln2") for part in ("weight", "bias")},
        "mixes": torch.stack([att(f"x_{letter}") for letter in "rwkvag"]),
        **{f"{letter}0": att(f"{letter}0") for letter in pairs if letter != "g"},
        **{name: att(name) for name in ("k_k", "k_a", "r_k")},
        "ln_x_weight": att("ln_x.weight"),
        "ln_x_bias": att("ln_x.bias"),
        "ffn_mix": ffn("x_k"),
    }
    matrices = {
        **{name: att(f"{name}.weight") for name in ("receptance", "key", "value", "output")},
        **{f"{letter}1": att.turned(f"{letter}1") for letter in pairs},
        "ffn_key": ffn("key.weight"),
        "ffn_value": ffn("value.weight"),
    }
    return {
        **{name: vector.float().contiguous() for name, vector in vectors.items()},
        **{name: room.panels(W, lanes, step) for name, W in matrices.items()},
        **{f"{letter}2": room.by_head(att(f"{letter}2"), heads, lanes) for letter in pairs},
    }


def pointer(tensor: Tensor | None) -> ctypes.c_void_p:
    """Where a tensor's values begin; NULL for none."""
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())
