"""The designed checkpoint shows every mistake, in every number format, and no equivalent."""

import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from backends import fault_list
from backends.checkpoint import open_checkpoint
from harness import margins, replay
from harness.margins import Bench, Margin

if TYPE_CHECKING:
    from backends.weights import Weights


@pytest.fixture(scope="module")
def weights() -> "Iterator[Weights]":
    with open_checkpoint("conformance") as opened:
        yield opened


LOGITS_ALONE = {"f32": 1.0, "bf16": 0.85}
"""Share of the faults that the logits alone must show: all where rounding is small, most where it is not."""


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_every_fault_is_seen_and_named_and_nothing_else(weights: "Weights", dtype: str) -> None:
    bench = Bench(weights, dtype)
    found = [bench.margin(entry) for entry in margins.measurable()]
    faults = [margin for margin in found if not margin.entry.equivalent]
    # The official bf16 semantics, which are honest, err nearly as much as a bf16 state; its entries tell it for sure.
    assert {m.entry.name for m in faults if m.held} == {"state-bf16"}
    faint = {"state-bf16", "edge-state-bf16"} if dtype == "bf16" else set()
    assert [m.entry.name for m in faults if not m.farthest > 3 * replay.LIMIT and m.entry.name not in faint] == []
    assert [m.entry.name for m in faults if not m.farthest > 1.5 * replay.LIMIT] == []
    assert [(m.entry.name, m.first and m.first.tensor) for m in faults if not m.named] == []
    assert [(m.entry.name, m.first) for m in found if m.entry.equivalent and m.seen] == []
    assert sum(m.by_logits for m in faults) >= LOGITS_ALONE[dtype] * len(faults)
    alarms = bench.alarms()
    assert len(alarms) == 20
    assert max(alarms) < 0.85 * replay.LIMIT
    edges = {m.entry.name: m.first.token for m in faults if m.entry.kind == fault_list.CARRY and m.first}
    assert set(edges.values()) == {margins.EDGE}  # a state mishandled between two calls shows where they meet


def test_f16_shows_the_faintest_too(weights: "Weights") -> None:
    bench = Bench(weights, "f16", runs=8)
    for name in ("ln0-eps-1e-6", "ln1-unbiased", "ln-x-unbiased", "kk-eps-in-root", "w-scale-0.6", "state-bf16"):
        assert bench.margin(fault_list.FAULTS[name]).named, name
    assert max(bench.alarms(8)) < replay.LIMIT


def test_the_table_adds_up() -> None:
    rows = fault_list.FAULTS
    out = replay.Out("blocks.1.att.w", 3, 5.0, 7.0)
    found = [
        Margin(rows["w-v6"], out, 7.0, 9.0),
        Margin(rows["ln-out-missing"], out, 7.0, float("nan")),
        Margin(rows["head-row-zero"], None, 1.0, 1.0),
        Margin(fault_list.EQUIVALENTS["w-softplus"], out, 7.0, 1.0),
        Margin(fault_list.EQUIVALENTS["k-expanded"], None, 1.0, 1.0),
    ]
    *table, seen, alarms = margins.lines(found, [1.0, 3.5], "bf16")
    assert [line.split()[0] for line in table[1:]] == [
        "head-row-zero",
        "w-v6",
        "ln-out-missing",
        "k-expanded",
        "w-softplus",
    ]
    assert table[2].split() == ["w-v6", "att.w", "att.w", "3", "7", "7", "9"]
    assert table[-1].endswith("equivalent")
    assert seen == (
        "bf16: 2 of 3 faults seen by replay at 3 x the honest band or by the state's entries, 1 named; "
        "2 seen by logits alone"
    )
    assert alarms == "bf16: 1 alarms on 2 equivalents, 1 on 2 fresh honest runs, the farthest at 3.50 x"


def test_the_program_prints_and_answers(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(margins, "Bench", partial(Bench, runs=4))
    few = [fault_list.FAULTS["w-v6"], fault_list.EQUIVALENTS["w-softplus"]]
    monkeypatch.setattr(margins, "measurable", lambda *_: few)
    assert margins.main(["--dtype", "f32"]) == 0
    assert "f32: 1 of 1 faults seen" in capsys.readouterr().out
    unseen = [fault_list.FAULTS["sampler-stale"]]  # leaves every tensor as it is
    monkeypatch.setattr(margins, "measurable", lambda *_: unseen)
    assert margins.main(["--dtype", "f32"]) == 1
    assert "f32: 0 of 1 faults seen" in capsys.readouterr().out


def test_a_model_that_does_not_exist_is_one_line() -> None:
    command = [sys.executable, "-m", "harness.margins", "--model", "no-such-model"]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 3
    assert done.stderr.startswith("error: unknown model 'no-such-model'.")
    assert done.stderr.count("\n") == 1


def test_what_is_not_finite_is_far_away() -> None:
    assert margins._rms(np.array([np.nan]), np.zeros(1)) == np.inf
    assert margins._rms(np.array([3e200]), np.zeros(1)) == np.inf
