"""The optimisers: orthogonality, a quadratic, Adam as torch has it, and going on from a saved state."""

import pytest
import torch
from torch import Tensor

from backends.demo import optim
from backends.demo.optim import Optimiser, orthogonalised


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("shape", [(16, 16), (8, 32), (32, 8), (160, 640)])
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_singular_values_come_near_one_and_directions_stay(shape: tuple[int, int], scale: float) -> None:
    left, _, right = torch.linalg.svd(_random(*shape), full_matrices=False)
    values = torch.linspace(0.05, 1.0, min(shape))
    found = orthogonalised(left * (values * scale) @ right)
    assert found.shape == shape
    inner = left.mT @ found @ right.mT
    assert 0.6 < inner.diagonal().min() <= inner.diagonal().max() < 1.3
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 1e-4


def test_nothing_has_no_direction() -> None:
    assert torch.equal(orthogonalised(torch.zeros(4, 6)), torch.zeros(4, 6))


class Quadratic:
    """|W - A|² + |b - c|² from zero."""

    def __init__(self) -> None:
        self.W, self.b = torch.zeros(12, 6, requires_grad=True), torch.zeros(9, requires_grad=True)
        self._A, self._c = _random(12, 6), _random(9, seed=1)
        self.optimiser = Optimiser({"W": self.W}, {"b": self.b}, 0.2, 0.2)

    def cost(self) -> Tensor:
        return (self.W - self._A).square().sum() + (self.b - self._c).square().sum()

    def descend(self, steps: range, total: int = 150) -> None:
        for step in steps:
            self.cost().backward()  # type: ignore[no-untyped-call]
            self.optimiser.step(1 - step / total)


def test_a_quadratic_is_brought_to_its_bottom() -> None:
    found = Quadratic()
    first = found.cost().item()
    found.descend(range(150))
    assert found.cost().item() < 1e-3 * first
    assert found.W.grad is None
    assert found.b.grad is None


def test_going_on_from_a_state_is_bit_by_bit_the_same() -> None:
    whole, first, second = Quadratic(), Quadratic(), Quadratic()
    whole.descend(range(20))
    first.descend(range(8))
    with torch.no_grad():
        second.W.copy_(first.W)
        second.b.copy_(first.b)
    second.optimiser.load(first.optimiser.state())
    first.descend(range(8, 9))  # what was loaded is a copy
    second.descend(range(8, 20))
    assert torch.equal(second.W, whole.W)
    assert torch.equal(second.b, whole.b)


def test_vectors_follow_adam() -> None:
    mine, theirs = _random(7).requires_grad_(), _random(7).requires_grad_()
    optimiser = Optimiser({}, {"p": mine}, 0.0, 0.01)
    adam = torch.optim.Adam([theirs], lr=0.01, betas=optim.BETAS, eps=optim.EPS)
    for step in range(10):
        mine.grad, theirs.grad = _random(7, seed=step), _random(7, seed=step)
        optimiser.step(1.0)
        adam.step()
    torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-7)


def test_the_first_step_of_a_matrix_has_the_length_of_its_rate() -> None:
    for shape, longer in (((8, 32), 1.0), ((32, 8), 2.0)):
        p = torch.zeros(shape, requires_grad=True)
        p.grad = _random(*shape)
        Optimiser({"p": p}, {}, 0.1, 0.0).step(0.5)
        torch.testing.assert_close(p.detach(), -0.05 * longer * orthogonalised(_random(*shape)), rtol=1e-3, atol=1e-6)


def test_a_name_s_ending_decides_its_rate() -> None:
    ends = {"a.emb.weight": 0.3, "b.w0": 0.1, "head.weight": 0.2}
    params = {name: torch.zeros(3, requires_grad=True) for name in ends}
    optimiser = Optimiser({}, params, 0.0, 0.1, (("emb.weight", 0.3), ("head.weight", 0.2)))
    for p in params.values():
        p.grad = torch.tensor([1.0, -5.0, 0.5])
    optimiser.step(1.0)
    for name, rate in ends.items():  # Adam's first step has the length of the rate, whatever the gradient's is
        torch.testing.assert_close(params[name].detach(), -rate * torch.tensor([1.0, -1.0, 1.0]))
