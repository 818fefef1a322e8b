"""Optimisers of the training: orthogonalised momentum for matrices, Adam for everything else.

Matrices inside the blocks follow Muon (Jordan et al., 2024): the momentum is brought near the closest orthogonal
matrix by a quintic Newton-Schulz iteration, so that every direction learns at the same rate.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic x -> a x + b x³ + c x⁵, which drives singular values in (0, 1] to about 1 in five rounds."""

MOMENTUM = 0.95
BETAS = (0.9, 0.98)
EPS = 1e-8


def orthogonalised(G: Tensor, rounds: int = 5) -> Tensor:
    """G (rows, columns) with all singular values brought to about 1."""
    a, b, c = _COEFFICIENTS
    X = G if G.shape[0] <= G.shape[1] else G.mT
    X = X / (X.norm() + 1e-7)
    for _ in range(rounds):
        A = X @ X.mT
        X = a * X + torch.addmm(A, A, A, beta=b, alpha=c) @ X
    found: Tensor = X if G.shape[0] <= G.shape[1] else X.mT
    return found


class Optimiser:
    """Both rules over named parameters.

    Args:
        matrices: name -> parameter, updated by orthogonalised momentum.
        others: name -> parameter, updated by Adam.
        matrix_rate, rate: peak learning rates of the two; `rates` overrides the second by name's ending.
    """

    def __init__(
        self,
        matrices: dict[str, Tensor],
        others: dict[str, Tensor],
        matrix_rate: float,
        rate: float,
        rates: Iterable[tuple[str, float]] = (),
    ) -> None:
        self._matrices, self._others = matrices, others
        self._matrix_rate = matrix_rate
        self._rates = {n: next((r for end, r in rates if n.endswith(end)), rate) for n in others}
        self._momentum = {n: torch.zeros_like(p) for n, p in matrices.items()}
        self._mean = {n: torch.zeros_like(p) for n, p in others.items()}
        self._square = {n: torch.zeros_like(p) for n, p in others.items()}
        self._steps = 0

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Update every parameter from its gradient, which is then forgotten.

        Args:
            share: of the peak learning rates, 0 to 1.
        """
        self._steps += 1
        for name, p in self._matrices.items():
            assert p.grad is not None
            momentum = self._momentum[name].lerp_(p.grad, 1 - MOMENTUM)
            update = orthogonalised(torch.lerp(p.grad, momentum, MOMENTUM))
            p.add_(update, alpha=-share * self._matrix_rate * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)
            p.grad = None
        for name, p in self._others.items():
            assert p.grad is not None
            self._adam(name, p, p.grad, share * self._rates[name])
            p.grad = None

    def _adam(self, name: str, p: Tensor, gradient: Tensor, rate: float) -> None:
        mean = self._mean[name].lerp_(gradient, 1 - BETAS[0])
        square = self._square[name].lerp_(gradient.square(), 1 - BETAS[1])
        unbiased = (square / (1 - BETAS[1] ** self._steps)).sqrt_().add_(EPS)
        p.addcdiv_(mean, unbiased, value=-rate / (1 - BETAS[0] ** self._steps))

    def state(self) -> dict[str, Any]:
        """Everything a resumed run needs."""
        return {"steps": self._steps, "momentum": self._momentum, "mean": self._mean, "square": self._square}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned."""
        self._steps = state["steps"]
        for mine, theirs in ((self._momentum, "momentum"), (self._mean, "mean"), (self._square, "square")):
            for name, tensor in mine.items():
                tensor.copy_(state[theirs][name])
