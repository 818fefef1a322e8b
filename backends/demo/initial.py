"""Shapes of the demo and its first weights.

The initialisation follows the official training code's: decays from slow to fast over the channels with a zig-zag
within each head, low-rank pairs that start at zero, outputs of both sub-layers zero.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Shape:
    """Sizes: vocabulary, width, layers, head size, hidden width, ranks of the pairs w, a, v, g."""

    V: int = 256
    C: int = 160
    L: int = 5
    N: int = 32
    F: int = 640
    ranks: tuple[int, int, int, int] = (16, 16, 16, 32)

    @property
    def H(self) -> int:
        """Heads."""
        return self.C // self.N


def weights(shape: Shape, seed: int) -> dict[str, Tensor]:
    """Official name -> float32 tensor, trainable."""
    draw = torch.Generator().manual_seed(seed)
    C, V = shape.C, shape.V
    found = {
        "emb.weight": torch.randn(V, C, generator=draw) * 0.1,
        "blocks.0.ln0.weight": torch.ones(C),
        "blocks.0.ln0.bias": torch.zeros(C),
        "ln_out.weight": torch.ones(C),
        "ln_out.bias": torch.zeros(C),
        "head.weight": torch.randn(V, C, generator=draw) * (0.5 / math.sqrt(C)),
    }
    for layer in range(shape.L):
        block = _time_mix(shape, layer, draw) | _channel_mix(shape, layer, draw)
        for norm in ("ln1", "ln2"):
            block |= {f"{norm}.weight": torch.ones(C), f"{norm}.bias": torch.zeros(C)}
        found |= {f"blocks.{layer}.{name}": tensor for name, tensor in block.items()}
    return {name: tensor.contiguous().requires_grad_() for name, tensor in found.items()}


def _time_mix(shape: Shape, layer: int, draw: torch.Generator) -> dict[str, Tensor]:
    C, N = shape.C, shape.N
    depth, rest = layer / max(1, shape.L - 1), 1 - layer / shape.L
    line = torch.linspace(-0.5, 0.5, C)
    zigzag = (torch.arange(C) % N - (N - 1) / 2) / ((N - 1) / 2)
    zigzag = zigzag * zigzag.abs()
    channel = torch.arange(C) / C
    powers = {"r": 0.2, "w": 0.9, "k": 0.7, "v": 0.7, "a": 0.9, "g": 0.2}
    found = {f"x_{letter}": 1 - channel ** (power * rest) for letter, power in powers.items()}
    found |= {
        "w0": -5.5 + 6 * (line + 0.5) ** (1 + depth**0.3) + 2.5 * zigzag,
        "a0": -0.19 + 0.3 * zigzag + 0.4 * line,
        "v0": 0.73 - 0.4 * line,
        "k_k": 0.71 - 0.1 * line,
        "k_a": torch.full((C,), 1.02),
        "r_k": torch.full((shape.H, N), -0.04),
        "ln_x.weight": torch.full((C,), ((1 + layer) / shape.L) ** 0.7),
        "ln_x.bias": torch.zeros(C),
        "output.weight": torch.zeros(C, C),
    }
    for letter, rank in zip("wavg", shape.ranks, strict=True):
        found |= {f"{letter}1": torch.zeros(C, rank), f"{letter}2": _orthogonal(rank, C, 0.1, draw)}
    for name, scale in (("receptance", 0.5), ("key", 0.05), ("value", 0.5)):
        found[f"{name}.weight"] = _uniform(C, C, scale / math.sqrt(C), draw)
    if layer == 0:  # layer 0 is where the first value comes from: nothing to mix it with
        found = {name: tensor for name, tensor in found.items() if name not in ("v0", "v1", "v2")}
    return {f"att.{name}": tensor for name, tensor in found.items()}


def _channel_mix(shape: Shape, layer: int, draw: torch.Generator) -> dict[str, Tensor]:
    C, F = shape.C, shape.F
    return {
        "ffn.x_k": 1 - (torch.arange(C) / C) ** ((1 - layer / shape.L) ** 4),
        "ffn.key.weight": _uniform(F, C, 0.5 / math.sqrt(C), draw),
        "ffn.value.weight": torch.zeros(C, F),
    }


def _uniform(rows: int, columns: int, bound: float, draw: torch.Generator) -> Tensor:
    return (torch.rand(rows, columns, generator=draw) * 2 - 1) * bound


def _orthogonal(rows: int, columns: int, gain: float, draw: torch.Generator) -> Tensor:
    return torch.nn.init.orthogonal_(torch.empty(rows, columns), gain, generator=draw)
