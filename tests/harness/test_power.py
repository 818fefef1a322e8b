"""Honest programs pass the strict profile, and planted mistakes fail it."""

from typing import Any

import pytest
import torch
from torch.nn.functional import layer_norm

from backends.reference import v7
from backends.reference.session import EquationSession
from reports.record import Outcome
from tests.harness import fakes
from tests.harness.stub import measured, small_suites, verdict_of


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_suites(monkeypatch)


def test_honest_programs_pass_strict() -> None:
    """Five seeds a format, other ones than the envelope's."""
    subjects = [f"honest:{seed}@{dtype}" for dtype in ("f32", "bf16") for seed in range(1, 6)]
    record = measured(*subjects, suites=("logits", "distribution", "stepwise", "generation"), runs=12, seed=100)
    assert [(v.subject, v.criterion, v.case, v.detail) for v in record.verdicts if v.outcome is not Outcome.PASS] == []
    assert len({v.subject for v in record.verdicts}) == 10


def value_axis(state_prev: Any, w: Any, kk: Any, a: Any, k: Any, v: Any, heads: int) -> Any:
    """The decay multiplies rows instead of columns."""
    w, kk, a, k, v = (v7.split(z, heads) for z in (w, kk, a, k, v))
    removed = (state_prev @ kk.unsqueeze(-1)) * (kk * a).unsqueeze(-2)
    return state_prev * w.unsqueeze(-1) - removed + v.unsqueeze(-1) * k.unsqueeze(-2)


def modified_key(k_raw: Any, k_k: Any, k_a: Any, xa: Any, a0: Any, a1: Any, a2: Any, heads: int) -> Any:
    """The removal key is made from the modified key."""
    a = (a0 + xa @ a1 @ a2).sigmoid()
    return v7.kk(v7.k(k_raw, a, k_a), k_k, heads)


def old_state(state: Any, r: Any, heads: int) -> Any:
    """Read-out before the write, as far as one block of tokens shows it."""
    return v7.y(torch.cat([torch.zeros_like(state[:, :1]), state[:, :-1]], dim=1), r, heads)


def soft_ln1(x: Any, ln1_weight: Any, ln1_bias: Any) -> Any:
    return layer_norm(x, x.shape[-1:], ln1_weight, ln1_bias, 1e-6)


def soft_ln2(x: Any, ln2_weight: Any, ln2_bias: Any) -> Any:
    return layer_norm(x, x.shape[-1:], ln2_weight, ln2_bias, 1e-6)


def soft_ln_x(y: Any, ln_x_weight: Any, ln_x_bias: Any, heads: int) -> Any:
    y = v7.split(y, heads)
    return layer_norm(y, y.shape[-1:], eps=1e-5).flatten(-2) * ln_x_weight + ln_x_bias


FAULTS: dict[str, dict[str, Any]] = {
    "decay-on-the-value-axis": {"*.att.state": value_axis},
    "no-tanh-in-w": {"*.att.w_lora": lambda xw, w1: xw @ w1},
    "kk-from-the-modified-key": {"*.att.kk": modified_key},
    "no-value-residual": {"*.att.v": lambda v_raw: v_raw},
    "no-bonus": {"*.att.bonus": lambda r: r * 0},
    "reads-the-old-state": {"*.att.y": old_state},
    "layer-norm-eps-1e-6": {"*.ln1": soft_ln1, "*.ln2": soft_ln2},
    "group-norm-eps-1e-5": {"*.ln_x": soft_ln_x},
}


def test_planted_faults_fail_strict_in_f32() -> None:
    """Each by three orders of magnitude: the designed checkpoint makes every mechanism matter."""

    def kind(overrides: dict[str, Any]) -> Any:
        return lambda weights: EquationSession(weights, "faulty", "f32", 1, overrides=overrides)

    with fakes.registered(**{name: kind(overrides) for name, overrides in FAULTS.items()}):
        record = measured(*FAULTS, suites=("logits", "distribution", "stepwise"), runs=4)
    for name in FAULTS:
        assert not {v.outcome for v in record.verdicts if v.subject == name} & {Outcome.ERROR, Outcome.UNSUPPORTED}
        for criterion in ("logits.rms", "distribution.kl_mean", "stepwise.rms", "stepwise.state_rel_rms"):
            found = verdict_of(record, f"strict/{criterion}", name)
            assert found.outcome is Outcome.FAIL, (name, criterion)
            assert found.value is not None
            assert found.bound is not None
        worst = verdict_of(record, "strict/logits.rms", name)
        assert (worst.value or 0) > 1000 * (worst.bound or 0), name
