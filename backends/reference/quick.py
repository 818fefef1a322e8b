"""Recurrences, and what reads their states, arranged to take less time: the equations' results, bit for bit.

A state (..., N value, N key) is multiplied by vectors at every token. The libraries beneath torch are fast at that
where a state's columns, not its rows, lie together in memory, and MKL sums in the same order; the rest is to keep
all that is added in one layout and in place. Honest runs, of which there are many, put these where the equations stand
in `QUICK`; the truth evaluates the equations as one reads them.
"""
# ruff: noqa: D103 - each is the equation that `QUICK` has it for

from collections.abc import Mapping

import torch
from torch import Tensor

from backends.reference import forms, v5, v7
from backends.reference.forms import column, row
from backends.reference.v7 import split
from backends.reference.walk import Equation


def flipped(S: Tensor) -> Tensor:
    """The transposed matrices (..., N key, N value), row by row in memory; nothing is moved where they lie so."""
    return S.mT.contiguous()


def answer(S: Tensor, x: Tensor) -> Tensor:
    """S x: matrices (..., N value, N key) times vectors (..., N key), which is (..., N value)."""
    return (x.unsqueeze(-2) @ flipped(S)).squeeze(-2)


def state_v7(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    w, kk, a, k, v = (split(z, heads) for z in (w, kk, a, k, v))
    S = flipped(state_prev)
    removed = kk.unsqueeze(-2) @ S
    S = S * w.unsqueeze(-1)
    S -= (kk * a).unsqueeze(-1) * removed
    S += k.unsqueeze(-1) * v.unsqueeze(-2)
    return S.mT


def state_matrix(state_prev: Tensor, w: Tensor, kk: Tensor, a: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    transition = torch.diag_embed(split(w, heads))
    transition -= column(kk, heads) * row(kk * a, heads)
    S = state_prev @ transition
    S += column(v, heads) * row(k, heads)
    return S


def y_v7(state: Tensor, r: Tensor, heads: int) -> Tensor:
    return answer(state, split(r, heads)).flatten(-2)


def state_v5(state_prev: Tensor, w: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    S = flipped(state_prev) * column(w, heads)
    S += column(k, heads) * row(v, heads)
    return S.mT


def y_v5(state_prev: Tensor, r: Tensor, bonus: Tensor, heads: int) -> Tensor:
    return answer(state_prev, split(r, heads)).flatten(-2) + bonus


QUICK: Mapping[Equation, Equation] = {
    v7.state: state_v7,
    v7.y: y_v7,
    v5.state: state_v5,
    v5.y: y_v5,
    forms.state_transposed: state_v7,
    forms.state_matrix: state_matrix,
    forms.state_columns: state_v5,
}
"""Equation -> the same in less time."""
