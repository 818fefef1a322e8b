"""The designed checkpoints of RWKV-7a and 7b: the one of RWKV-7 with DeepEmbed, and with DEA.

What 7a and 7b add is drawn behind everything that they share with RWKV-7, so that these tensors are the same in all
three. All values are exact in bfloat16.
"""

import math

from torch import Tensor

from backends.reference import conformance
from backends.reference.conformance import FAINT, C, Draw, F, L, V

DEEP, WIDE, LOW = 32, 256, 32  # constants of the architecture: DeepEmbed's square, DEA's head, its low-rank pairs
LOUD = 4.0  # of the norms of q and k: their products reach the bend of tanh
WHISPER = 2.0**-7  # of one layer's values, so that the epsilon behind them matters


def tensors(version: str, seed: int = 0) -> dict[str, Tensor]:
    """The checkpoint under official names and in official file shapes.

    Args:
        version: "7a" or "7b".
        seed: of the random draws; 0 is the published one.

    Returns:
        Official name -> float32 tensor whose values are exact in bfloat16.
    """
    made, draw = conformance.tensors(seed), Draw(seed + (1 << 40))
    for layer in range(L):
        made |= {f"blocks.{layer}.ffn.{name}": tensor for name, tensor in _deep_embed(draw).items()}
    for layer in range(L) if version == "7b" else ():
        made |= {f"blocks.{layer}.qkv.{name}": tensor for name, tensor in _dea(draw, layer).items()}
    return {name: tensor.bfloat16().float() for name, tensor in made.items()}


def _deep_embed(draw: Draw) -> dict[str, Tensor]:
    """Both halves of the token's matrix are of order 1, although the embedding is faint."""
    return {
        "s_emb.weight": 0.7 * draw.normal(V, DEEP * DEEP) / math.sqrt(DEEP),
        "s_emb_x.weight": draw.linear(DEEP * DEEP, C) / FAINT / math.sqrt(DEEP),
        "s1": draw.linear(DEEP, C).mT.contiguous(),
        "s2": draw.linear(F, DEEP).mT.contiguous(),
        "s0": 1 + 0.3 * draw.normal(1, 1, F),
    }


def _dea(draw: Draw, layer: int) -> dict[str, Tensor]:
    """Queries and keys are as faint as the stream, beside the epsilons of their norms; what is added is faint again."""
    values = WHISPER if layer == 1 else 1.0
    made = {
        "qq.weight": draw.linear(WIDE, C),
        "k1": draw.linear(LOW, C).mT.contiguous(),
        "k2": draw.linear(WIDE, LOW).mT.contiguous(),
        "v1": 1.5 * draw.linear(LOW, C).mT.contiguous() / FAINT,
        "v2": draw.linear(C, LOW).mT.contiguous(),
        "k_emb.weight": draw.normal(V, WIDE),
        "k_emb_x.weight": draw.linear(WIDE, C) / FAINT,
        "v_emb.weight": values * draw.normal(V, C),
        "v_emb_x.weight": values * draw.linear(C, C) / FAINT,
        "x_q": draw.uniform(1, 1, WIDE),
        "x_k": draw.uniform(1, 1, WIDE),
        "x_v": draw.uniform(1, 1, C),
    }
    for name, size, scale in (("lnq", WIDE, LOUD), ("lnk", WIDE, LOUD), ("lnv", C, FAINT)):
        made[f"{name}.weight"] = scale * (1 + 0.1 * draw.normal(size))
        made[f"{name}.bias"] = scale * 0.1 * draw.normal(size)
    return made
