"""Dumps of a port that shares nothing with this project, judged by a kit."""

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.base import Want
from backends.dumped import DumpSession
from backends.dumps import Dump
from backends.errors import InputError
from harness import kitcheck
from harness.compare import compare
from harness.kitcheck import Kit
from reports.record import Record
from tests.harness import numpy_port

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def found(kit: Path) -> dict[str, dict[str, Any]]:
    """What the numpy port computes with each of its bugs, once."""
    return {bug: numpy_port.run(kit, bug) for bug in ("", "v6-decay", "edge-shift", "transposed-key", "odd-gate")}


def dumped(found: dict[str, Any], what: str, to: Path) -> Path:
    numpy_port.write(numpy_port.chosen(found, what), to)
    return to


def outcome(record: Record) -> dict[str, str]:
    return {f"{v.case}.{v.criterion.rpartition('.')[2]}": v.outcome.value for v in record.verdicts}


def diagnosis(record: Record) -> dict[str, Any]:
    (seen,) = [o for o in record.observations if o.kind == "diagnosis"]
    return seen.data


@pytest.mark.parametrize("what", ["logits", "state", "all"])
def test_a_right_port_passes(kit: Path, found: dict[str, Any], tmp_path: Path, what: str) -> None:
    record = compare(kit, dumped(found[""], what, tmp_path / "dump"))
    assert record.exit_code() == 0, outcome(record)
    assert {v.outcome.value for v in record.verdicts} == {"pass"}
    untested = [note for note in record.notes if "untested" in note]
    assert bool(untested) == (what != "all")


@pytest.mark.parametrize(
    ("bug", "tensor", "layer", "token", "cause", "what"),
    [
        ("v6-decay", "att.w", 0, 0, "w-v6", "all"),
        ("v6-decay", "att.w", 0, 0, "w-v6", "logits"),
        ("edge-shift", "att.shift", 0, 40, "edge-shift", "all"),
        ("edge-shift", "att.shift", 0, 40, "edge-shift", "state"),
        ("transposed-key", "att.k_raw", 1, 0, "k-transposed", "all"),
        ("transposed-key", "att.k_raw", 1, 0, "k-transposed", "logits"),
    ],
)
def test_a_bug_is_named(
    kit: Path,
    found: dict[str, Any],
    tmp_path: Path,
    bug: str,
    tensor: str,
    layer: int,
    token: int,
    cause: str,
    what: str,
) -> None:
    record = compare(kit, dumped(found[bug], what, tmp_path / "dump"))
    assert record.exit_code() == 1
    told = diagnosis(record)
    assert (told["tensor"], told["cause"]) == (tensor, cause)
    if what == "all":
        assert (told["layer"], told["token"]) == (layer, token)
        assert outcome(record)["replay.out_of_band"] == "fail"
    if what == "state":
        assert outcome(record)["state.worst_ratio"] == "fail"
    assert any(f"Known mistake `{cause}`" in note for note in record.notes)


def test_a_bug_that_nobody_knows_is_placed_but_not_explained(kit: Path, found: dict[str, Any], tmp_path: Path) -> None:
    told = diagnosis(compare(kit, dumped(found["odd-gate"], "all", tmp_path / "dump")))
    assert (told["tensor"], told["layer"], told["token"], told["cause"]) == ("att.g_lora", 0, 0, "")
    assert told["sentences"][1].startswith("None of the known mistakes explains it")


def test_some_tensors_name_the_span(kit: Path, found: dict[str, Any], tmp_path: Path) -> None:
    kept = ("logits", "blocks.0.att.xw", "blocks.0.att.w")
    part = {name: value for name, value in found["v6-decay"].items() if name in kept}
    told = diagnosis(compare(kit, dumped(part, "all", tmp_path / "dump")))
    assert (told["tensor"], told["cause"]) == ("att.w", "w-v6")
    assert "blocks.0.att.w_lora, blocks.0.att.w_raw lie between it and what was recorded" in told["sentences"][0]


def test_tensors_without_logits_are_judged(kit: Path, found: dict[str, Any], tmp_path: Path) -> None:
    for bug, code in (("", 0), ("v6-decay", 1)):
        part = {name: value for name, value in found[bug].items() if name.startswith("blocks.0.att.w")}
        record = compare(kit, dumped(part, "all", tmp_path / f"dump{bug}"))
        assert record.exit_code() == code
        assert any("untested: logits, the state" in note for note in record.notes)


def test_without_torch_the_free_run_still_names_a_tensor(
    kit: Path, found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    record = compare(kit, dumped(found["transposed-key"], "all", tmp_path / "dump"))
    told = diagnosis(record)
    assert (told["tensor"], told["layer"], told["token"], told["cause"]) == ("att.k_raw", 1, 0, "")
    assert "away from its expected value" in told["sentences"][0]
    assert any("torch is not installed" in note for note in record.notes)
    right = compare(kit, dumped(found[""], "all", tmp_path / "right"))
    assert right.exit_code() == 0
    logits = compare(kit, dumped(found["v6-decay"], "logits", tmp_path / "logits"))
    assert logits.exit_code() == 1


def test_without_the_checkpoint_nothing_is_replayed(kit: Path, found: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(kit, tmp_path / "kit")
    dump = dumped(found["v6-decay"], "all", tmp_path / "dump")
    (tmp_path / "kit" / "model.safetensors").write_bytes(b"no checkpoint")
    record = compare(tmp_path / "kit", dump)
    assert any("could not be used, so nothing was replayed" in note for note in record.notes)
    (tmp_path / "kit" / "model.safetensors").unlink()
    record = compare(tmp_path / "kit", dump)
    assert any("model.safetensors is not in the kit" in note for note in record.notes)
    assert diagnosis(record)["tensor"] == "att.w"


# ---- other forms of a dump --------------------------------------------------------------------


def test_the_smallest_dumps(kit: Path, found: dict[str, Any], tmp_path: Path) -> None:
    logits = found[""]["logits"]
    for name, value in (("all", logits), ("last", logits[-1])):
        (tmp_path / name).mkdir()
        value.astype("<f4").tofile(tmp_path / name / "logits.bin")
        assert compare(kit, tmp_path / name).exit_code() == 0
        assert compare(kit, tmp_path / name / "logits.bin").exit_code() == 0
    (tmp_path / "short").mkdir()
    logits[0, :99].tofile(tmp_path / "short" / "logits.bin")
    record = compare(kit, tmp_path / "short")
    assert outcome(record) == {"shapes.shapes_differ": "fail"}
    assert any("shape (99,), where (80, 256), or (256,)" in note for note in record.notes)


def test_one_safetensors_file_that_states_its_format(kit: Path, found: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "port.safetensors"
    noisy = found[""]["logits"] + np.random.default_rng(0).normal(0, 0.005, (80, 256)).astype("f4")
    save_file({"logits": noisy[None]}, path, {"dtype": "bf16", "program": "a port"})
    record = compare(kit, path)
    assert record.exit_code() == 0
    assert record.subjects[1].info["dtype"] == "bf16"
    save_file({"logits": noisy}, path)  # nothing said is f32, where this is far off
    assert compare(kit, path).exit_code() == 1


def test_heads_may_be_split_but_nothing_else_is_bent(kit: Path, found: dict[str, Any], tmp_path: Path) -> None:
    kk = found[""]["blocks.0.att.kk"]
    part = {"logits": found[""]["logits"], "blocks.0.att.kk": kk.reshape(80, 2, 64)}
    assert compare(kit, dumped(part, "all", tmp_path / "split")).exit_code() == 0
    for name, value in (("blocks.0.att.kk", kk.T), ("blocks.9.att.kk", kk), ("blocks.0.att.kk", kk[:40])):
        part = {"logits": found[""]["logits"], name: value}
        record = compare(kit, dumped(part, "all", tmp_path / "odd"))
        assert outcome(record)["shapes.shapes_differ"] == "fail"
        assert any(note.startswith(name) for note in record.notes)


def test_nan_never_passes(kit: Path, found: dict[str, Any], tmp_path: Path) -> None:
    spoiled = {name: value.copy() for name, value in found[""].items()}
    spoiled["logits"][70, 3] = np.nan
    spoiled["state.wkv"][1] = np.inf
    record = compare(kit, dumped(spoiled, "state", tmp_path / "dump"))
    assert outcome(record)["logits.worst_ratio"] == outcome(record)["state.worst_ratio"] == "fail"


def test_limits_are_those_that_the_code_speaks_of() -> None:
    from harness.compare import load_profile

    (free,) = [c for c in load_profile("strict").criteria if c.suite == "kit" and c.measure == "free_run_worst"]
    assert f"{kitcheck.FREE:g}" in free.words()


def test_other_tokens_have_nothing_in_common(kit: Path, found: dict[str, Any], tmp_path: Path) -> None:
    dump = dumped(found[""], "logits", tmp_path / "dump")
    told = json.loads((dump / "manifest.json").read_text())
    (dump / "manifest.json").write_text(json.dumps({**told, "tokens": [1, 2, 3]}))
    record = compare(kit, dump)
    assert record.exit_code() == 5
    assert any("other tokens" in note for note in record.notes)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"file": "../secret.bin"}, "lies outside the folder"),
        ({"file": "gone.bin"}, "is not there"),
        ({"dtype": "q4"}, "number format 'q4'"),
        ({"shape": [800, 256]}, "should take 819200 bytes"),
        ({"offset": -4}, "damaged"),
        ({"name": "blocks.0.att.w"}, "is there twice"),
        ({"shape": None}, "damaged"),
    ],
)
def test_a_damaged_manifest_is_one_line(
    kit: Path, found: dict[str, Any], tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    dump = dumped({k: found[""][k] for k in ("logits", "blocks.0.att.w")}, "all", tmp_path / "dump")
    told = json.loads((dump / "manifest.json").read_text())
    told["tensors"][0] |= row
    (dump / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=words):
        compare(kit, dump)


def test_an_unknown_number_format_and_an_empty_dump(kit: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"dump": 1, "dtype": "int4", "tensors": []}')
    with pytest.raises(InputError, match="states dtype 'int4'"):
        compare(kit, tmp_path)
    (tmp_path / "manifest.json").write_text('{"dump": 1, "tensors": []}')
    with pytest.raises(InputError, match="no tensor named logits"):
        compare(kit, tmp_path)


def test_a_record_is_no_dump(kit: Path, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(Record("id", "now").to_json())
    with pytest.raises(InputError, match="is a record"):
        compare(kit, tmp_path / "record.json")


# ---- a dump as a session ----------------------------------------------------------------------


def test_a_recording_answers_only_what_was_asked_then(kit: Path, found: dict[str, Any]) -> None:
    facts = Kit(kit)
    dump = Dump("test", logits=found[""]["logits"], tensors={"blocks.0.att.w": found[""]["blocks.0.att.w"]})
    session = DumpSession(dump, facts.tokens, facts.model, "port")
    assert session.info.abilities == {"trace", "logits-all"}
    last = session.forward(facts.tokens).logits
    assert last is not None
    np.testing.assert_array_equal(last[0, 0], dump.logits[-1])  # type: ignore[index]
    with pytest.raises(Exception, match="other tokens"):
        session.forward(facts.tokens[::-1])
    with pytest.raises(Exception, match="nothing can go on"):
        session.export_state(None)
    with pytest.raises(Exception, match="nothing can go on"):
        session.import_state(None)  # type: ignore[arg-type]
    with pytest.raises(Exception, match="one row from the zero state"):
        session._forward(facts.tokens[None], "state", Want())
