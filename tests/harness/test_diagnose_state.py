"""A WKV state in low precision is told by its entries, and nobody else is accused of one."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from backends.base import Want
from backends.registry import open_session, parse
from backends.weights import Weights
from harness.diagnose import Clinic
from harness.diagnosis import what, where
from tests.harness.patients import blind

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("traced", [True, False])
@pytest.mark.parametrize(
    ("subject", "held", "cause"),
    [
        ("honest:5?form=official&state=bf16@bf16", "bf16", ("state-bf16",)),
        ("honest:6?form=plain&state=bf16@bf16", "bf16", ("state-bf16",)),
        ("honest:7?state=f16@bf16", "f16", ()),
    ],
)
def test_a_state_in_low_precision_is_named_by_its_entries(
    clinic: Clinic, weights: Weights, subject: str, held: str, cause: tuple[str, ...], traced: bool
) -> None:
    with open_session(parse(subject), weights, 1) as session:
        found = clinic.examine(session if traced else blind(session), faults=not traced)
    assert (found.held, found.cause, found.tensor) == (held, cause, "att.state")
    assert found.astray
    assert "where float32 has 24; keep it in float32; compare with att.state =" in what(found)
    assert found.first is not None or where(found).startswith(f"The WKV state is held in {held}: every entry")


@pytest.mark.parametrize(("rounds", "held"), [(True, "bf16"), (False, "")])
def test_another_program_that_keeps_its_state_in_bf16_is_told_so(
    clinic: Clinic, weights: Weights, monkeypatch: pytest.MonkeyPatch, rounds: bool, held: str
) -> None:
    """torch-compile, which has nothing in common with the equations, with its state as it is and rounded."""
    session: Any = open_session(parse("torch-compile@bf16"), weights, 1)
    forward, export, take = session._forward, session.export_state, session.import_state

    def narrow(state: Any) -> Any:
        found = export(state)
        rounded = torch.from_numpy(found.wkv).bfloat16().float().numpy()
        return take(replace(found, wkv=rounded))

    def rounding(tokens: Any, state: Any, want: Want) -> Any:
        out = forward(tokens, state, want)
        return replace(out, state=narrow(out.state)) if want.state else out

    if rounds:
        monkeypatch.setattr(session, "_forward", rounding)
    found = clinic.examine(session)
    assert (found.held, found.astray) == (held, rounds)
    assert ("The WKV state is held in bf16" in where(found)) is rounds


@pytest.mark.parametrize("seed", [0, 3])
def test_the_official_semantics_with_a_float32_state_have_nothing_to_explain(
    clinic: Clinic, weights: Weights, seed: int
) -> None:
    with open_session(parse(f"honest:{seed}?form=official@bf16"), weights, 1) as session:
        found = clinic.examine(session)
    assert (found.astray, found.held, found.first) == (False, "", None)
