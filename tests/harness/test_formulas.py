"""The lines about named tensors against the equations' own tables."""

from typing import Any

import pytest

from backends.base import Want
from backends.registry import EQUATIONS
from harness.diagnose import Clinic
from harness.formulas import formula, formulas
from harness.replay import Out
from tests.harness.shorts import short_names


@pytest.mark.parametrize("version", EQUATIONS)
def test_every_named_tensor_has_its_formula_in_the_order_of_evaluation(version: str) -> None:
    assert list(formulas(version)) == short_names(version)
    assert all(row.shape and row.formula and not row.formula.endswith(".") for row in formulas(version).values())


def test_a_version_has_its_own_lines_and_those_it_shares() -> None:
    assert formula("att.w", "6") == "exp(-exp(time_decay + w_raw)); the decay, in (0, 1)"
    assert "0.545" in formula("att.w")
    assert "one number a head" in formula("att.w", "5.1")
    assert formula("ffn.act", "5.0") == formula("ffn.act", "7b") == formula("ffn.act")
    assert formula("att.res", "7b") != formula("att.res", "7a") == formula("att.res")


def test_nothing_is_said_of_what_is_not_known() -> None:
    assert formula("no such tensor") == formula("att.w", "3") == ""
    assert formulas("3") == {}


def test_every_named_tensor_has_its_formula(clinic: Clinic) -> None:
    trace = clinic.truth.forward([1], want=Want(trace=("*",))).trace
    assert list(formulas()) == list(dict.fromkeys(Out(name, 0, 0, 0).short for name in _ordered(trace)))
    assert formula("no such tensor") == ""


def _ordered(trace: Any) -> list[str]:
    """As evaluated, of layer 1, which has every tensor."""
    return [name for name in trace if not name.startswith("blocks.") or name.startswith("blocks.1.")]
