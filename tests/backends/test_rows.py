"""Batches whose rows follow different equations."""

from collections.abc import Callable

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backends.base import Want
from backends.checkpoint import open_checkpoint
from backends.reference import rows
from backends.reference.rows import ByRow, each, shared, together
from backends.reference.session import EquationSession
from backends.reference.walk import Equation, parameters


def plain(x: Tensor, k_k: Tensor) -> Tensor:
    return x * k_k


def negative(x: Tensor, k_k: Tensor) -> Tensor:
    return -x * k_k


def doubled(x: Tensor, k_k: Tensor) -> Tensor:
    return 2 * x * k_k


FORMS: list[Equation] = [plain, negative, doubled]
CHOICES = st.lists(st.sampled_from(FORMS), min_size=1, max_size=9)


def chosen(forms: list[Equation]) -> Callable[[int], list[Equation]]:
    return lambda B: forms[:B]


@given(CHOICES)
def test_every_row_by_its_own(forms: list[Equation]) -> None:
    B = len(forms)
    x, k_k = torch.randn(B, 3, 4), torch.randn(4)
    want = torch.cat([form(x[i : i + 1], k_k) for i, form in enumerate(forms)])
    equation = ByRow(plain, chosen(forms))
    for _ in range(2):  # what was worked out about a batch is kept
        assert torch.equal(equation(x=x, k_k=k_k), want)
    assert parameters(equation) == ("x", "k_k")


@given(CHOICES, st.data())
def test_shares_are_a_partition_in_which_all_agree(forms: list[Equation], data: st.DataObject) -> None:
    B = len(forms)
    others = data.draw(st.lists(st.sampled_from(FORMS), min_size=B, max_size=B))
    table: dict[str, Equation] = {"a": ByRow(plain, chosen(forms)), "b": ByRow(plain, chosen(others)), "c": plain}
    found = list(shared(table, B))
    assert sorted(torch.cat([at for at, _ in found]).tolist()) == list(range(B))
    for at, own in found:
        for row in at.tolist():
            assert own == {"a": forms[row], "b": others[row], "c": plain}
    assert len(found) == len(set(zip(forms, others, strict=True)))
    assert torch.equal(together([(at, at * 10) for at, _ in found], B), torch.arange(B) * 10)


def test_an_equation_within_another() -> None:
    inner = ByRow(plain, lambda B: [(plain, negative)[i % 2] for i in range(B)])
    rest = iter(each(inner, 3))
    assert list(rest) == [plain, negative, plain]
    assert each(plain, 2) == [plain, plain]


def test_weights_are_not_cut() -> None:
    equation = ByRow(plain, lambda B: [(plain, negative)[i % 2] for i in range(B)])
    square = torch.arange(16.0).view(4, 4)
    found = equation(x=torch.ones(4, 1, 4), k_k=square[0])
    assert torch.equal(found[:, 0], torch.stack([square[0], -square[0], square[0], -square[0]]))
    assert not rows._has_rows(square, recurrence=False)
    assert rows._has_rows(square, recurrence=True)


def test_a_recurrence_by_row_is_the_row_alone() -> None:
    """Rows of different forms walk apart and do not touch; 70 tokens, so that blocks and rounding blocks end inside."""
    weights = open_checkpoint("conformance")
    ids = np.random.default_rng(0).integers(0, 256, size=(5, 70))

    def decays(factor: float) -> Equation:
        def state(state_prev: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
            k, v = (z.view(len(z), heads, -1) for z in (k, v))
            return factor * state_prev + v.unsqueeze(-1) * k.unsqueeze(-2)

        return state

    one, two = decays(0.5), decays(0.9)
    mixed = ByRow(one, lambda B: [(one, two)[i % 2] for i in range(B)])
    want = Want("all", state=True, trace=("blocks.1.att.state",))
    session = {
        name: EquationSession(weights, "x", "f64", overrides={"blocks.*.att.state": equation})
        for name, equation in (("one", one), ("two", two), ("mixed", mixed))
    }
    out = session["mixed"].forward(ids, want=want)
    assert out.logits is not None
    for row in range(5):
        own = session[("one", "two")[row % 2]]
        alone = own.forward(ids[row], want=want)
        assert alone.logits is not None
        wkv = session["mixed"].export_state(out.state).wkv[:, row]
        pairs = {
            "logits": (out.logits[row], alone.logits[0]),
            "states": (out.trace["blocks.1.att.state"][row], alone.trace["blocks.1.att.state"][0]),
            "what is carried on": (wkv, own.export_state(alone.state).wkv[:, 0]),
        }
        for what, (mine, other) in pairs.items():
            np.testing.assert_allclose(mine, other, rtol=0, atol=1e-11, err_msg=what)


def handed_on(x: Tensor) -> Tensor:
    return x


def one_for_all(x: Tensor) -> Tensor:
    return x.new_ones(1).expand_as(x)


@given(st.sampled_from([handed_on, one_for_all, torch.Tensor.neg]), st.integers(0, 9))
def test_where_most_rows_agree_the_others_are_put_in_and_nothing_is_written_to(common: Equation, other: int) -> None:
    def twice(x: Tensor) -> Tensor:
        return 2 * x

    def most(x: Tensor) -> Tensor:
        return common(x)

    equation = ByRow(most, lambda B: [twice if row == other else most for row in range(B)])
    x = torch.randn(10, 3, 4)
    before = x.clone()
    got = equation(x=x)
    assert torch.equal(x, before)
    want = common(x).clone()
    want[other] = 2 * x[other]
    assert torch.equal(got, want)
