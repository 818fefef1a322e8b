"""Random checkpoints of every version whose mechanisms all matter, as official state dicts.

Projections are dense and asymmetric, low-rank pairs have outputs of order 1, every mix differs and decays reach from
fast to slow, so that a missing transpose, tanh or head boundary shows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tests.backends.random_model import random_rwkv7

StateDict = dict[str, Tensor]


@dataclass(frozen=True)
class Shape:
    """Width, head size, layers, vocabulary; F = 3.5 C in v4 to v6, 4 C later."""

    C: int = 64
    N: int = 16
    L: int = 3
    V: int = 97


class _Draw:
    """Seeded normal and uniform draws in float64."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape, self.generator = shape, torch.Generator().manual_seed(seed)

    def n(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator, dtype=torch.float64)

    def mix(self) -> Tensor:
        return torch.rand(1, 1, self.shape.C, generator=self.generator, dtype=torch.float64)

    def norm(self, name: str, width: int = 0) -> StateDict:
        width = width or self.shape.C
        return {f"{name}.weight": 1 + 0.1 * self.n(width), f"{name}.bias": 0.1 * self.n(width)}

    def linear(self, rows: int, columns: int) -> Tensor:
        matrix: Tensor = self.n(rows, columns) / columns**0.5
        return matrix

    def pair(self, name: str, rank: int, width: int = 0) -> StateDict:
        C = self.shape.C
        return {f"{name}1": self.n(C, rank) / C**0.5, f"{name}2": self.n(rank, width or C) / rank**0.5}


def _model(draw: _Draw, block: Callable[[_Draw, int], StateDict]) -> StateDict:
    C, V = draw.shape.C, draw.shape.V
    made = {"emb.weight": 0.5 * draw.n(V, C), **draw.norm("blocks.0.ln0")}
    for layer in range(draw.shape.L):
        norms = draw.norm("ln1") | draw.norm("ln2")
        made |= {f"blocks.{layer}.{name}": tensor for name, tensor in {**norms, **block(draw, layer)}.items()}
    return made | draw.norm("ln_out") | {"head.weight": draw.linear(V, C)}


def _ffn_4(draw: _Draw, mix: str) -> StateDict:
    C = draw.shape.C
    F = int(3.5 * C) // 32 * 32
    return {
        f"ffn.{mix}_k": draw.mix(),
        f"ffn.{mix}_r": draw.mix(),
        "ffn.key.weight": draw.linear(F, C),
        "ffn.receptance.weight": draw.linear(C, C),
        "ffn.value.weight": draw.linear(C, F),
    }


def _projections(draw: _Draw, names: str) -> StateDict:
    return {f"att.{name}.weight": draw.linear(draw.shape.C, draw.shape.C) for name in names.split()}


def _v4(draw: _Draw, layer: int) -> StateDict:
    C = draw.shape.C
    made = _projections(draw, "key value receptance output") | _ffn_4(draw, "time_mix")
    made |= {f"att.time_mix_{mix}": draw.mix() for mix in "kvr"}
    return made | {"att.time_decay": draw.n(C) - 1, "att.time_first": draw.n(C)}


def _v5(draw: _Draw, heads: tuple[int, ...], gate: bool, first: str) -> StateDict:
    made = _projections(draw, "receptance key value output" + " gate" * gate) | _ffn_4(draw, "time_mix")
    made |= {f"att.time_mix_{mix}": draw.mix() for mix in ("kvrg" if gate else "kvr")}
    bonus = 0.5 * draw.n(*heads)
    return made | draw.norm("att.ln_x") | {"att.time_decay": 1.5 * draw.n(*heads) - 1.5, f"att.{first}": bonus}


def _v50(draw: _Draw, layer: int) -> StateDict:
    return _v5(draw, (draw.shape.C // draw.shape.N,), False, "time_first")


def _v51(draw: _Draw, layer: int) -> StateDict:
    return _v5(draw, (draw.shape.C // draw.shape.N,), True, "time_first")


def _v52(draw: _Draw, layer: int) -> StateDict:
    return _v5(draw, (draw.shape.C // draw.shape.N, draw.shape.N), True, "time_faaaa")


def _v6(draw: _Draw, layer: int) -> StateDict:
    C, N = draw.shape.C, draw.shape.N
    made = _projections(draw, "receptance key value output gate") | _ffn_4(draw, "time_maa") | draw.norm("att.ln_x")
    made |= {f"att.time_maa_{mix}": draw.mix() for mix in "xwkvrg"}
    made |= {"att.time_maa_w1": draw.n(C, 5 * 12) / C**0.5, "att.time_maa_w2": 0.3 * draw.n(5, 12, C) / 12**0.5}
    made |= draw.pair("att.time_decay_w", 20)
    return made | {"att.time_decay": 1.5 * draw.n(1, 1, C) - 1.5, "att.time_faaaa": 0.5 * draw.n(C // N, N)}


def _deep_embed(draw: _Draw, F: int) -> StateDict:
    C, V = draw.shape.C, draw.shape.V
    return {
        "ffn.s_emb.weight": draw.n(V, 1024) / 32**0.5,
        "ffn.s_emb_x.weight": 0.5 * draw.n(1024, C) / (32 * C) ** 0.5,
        "ffn.s1": draw.n(C, 32) / C**0.5,
        "ffn.s2": 0.5 * draw.n(32, F) / 32**0.5,
        "ffn.s0": 1 + 0.3 * draw.n(1, 1, F),
    }


def _dea(draw: _Draw) -> StateDict:
    C, V = draw.shape.C, draw.shape.V
    made = draw.pair("k", 32, 256) | draw.pair("v", 32)
    made |= {"qq.weight": draw.linear(256, C), "x_q": draw.mix(), "x_k": draw.mix(), "x_v": draw.mix()}
    made |= {name: torch.rand(1, 1, 256, generator=draw.generator, dtype=torch.float64) for name in ("x_q", "x_k")}
    for name, width in (("k", 256), ("v", C)):
        made |= {f"{name}_emb.weight": draw.n(V, width), f"{name}_emb_x.weight": 0.5 * draw.linear(width, C)}
    # Larger keys than a fresh model has: scores of order 1 and more, so that the softmax is far from flat.
    norms = draw.norm("lnq", 256) | draw.norm("lnk", 256) | draw.norm("lnv")
    return {f"qkv.{name}": tensor for name, tensor in {**made, **norms}.items()}


def _deep(shape: Shape, seed: int, dea: bool) -> StateDict:
    made = random_rwkv7(shape.C, shape.N, shape.L, shape.V, seed, dtype=torch.float64)
    draw = _Draw(shape, seed + 1)
    for layer in range(shape.L):
        more = _deep_embed(draw, 4 * shape.C) | (_dea(draw) if dea else {})
        made |= {f"blocks.{layer}.{name}": tensor for name, tensor in more.items()}
    return made


def random_model(
    version: str, shape: Shape | None = None, seed: int = 0, dtype: torch.dtype = torch.float32
) -> StateDict:
    """An official state dict of a version.

    Args:
        version: "4" to "7b".
        shape: sizes; the default is small.
        seed: of the draws, which are made in float64.
        dtype: what the draws are rounded to.
    """
    shape = shape or Shape()
    blocks = {"4": _v4, "5.0": _v50, "5.1": _v51, "5.2": _v52, "6": _v6}
    if version in blocks:
        made = _model(_Draw(shape, seed), blocks[version])
    elif version == "7":
        made = random_rwkv7(shape.C, shape.N, shape.L, shape.V, seed, dtype=torch.float64)
    else:
        made = _deep(shape, seed, dea=version == "7b")
    return {name: tensor.to(dtype) for name, tensor in made.items()}
