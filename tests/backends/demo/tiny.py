"""A training so small that a step takes milliseconds, and the recurrence written down token by token."""

import torch
from torch import Tensor

from backends.demo import network
from backends.demo.initial import Shape
from backends.demo.training import Plan

SHAPE = Shape(C=16, L=2, N=8, F=32, ranks=(4, 5, 6, 7))
FILES = tuple(
    f"import os\n\n\ndef function_{i}(x):\n    return x + {i}\n\n\nclass Kind{i}:\n    pass\n".encode() * 3
    for i in range(6)
)
"""Six sources of 228 bytes."""

PLAN = Plan(
    shape=SHAPE, steps=5, finish=3, rows=2, tokens=32, carried=2, finish_carried=2, warm=2, dtype="f32", scan="chunks",
    compile=False,
)  # fmt: skip

NAMES = ("r", "log_w", "k", "v", "kk", "a", "S")
"""What the recurrence takes, in its order."""


def inputs(B: int, T: int, H: int, N: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    """Random inputs of the recurrence as a network makes them: decays over their whole range, kk of norm 1."""
    draw = torch.Generator().manual_seed(seed)
    r, w, k, v, kk, a = (torch.randn(B, T, H, N, generator=draw, dtype=torch.float64) for _ in range(6))
    S = torch.randn(B * H, N, N, generator=draw, dtype=torch.float64)
    log_w = -(0.5**0.5) * torch.sigmoid(3 * w)
    found = (r, log_w.clamp_min(-0.606), k, v, torch.nn.functional.normalize(kk, dim=-1), a.sigmoid(), S)
    return [z.to(dtype) for z in found]


def sequential(
    r: Tensor, log_w: Tensor, k: Tensor, v: Tensor, kk: Tensor, a: Tensor, S: Tensor
) -> tuple[Tensor, Tensor]:
    """S <- S (diag(w) - kk (kk a)ᵀ) + v kᵀ, y = S r, as the paper has it."""
    B, T, H, N = r.shape
    S, ys = S.view(B, H, N, N), []
    for t in range(T):
        transition = torch.diag_embed(log_w[:, t].exp()) - kk[:, t, :, :, None] * (kk * a)[:, t, :, None, :]
        S = S @ transition + v[:, t, :, :, None] * k[:, t, :, None, :]
        ys.append((S @ r[:, t, :, :, None]).squeeze(-1))
    return torch.stack(ys, dim=1), S.reshape(B * H, N, N)


def chunks(*z: Tensor, L: int = network.CHUNK) -> tuple[Tensor, Tensor]:
    """`network.wkv` of a list of inputs."""
    r, log_w, k, v, kk, a, S = z
    return network.wkv(r, log_w, k, v, kk, a, S, L)


def gradients(results: tuple[Tensor, Tensor], leaves: list[Tensor]) -> list[Tensor]:
    """Of a fixed random function of both results."""
    y, S = results
    draw = torch.Generator().manual_seed(1)
    weigh = [torch.randn(z.shape, generator=draw, dtype=torch.float64).to(z.dtype) for z in (y, S)]
    return list(torch.autograd.grad((y * weigh[0]).sum() + (S * weigh[1]).sum(), leaves))


def far(got: Tensor, want: Tensor) -> float:
    """The largest difference as a share of the largest value; shapes are equal."""
    assert got.shape == want.shape
    return ((got - want).abs().max() / want.abs().max()).item()
