"""The designed checkpoints of RWKV-5.2 and RWKV-6: small models in which every mechanism matters.

They follow `conformance`, the one of RWKV-7: everything that joins the stream is faint, so that the norms meet their
epsilons; decays run from nearly 1 down to nearly 0 in every head; one head whispers; low-rank pairs reach the bend of
tanh. All values are exact in bfloat16.
"""

import math

import torch
from torch import Tensor

from backends.reference.conformance import FAINT, FAINT_ROWS, C, Draw, H, L, N, V

F = 448  # 3.5 C, rounded down to a multiple of 32
RANK_MIX, RANK_DECAY = 12, 20
SQUARE = ("receptance", "key", "value", "gate", "output")
WHISPER = 0.004  # of one head's value rows; states grow here, for nothing is removed


def tensors(version: str, seed: int = 0) -> dict[str, Tensor]:
    """The checkpoint under official names and in official file shapes.

    Args:
        version: "5.2" or "6".
        seed: of the random draws; 0 is the published one.

    Returns:
        Official name -> float32 tensor whose values are exact in bfloat16.
    """
    draw = Draw(seed)
    made = {"emb.weight": draw.normal(V, C), "head.weight": draw.normal(V, C) / math.sqrt(C)}
    made |= draw.norm("blocks.0.ln0", scale=FAINT) | draw.norm("ln_out")
    for layer in range(L):
        block = f"blocks.{layer}."
        made |= draw.norm(block + "ln1") | draw.norm(block + "ln2") | draw.norm(block + "att.ln_x")
        made |= _matrices(draw, block)
        made |= {block + name: tensor for name, tensor in _SHIFTS[version](draw).items()}
    _near_epsilons(made)
    return {name: tensor.bfloat16().float() for name, tensor in made.items()}


def _matrices(draw: Draw, block: str) -> dict[str, Tensor]:
    made = {f"{block}att.{name}.weight": draw.linear(C, C) for name in SQUARE}
    made[block + "att.time_faaaa"] = 0.5 * draw.normal(H, N)
    made[block + "ffn.key.weight"] = 1.5 * draw.linear(F, C)
    made[block + "ffn.value.weight"] = draw.linear(C, F)
    made[block + "ffn.receptance.weight"] = 1.5 * draw.linear(C, C)
    return made


def _eagle(draw: Draw) -> dict[str, Tensor]:
    """The token shift and the decay of RWKV-5.2."""
    made = {f"att.time_mix_{mix}": draw.uniform(1, 1, C) for mix in "kvrg"}
    made |= {f"ffn.time_mix_{mix}": draw.uniform(1, 1, C) for mix in "kr"}
    made["att.time_decay"] = _ladder(draw).view(H, N)
    return made


def _finch(draw: Draw) -> dict[str, Tensor]:
    """The token shift and the decay of RWKV-6; the five mixes have pairs of their own, in the order w k v r g."""
    made = {f"att.time_maa_{mix}": draw.uniform(1, 1, C) for mix in "xwkvrg"}
    made |= {f"ffn.time_maa_{mix}": draw.uniform(1, 1, C) for mix in "kr"}
    made["att.time_maa_w1"] = 1.5 * draw.linear(5 * RANK_MIX, C).mT.contiguous()
    made["att.time_maa_w2"] = 0.5 * draw.normal(5, RANK_MIX, C) / math.sqrt(RANK_MIX)
    made["att.time_decay"] = _ladder(draw).view(1, 1, C)
    made["att.time_decay_w1"] = 1.5 * draw.linear(RANK_DECAY, C).mT.contiguous()
    made["att.time_decay_w2"] = draw.normal(RANK_DECAY, C) / math.sqrt(RANK_DECAY)
    return made


_SHIFTS = {"5.2": _eagle, "6": _finch}


def _ladder(draw: Draw) -> Tensor:
    """Decay exponents from slow to fast in every head: w from 0.999 down to 0.0006."""
    ladder = torch.linspace(-7.0, 2.0, N)
    return torch.cat([ladder[torch.randperm(N, generator=draw.generator)] for _ in range(H)])


def _near_epsilons(made: dict[str, Tensor]) -> None:
    """Bring what the norms divide by near their epsilons, each in one place at least."""
    made["emb.weight"][::FAINT_ROWS] *= FAINT
    for layer in range(L):
        made[f"blocks.{layer}.att.output.weight"] *= FAINT
        made[f"blocks.{layer}.ffn.value.weight"] *= FAINT
    made["blocks.1.att.value.weight"][N:] *= WHISPER
