"""The designed checkpoint: a small RWKV-7 in which every mechanism matters. Those of other versions follow it.

A trained checkpoint shows how a model is used and hides mistakes: its low-rank terms are small, its
norms never meet their epsilons, one head hides what happens between heads. This one is made so that
each mechanism moves the logits far above the rounding floor: `python -m harness.margins` shows how far.
All values are exact in bfloat16, so that a file in any number format of 16 bits or more holds the same model,
but for the faintest in float16.
"""

import math

import torch
from torch import Tensor

V, C, L, N = 256, 128, 3, 64  # bytes as tokens; N = 64 because many ports fix the head size
H, F = C // N, 4 * C
RANKS = {"w": 16, "a": 12, "v": 8, "g": 24}  # all different: a swapped pair has the wrong shape
MIXES = ("r", "w", "k", "v", "a", "g")

FAINT = 2.0**-8  # of everything that is added to the stream: its variance stays near the LayerNorm epsilon
WHISPER = 0.01  # of one head's value rows: its output variance is near the group-norm epsilon
SHORT_KEY = 7e-4  # of one head's k_k: its keys are so short that the epsilons which ports put there matter, 1e-12 not
FAINT_ROWS = 4  # every fourth embedding is faint, so that ln0's epsilon matters


def tensors(seed: int = 0) -> dict[str, Tensor]:
    """The checkpoint under official names and in official file shapes.

    Args:
        seed: of the random draws; 0 is the published one.

    Returns:
        Official name -> float32 tensor whose values are exact in bfloat16.
    """
    draw = Draw(seed)
    made = {"emb.weight": draw.normal(V, C), "head.weight": draw.normal(V, C) / math.sqrt(C)}
    made |= draw.norm("blocks.0.ln0", scale=FAINT) | draw.norm("ln_out")
    for layer in range(L):
        made |= _block(draw, layer)
    _near_epsilons(made)
    return {name: tensor.bfloat16().float() for name, tensor in made.items()}


class Draw:
    """Seeded draws; always in the same order, so that a seed names one checkpoint."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int) -> Tensor:
        """Standard normal."""
        return torch.randn(*shape, generator=self.generator)

    def uniform(self, *shape: int) -> Tensor:
        """Uniform in [0, 1)."""
        return torch.rand(*shape, generator=self.generator)

    def norm(self, name: str, scale: float = 1.0) -> dict[str, Tensor]:
        """Weight and bias of a norm over C."""
        weight, bias = 1 + 0.1 * self.normal(C), 0.1 * self.normal(C)
        return {f"{name}.weight": scale * weight, f"{name}.bias": scale * bias}

    def pair(self, name: str, rank: int) -> dict[str, Tensor]:
        """A low-rank pair whose product is of order 1 and whose middle reaches the bend of tanh and sigmoid."""
        return {
            f"{name}1": 1.5 * self.normal(C, rank) / math.sqrt(C),
            f"{name}2": self.normal(rank, C) / math.sqrt(rank),
        }

    def linear(self, rows: int, columns: int) -> Tensor:
        """A matrix (out, in) that keeps the size of what it is applied to."""
        return self.normal(rows, columns) / math.sqrt(columns)


def _block(draw: Draw, layer: int) -> dict[str, Tensor]:
    block = f"blocks.{layer}."
    made = draw.norm(block + "ln1") | draw.norm(block + "ln2") | draw.norm(block + "att.ln_x")
    made |= {f"{block}att.x_{mix}": draw.uniform(1, 1, C) for mix in MIXES}
    for name, rank in RANKS.items():
        if layer or name != "v":  # layer 0 has no value residual
            made |= draw.pair(f"{block}att.{name}", rank)
    made |= _biases(draw, block, layer)
    made[block + "att.k_k"] = 0.8 + 0.2 * draw.normal(1, 1, C)
    made[block + "att.k_a"] = 1 + 0.1 * draw.normal(1, 1, C)
    made[block + "att.r_k"] = 0.3 * draw.normal(H, N) / math.sqrt(N) * 4
    for name in ("receptance", "key", "value", "output"):
        made[f"{block}att.{name}.weight"] = draw.linear(C, C)
    made[block + "ffn.x_k"] = draw.uniform(1, 1, C)
    made[block + "ffn.key.weight"] = draw.linear(F, C)
    made[block + "ffn.value.weight"] = draw.linear(C, F)
    return made


def _biases(draw: Draw, block: str, layer: int) -> dict[str, Tensor]:
    """w0 from slow to fast decays in every head; a0 and v0 across the sigmoid."""
    ladder = torch.linspace(-7.0, 4.0, N)[torch.randperm(N, generator=draw.generator)].repeat(H)
    made = {block + "att.w0": ladder.view(1, 1, C), block + "att.a0": 1.5 * draw.normal(1, 1, C)}
    if layer:
        made[block + "att.v0"] = 1.5 * draw.normal(1, 1, C)
    return made


def _near_epsilons(made: dict[str, Tensor]) -> None:
    """Bring what the norms divide by near their epsilons, each in one place at least."""
    made["emb.weight"][::FAINT_ROWS] *= FAINT
    for layer in range(L):
        made[f"blocks.{layer}.att.output.weight"] *= FAINT
        made[f"blocks.{layer}.ffn.value.weight"] *= FAINT
    made["blocks.1.att.value.weight"][N:] *= WHISPER
    made["blocks.1.att.v0"][..., N:] = -6.0  # or the value residual would drown the whisper
    made["blocks.2.att.k_k"][..., :N] *= SHORT_KEY
    made["blocks.2.att.k_k"][..., N:] = 0  # keys without any norm: they must give zero, not NaN
