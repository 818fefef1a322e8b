"""Diagnosis: the right mistake is named, and nobody is accused of what he did not do."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backends import registry
from backends.base import Want
from backends.errors import BackendError
from backends.fault_list import FAULTS, PAIRS
from backends.reference.session import EquationSession
from backends.registry import open_session, parse
from backends.weights import Weights
from harness.diagnose import EDGE, TOKENS, Clinic
from harness.diagnosis import sentences, what, where
from harness.formulas import formula
from tests.harness.conftest import Command
from tests.harness.outside import MISTAKES
from tests.harness.patients import blind, outsider, port

pytestmark = pytest.mark.usefixtures("one_thread")


def shown() -> list[str]:
    kinds = ("equation", "batch", "carry")
    return [name for name, entry in FAULTS.items() if entry.kind in kinds and "7" in entry.versions]


def test_from_f32_logits_the_right_fault_comes_first(clinic: Clinic, weights: Weights) -> None:
    first, explained = [], []
    for name in shown():
        line = clinic.examine(blind(port(weights, name))).lineup
        assert line is not None
        first += [name] if line.best and line.best.names == (name,) else []
        explained += [name] if line.explained else []
    assert len(first) >= 0.95 * len(shown()), set(shown()) - set(first)
    assert len(explained) >= 0.95 * len(shown()), set(shown()) - set(explained)


def test_from_bf16_logits_what_can_be_seen_comes_first(clinic: Clinic, weights: Weights) -> None:
    seen, wrong = 0, []
    for name in shown()[::6]:
        found = clinic.examine(blind(port(weights, name, dtype="bf16")))
        assert found.lineup is not None
        seen += found.lineup.astray
        if found.cause != (name,) and (found.lineup.astray or found.cause):
            wrong.append((name, found.cause))
    assert seen >= 12
    assert wrong == []


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_outside_the_catalogue_is_none_of_the_known(clinic: Clinic, weights: Weights, name: str) -> None:
    found = clinic.examine(blind(outsider(weights, name)))
    assert found.cause == ()
    assert found.astray
    assert what(found).startswith("None of the known mistakes explains it")
    assert what(found).endswith("record named tensors: a trace tells which one is wrong.")


@pytest.mark.parametrize("name", ["gate-through-silu", "static-value-residual", "decay-squared"])
def test_a_trace_names_the_tensor_of_a_mistake_outside_the_catalogue(
    clinic: Clinic, weights: Weights, name: str
) -> None:
    found = clinic.examine(outsider(weights, name))
    (pattern,) = MISTAKES[name]
    assert found.cause == ()
    assert found.tensor == pattern.split(".", 2)[2]
    assert formula(found.tensor) in what(found)


@pytest.mark.parametrize("pair", PAIRS[:4] + PAIRS[5:7], ids="+".join)
def test_a_known_pair_is_named(clinic: Clinic, weights: Weights, pair: tuple[str, str]) -> None:
    assert set(clinic.examine(blind(port(weights, *pair))).cause) == set(pair)


def test_an_unknown_pair_is_found_by_combining(clinic: Clinic, weights: Weights) -> None:
    pair = ("bonus-missing", "out-no-gate")
    assert clinic.examine(blind(port(weights, *pair))).cause == ()
    assert set(clinic.examine(blind(port(weights, *pair)), thorough=True).cause) == set(pair)


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
@pytest.mark.parametrize(
    ("name", "layer", "token"),
    [("w-v6", 0, 0), ("v-residual-previous", 2, 0), ("edge-state-transposed", 0, EDGE), ("ffn-silu", 0, 0)],
)
def test_a_trace_names_tensor_layer_token_and_cause(
    clinic: Clinic, weights: Weights, name: str, layer: int, token: int, dtype: str
) -> None:
    found = clinic.examine(port(weights, name, dtype=dtype))
    assert found.first is not None
    assert (found.first.short, found.first.layer, found.first.token) == (FAULTS[name].tensor, layer, token)
    assert found.cause == (name,)
    assert found.data()["sentences"][0].startswith(
        f"Layer {layer}, token {token}: `{FAULTS[name].tensor}` is the first"
    )


def test_a_trace_alone_names_the_cause_by_replay(clinic: Clinic, weights: Weights) -> None:
    found = clinic.examine(port(weights, "k-a-plus", dtype="bf16"), faults=False)
    assert (found.cause, found.by, found.lineup) == (("k-a-plus",), "replay", None)
    assert "planted, it gives that tensor to within" in what(found)


def test_a_division_by_zero_is_met_again(clinic: Clinic, weights: Weights) -> None:
    found = clinic.examine(port(weights, "kk-no-floor"))
    assert found.cause == ("kk-no-floor",)
    assert "is not finite although its inputs are" in where(found)
    logits = clinic.examine(blind(port(weights, "kk-no-floor")))
    assert "not finite from the first token on" in where(logits)
    assert logits.cause == ()


def test_rows_that_leak_into_each_other_are_seen_though_every_tensor_is_right(clinic: Clinic, weights: Weights) -> None:
    found = clinic.examine(port(weights, "state-batch-leak"))
    assert found.first is None
    assert found.cause == ("state-batch-leak",)
    assert where(found).startswith("All ")


@pytest.mark.parametrize("name", ["edge-state-bf16", "edge-shift", "edge-layers"])
def test_a_mistake_between_two_calls_is_named_by_replay_in_bf16(clinic: Clinic, weights: Weights, name: str) -> None:
    found = clinic.examine(port(weights, name, dtype="bf16"), faults=False)
    assert found.first is not None
    assert (found.first.token, found.cause, found.by) == (EDGE, (name,), "replay")


def test_what_is_handed_over_is_not_guessed_from_part_of_it(clinic: Clinic) -> None:
    assert (
        clinic._handed_over("edge-state", {"blocks.0.att.state": np.zeros((TOKENS, 1))}, "blocks.0.att.state") is None
    )


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_an_honest_program_has_nothing_to_explain(clinic: Clinic, weights: Weights, dtype: str) -> None:
    with open_session(parse(f"honest:5@{dtype}"), weights, 1) as session:
        found = clinic.examine(session)
    assert not found.astray
    assert sentences(found) == [
        f"The logits are as near to the truth as honest {dtype} rounding; there is nothing to explain.", "",
    ]  # fmt: skip
    assert found.data()["explained"] is False


def test_a_backend_that_breaks_is_said_not_raised(clinic: Clinic, weights: Weights) -> None:
    class Broken(EquationSession):
        def _forward(self, tokens: Any, state: Any, want: Want) -> Any:
            raise BackendError("the device is gone")

    session = blind(Broken(weights, "broken", "f32", 1))
    assert where(clinic.examine(session)) == "Nothing could be examined: the device is gone."


def test_a_backend_that_gives_no_logits_is_said(clinic: Clinic, weights: Weights) -> None:
    class Mute(EquationSession):
        def _forward(self, tokens: Any, state: Any, want: Want) -> Any:
            return replace(super()._forward(tokens, state, want), logits=None)

    assert "mute gave no logits" in where(clinic.examine(blind(Mute(weights, "mute", "f32", 1))))


def test_only_the_last_logits_are_enough(clinic: Clinic, weights: Weights) -> None:
    session = blind(port(weights, "bonus-missing"))
    session.info = replace(session.info, abilities=frozenset())
    assert clinic.examine(session).cause == ("bonus-missing",)


def test_a_reference_that_cannot_replay_leaves_the_logits(clinic: Clinic, weights: Weights) -> None:
    truth = clinic.opened("reference-f64")
    truth.info = replace(truth.info, abilities=truth.info.abilities - {"replay"})
    weak = replace(clinic, truth=truth, _bands={})
    found = weak.examine(port(weights, "bonus-missing"))
    assert found.first is None
    assert found.cause == ("bonus-missing",)
    assert "reference that can replay" in found.problem


# ---- the command ------------------------------------------------------------------------------


def test_the_command_names_a_fault(command: Command) -> None:
    found = command("diagnose", "--backend", "fault:bonus-missing", "--backend", "torch-compile")
    assert found.code == 1
    assert "fault:bonus-missing: Layer 0, token 0: `att.bonus` is the first" in found.out
    assert "torch-compile: The logits are as near to the truth as honest f32 rounding" in found.out


def test_the_command_from_logits_only_as_json(command: Command) -> None:
    found = command("diagnose", "--backend", "fault:bonus-missing", "--logits-only", "--json")
    assert found.code == 1
    assert '"cause": "bonus-missing"' in found.out
    assert '"ratio": null' in found.out


def test_the_command_refuses_what_does_not_exist(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command("diagnose", "--backend", "fault:no-such").code == 2
    assert command("diagnose", "--backend", "torch-compile", "--model", "/no/such.pth").code == 3
    monkeypatch.setattr(registry.Backend, "available", lambda row: "no such device")
    assert "torch-compile cannot run here: no such device" in command("diagnose", "--backend", "torch-compile").err
