"""Trials on real checkpoints: who is killed by what, what cannot matter, processes, the command."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from backends.base import Want
from backends.errors import BackendError, HarnessError, InputError, UsageError
from backends.fault_list import FAULTS, applying
from harness import envelope, killtable, power, trials
from harness.killtable import EQUIVALENT, FAULT, HONEST, Row, Table
from harness.ledger import Ledger
from harness.trials import Honest, Rig
from tests.backends.random_model import random_rwkv7
from tests.harness.conftest import Command
from tests.harness.stub import small_suites

TINY = Path(__file__).parents[3] / "shared" / "models" / "tiny-rwkv-7v0-834K.pth"
TRIED = ("w-v6", "edge-state", "state-batch-leak", "tokenizer-crlf", "sampler-stale", "w-softplus")


def quiet(_: object) -> None:
    """Nobody listens."""


@pytest.fixture(autouse=True, scope="module")
def few_honest_runs() -> Iterator[None]:
    """Eight make a band; sixteen a better one, which takes twice as long."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(envelope, "MANY", 8)
        yield


@pytest.fixture(scope="module")
def table(few_honest_runs: None) -> Table:
    return power.measure("conformance", ["f32"], "strict", 1, quiet, seeds=2, only=TRIED)[0]


@pytest.fixture
def row(table: Table, request: pytest.FixtureRequest) -> Row:
    return next(row for row in table.rows if row.name == request.param)


@pytest.mark.parametrize(
    ("row", "criterion", "first"),
    [
        ("w-v6", "layers.worst_ratio", "blocks.0.att.w"),
        ("edge-state", "layers.worst_ratio", "blocks.0.att.state"),
        ("state-batch-leak", "consistency.max_abs", ""),
        ("tokenizer-crlf", "tokenization.ids_differ", ""),
        ("sampler-stale", "generation.unexplained", ""),
    ],
    indirect=["row"],
)
def test_a_fault_is_killed_by_the_suite_that_looks_at_it(row: Row, criterion: str, first: str) -> None:
    assert criterion in row.failed["strict"]
    assert row.first == first
    assert row.named is (True if first else None)
    assert row.broke == ""
    assert row.matters


def test_the_innocent_pass_and_the_margins_are_wide(table: Table) -> None:
    innocent = [*table.of(EQUIVALENT), *table.of(HONEST)]
    assert [row.name for row in innocent] == ["w-softplus", "seed 1", "seed 2"]
    assert not any(row.caught("strict") for row in innocent)
    margins = [ratio for row in table.of(FAULT) for ratio in row.failed["strict"].values() if ratio is not None]
    assert margins == sorted(margins, reverse=True) or min(margins) > 1
    assert {row.name for row in table.of(FAULT) if not row.caught("seed")} >= {"edge-state", "state-batch-leak"}


def test_every_row_of_the_catalogue_is_tried_once() -> None:
    tried = power.suspects("bf16", seeds=3)
    assert [s.name for s in tried] == [*applying("7"), "seed 1", "seed 2", "seed 3"]
    assert len({s.backend for s in tried}) == len(tried)
    assert {s.backend for s in tried if s.role == HONEST} == {"honest:1", "honest:2", "honest:3"}
    assert not {s.kind for s in tried if s.role != FAULT} - {""}


def test_the_selection_of_a_kind_asks_what_shows_it() -> None:
    names = {kind: {found.name for found in trials.selection(kind)} for kind in ("equation", "carry", "sampler", "")}
    assert names["equation"] == {"logits", "layers"}
    assert names["carry"] == {"logits", "layers", "consistency"}
    assert names["sampler"] == {"generation"}
    assert set.union(*names.values()) == names[""]


def test_a_selection_of_a_case_that_is_not_there_is_an_error() -> None:
    with pytest.raises(HarnessError, match="suite logits has no case nobody"):
        trials._selected({"suite": "logits", "cases": ["fibonacci", "nobody"]})


def one_head(folder: Path) -> str:
    path = folder / "one-head.pth"
    torch.save(random_rwkv7(C=64, N=64, L=2, V=256), path)
    return str(path)


def test_what_cannot_matter_is_told_by_float64(tmp_path: Path) -> None:
    with Rig(one_head(tmp_path)) as rig:
        assert rig.effect("kk-norm-over-c") == 0.0  # one head is all heads
        assert rig.effect("ln-x-one-group") < killtable.NO_EFFECT
        assert rig.effect("edge-state") > 1e-3
        assert rig.effect("state-batch-leak") > 1e-3
        assert rig.effect("w-scale-0.6") > 1e-6


def test_what_cannot_matter_is_no_survivor(tmp_path: Path) -> None:
    only = ("kk-norm-over-c", "edge-heads", "w-v6")
    found = power.measure(one_head(tmp_path), ["f32"], "strict", 1, quiet, seeds=1, only=only)[0].summary("strict")
    assert found["cannot_matter"] == ["kk-norm-over-c", "edge-heads"]
    assert (found["faults"], found["killed"], found["survivors"]) == (1, 1, [])


def test_a_finding_may_name_the_first_reader() -> None:
    with Rig("conformance") as rig:
        assert rig._naming("att.w") == ()  # before anything was traced
        rig.ledger.truths["layers", "long"] = {"trace": rig.truth.forward([1], want=Want(trace=("*",))).trace}
        assert rig._naming("att.w") == ("att.w", "att.state")
        assert rig._naming("emb") == ("emb", "ln0")
        assert rig._naming("head") == ("head",)
        assert rig._naming("ffn.res") == ("ffn.res", "att.ln1", "ln_out")


def test_a_subject_that_breaks_is_a_false_alarm_and_no_kill() -> None:
    with Rig("conformance") as rig:
        nothing = Honest({}, (), (), {})
        innocent = power.Suspect("seed 1", HONEST, "honest:x@f32")  # cannot be opened
        found = power.judged(innocent, rig.trial(nothing, innocent.backend, "tokenizer"), ("strict",))
        assert "integer seed" in found.broke
        assert found.caught("strict")
        fault = power.Suspect("w-v6", FAULT, "fault:nonsense", "tokenizer", "att.w")
        found = power.judged(fault, rig.trial(nothing, fault.backend, "tokenizer"), ("strict",))
        assert "unknown fault" in found.broke
        assert not found.caught("strict")


def test_errors_of_what_was_asked() -> None:
    with pytest.raises(UsageError, match="unknown fault 'w-v7'"):
        power.suspects("f32", only=("w-v7",))
    with pytest.raises(UsageError, match="no number format 'f64'; known: f32, bf16, f16"):
        power.suspects("f64")


# ---- processes -----------------------------------------------------------------------------------


def where(rig: Rig, number: int) -> tuple[int, int, str]:
    time.sleep(0.1 if number == 0 else 0.0)  # the first is slow, and its result comes first nevertheless
    return number, os.getpid(), rig.ledger.weights.facts.name


def dies(rig: Rig, _: int) -> None:
    os._exit(9)


def test_processes_share_the_work_and_keep_its_order() -> None:
    with trials.crew("conformance", 2, threads=1) as call:
        done = list(call(where, range(6)))
    assert [number for number, _, _ in done] == list(range(6))
    assert os.getpid() not in {process for _, process, _ in done}
    assert {name for _, _, name in done} == {"conformance"}


def test_a_process_that_dies_is_told_in_one_line() -> None:
    with pytest.raises(BackendError, match="a process died"), trials.crew("conformance", 2) as call:
        list(call(dies, [1]))


def test_processes_end_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    """Nobody is left behind, not even by a signal that cannot be caught."""
    if not Path("/proc/self/stat").exists():
        pytest.skip("this system has no /proc to look at")
    script = tmp_path / "crew.py"
    script.write_text(PARENT)
    root = {**os.environ, "PYTHONPATH": str(Path(trials.__file__).parents[1])}
    with subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True, env=root) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    until = time.monotonic() + 20
    while alive(child) and time.monotonic() < until:
        time.sleep(0.05)
    assert not alive(child)


PARENT = """
import os, time
from harness import trials

def where(rig, number):
    return os.getpid()

if __name__ == "__main__":
    with trials.crew("conformance", 2, threads=1) as call:
        print(*call(where, [1]), flush=True)
        time.sleep(60)
"""


def alive(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_error_in_a_process_arrives_as_itself(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no file"), trials.crew(str(tmp_path / "no.pth"), 2) as call:
        list(call(where, [1]))


@pytest.mark.parametrize(
    ("model", "large"), [("conformance", False), ("synthetic:rwkv7-0.1b", True), ("sparse.pth", True)]
)
def test_a_large_checkpoint_is_held_once(tmp_path: Path, model: str, large: bool, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    with Path("sparse.pth").open("wb") as file:
        file.truncate(1 << 30)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    assert power._processes(model) == (1 if large else 4)


# ---- the command ---------------------------------------------------------------------------------

TYPED = ("power", "--fault", ",".join(TRIED), "--seeds", "2", "--processes", "1", "--dtype", "f32")


@pytest.fixture
def asked(table: Table, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `measure` is asked for, which was measured already."""
    calls: list[dict[str, Any]] = []

    def measured(model: str, dtypes: list[str], profile: str, **settings: Any) -> list[Table]:
        calls.append({"model": model, "dtypes": dtypes, "profile": profile, **settings})
        return [table]

    monkeypatch.setattr(power, "measure", measured)
    return calls


def test_json_is_one_object_with_the_rates(command: Command, tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    done = command(*TYPED, "--json", "--out", str(tmp_path))
    found = json.loads(done.out)
    assert done.code == 0
    wanted = ("faults", "killed", "survivors", "equivalents", "honest_runs", "false_alarms", "localised")
    assert [found[name] for name in wanted] == [5, 5, [], 1, 2, 0, 2]
    assert found["dtypes"]["f32"]["killed"] == 5
    assert "edge-state" in found["beside"]["seed"]["f32"]["survivors"]
    assert found["seconds"] > 0
    assert not (tmp_path / "cache").exists()  # a part of the catalogue says nothing about the whole
    del asked[0]["progress"]
    wished = {"model": "conformance", "dtypes": ["f32"], "profile": "strict"}
    assert asked == [{**wished, "processes": 1, "seeds": 2, "only": TRIED}]


def test_a_survivor_is_exit_code_1_and_named(command: Command, tmp_path: Path, asked: list[dict[str, Any]]) -> None:
    done = command(*TYPED, "--profile", "seed", "--out", str(tmp_path))
    assert done.code == 1
    assert asked[0]["profile"] == "seed"
    assert f"survives edge-state@f32: {FAULTS['edge-state'].summary}" in done.out
    assert "seed f32: killed 1 of 5" in done.out
    assert "strict f32: killed 5 of 5, 0 false alarms of 3, first tensor out named 2 of 2" in done.out


def test_the_whole_catalogue_is_kept_and_found_again(
    command: Command, tmp_path: Path, asked: list[dict[str, Any]]
) -> None:
    typed = ("power", "--dtype", "f32", "--out", str(tmp_path))
    assert "measured earlier" not in command(*typed).out
    assert "measured earlier" in command(*typed).out
    assert json.loads(command(*typed, "--json").out)["cached"]
    assert len(asked) == 1
    assert "measured earlier" not in command(*typed, "--fresh").out
    command(*typed, "--profile", "seed")
    command("power", "--dtype", "bf16,f32", "--out", str(tmp_path))
    assert [call["dtypes"] for call in asked] == [["f32"], ["f32"], ["f32"], ["bf16"]]


def test_validate_tells_the_power_of_its_gate(command: Command, asked: list[dict[str, Any]]) -> None:
    gate = ",".join(found.name for found in trials.selection())
    typed = ("validate", "--backend", "torch-cpu-f32", "--honest-runs", "2", "--threads", "1", "--no-diagnosis")
    with pytest.MonkeyPatch.context() as patch:
        small_suites(patch, 1)
        done = command(*typed, "--suite", gate)
        assert "this gate: its power is not known yet; `python -m harness power --model conformance" in done.out
        command("power", "--dtype", "f32", "--out", str(done.folder))
        again = command(*typed, "--suite", gate)
        known = "planted faults killed: 5 of 5 at f32; 0 false alarms in 3 equivalents and honest runs"
        assert f"this gate: {known}" in again.out
        assert [o.data["killed"] for o in again.record.observations if o.kind == "power"] == [5]
        assert known in (again.folder / "report.md").read_text(encoding="utf-8")
        assert "this gate" not in command(*typed, "--suite", "tokenization").out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--fault", "w-v7"), 2, "unknown fault"),
        (("--dtype", "f8"), 2, "no number format"),
        (("--profile", "lax"), 2, "unknown profile"),
        (("--model", "no/such.pth"), 3, "no such"),
    ],
)
def test_what_is_typed_wrongly(
    command: Command, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    done = command("power", "--processes", "1", "--out", str(tmp_path), *arguments)
    assert done.code == code
    assert done.err.startswith("error: ")
    assert done.err.count("\n") == 1
    assert message in done.err or code == 3


def test_interrupted(command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> Iterator[None]:
        raise KeyboardInterrupt

    monkeypatch.setattr(power, "measure", stopped)
    done = command("power", "--out", str(tmp_path))
    assert done.code == 130
    assert "interrupted" in done.err


def test_the_tiny_trained_model(tmp_path: Path) -> None:
    if not TINY.exists():
        pytest.skip("the trained tiny model is not beside this checkout")
    only = ("w-v6", "v-residual-missing", "kk-norm-over-c", "w-0.606531")
    found = power.measure(str(TINY), ["bf16"], "strict", 1, quiet, seeds=1, only=only)[0].summary("strict")
    assert (found["killed"], found["faults"], found["localised"]) == (2, 2, 2)
    assert found["cannot_matter"] == ["kk-norm-over-c"]
    assert found["false_alarms"] == 0


def test_a_trial_leaves_the_rig_as_it_was() -> None:
    with Rig("conformance") as rig:
        before: Ledger = rig.ledger
        rig.trial(Honest({}, (), (), {}), "torch-cpu-f32", "tokenizer")
        assert rig.ledger is before
        assert (before.measurements, before.observations, before.subjects) == ([], [], {})
