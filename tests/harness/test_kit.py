"""The kit, and dumps of a port that shares nothing with this project, judged by it."""

import importlib.util
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backends.base import Want
from backends.checkpoint import open_checkpoint
from backends.dumped import DumpSession
from backends.dumps import Dump
from backends.errors import InputError
from backends.registry import open_session, parse
from harness import kit, kitcheck
from harness.compare import compare
from harness.dumps import read, settled
from harness.kitcheck import Kit
from reports.record import Record
from tests.harness import numpy_port
from tests.harness.conftest import Command


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kit.make("conformance", tmp_path_factory.mktemp("kit") / "kit")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, dict[str, Any]]:
    """What the numpy port computes with each of its bugs, once."""
    return {bug: numpy_port.run(folder, bug) for bug in ("", "v6-decay", "edge-shift", "transposed-key", "odd-gate")}


def dumped(found: dict[str, Any], what: str, to: Path) -> Path:
    numpy_port.write(numpy_port.chosen(found, what), to)
    return to


def outcome(record: Record) -> dict[str, str]:
    return {f"{v.case}.{v.criterion.rpartition('.')[2]}": v.outcome.value for v in record.verdicts}


def diagnosis(record: Record) -> dict[str, Any]:
    (seen,) = [o for o in record.observations if o.kind == "diagnosis"]
    return seen.data


# ---- the kit itself -----------------------------------------------------------------------------


def test_the_kit_is_small_and_whole(folder: Path) -> None:
    assert sum(file.stat().st_size for file in folder.iterdir()) < 10e6
    names = {file.name for file in folder.iterdir()}
    assert {"README.md", "manifest.json", "model.safetensors", "expected.safetensors", "bands.safetensors"} <= names
    assert {"tokens.bin", "logits.bin", "state.wkv.bin", "state.att_shift.bin", "state.ffn_shift.bin"} <= names
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in folder.iterdir())


def test_the_manifest_leads_to_every_number_without_a_parser(folder: Path) -> None:
    facts = json.loads((folder / "manifest.json").read_text())
    kinds = {"f64": "<f8", "f32": "<f4", "i32": "<i4"}
    seen = Kit(folder).expected
    for row in facts["tensors"]:
        with (folder / row["file"]).open("rb") as file:
            file.seek(row["offset"])
            value = np.fromfile(file, dtype=kinds[row["dtype"]], count=int(np.prod(row["shape"])))
        np.testing.assert_array_equal(value.reshape(row["shape"]), seen[row["name"]])
    for row in facts["raw"]:
        assert (folder / row["file"]).stat().st_size == 4 * np.prod(row["shape"])
    assert facts["calls"] == [40, 40]
    assert len(facts["tokens"]) == 80


def test_the_checkpoint_is_the_model_itself(folder: Path) -> None:
    with open_checkpoint(str(folder / "model.safetensors")) as theirs, open_checkpoint("conformance") as ours:
        assert list(theirs) == list(ours)
        assert all(torch.equal(theirs.get(name), ours.get(name)) for name in ours)


def test_the_readme_names_every_tensor_and_no_placeholder(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert "$" not in text
    names = {name.split(".", 2)[-1] for name in Kit(folder).expected if name.startswith("blocks.")}
    assert len(names) > 30
    for name in names | {"emb", "ln0", "ln_out", "att.state"}:
        assert f"| `{name}` |" in text


def test_the_readme_manifest_is_json_that_is_accepted(folder: Path, tmp_path: Path) -> None:
    text = (folder / "README.md").read_text()
    told = json.loads(text[text.index("```json") + 7 : text.index("```\n", text.index("```json") + 7)])
    for row in told["tensors"]:
        np.zeros(row["shape"], "<f4").tofile(tmp_path / row["file"])
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    dump = read(tmp_path)
    assert isinstance(dump, Dump)
    assert not settled(dump, Kit(folder).shapes())[1]


def test_a_kit_replaces_a_kit_and_nothing_else(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "kit"
    shutil.copytree(folder, out)
    (out / "old").touch()
    kit.make("conformance", out, tokens=6, runs=2)
    assert not (out / "old").exists()
    assert json.loads((out / "manifest.json").read_text())["calls"] == [3, 3]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds something else"):
        kit.make("conformance", foreign)
    assert [file.name for file in foreign.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="holds something else"):
        kit.make("conformance", foreign / "thesis.tex")


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kit, "_write", full)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        kit.make("conformance", tmp_path / "kit", tokens=4, runs=1)
    assert list(tmp_path.iterdir()) == []


def test_a_large_model_comes_without_named_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kit, "LARGE", 1000)
    out = kit.make("conformance", tmp_path / "kit", tokens=6, runs=2)
    assert sorted(Kit(out).expected) == ["logits", "state.att_shift", "state.ffn_shift", "state.wkv"]
    assert "| `att.w` |" in (out / "README.md").read_text()


def test_one_token_is_one_call() -> None:
    assert kit.calls(1) == [1]
    assert kit.calls(100) == [40, 60]


# ---- dumps of an independent port ---------------------------------------------------------------


@pytest.mark.parametrize("what", ["logits", "state", "all"])
def test_a_right_port_passes(folder: Path, found: dict[str, Any], tmp_path: Path, what: str) -> None:
    record = compare(folder, dumped(found[""], what, tmp_path / "dump"))
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
    folder: Path,
    found: dict[str, Any],
    tmp_path: Path,
    bug: str,
    tensor: str,
    layer: int,
    token: int,
    cause: str,
    what: str,
) -> None:
    record = compare(folder, dumped(found[bug], what, tmp_path / "dump"))
    assert record.exit_code() == 1
    told = diagnosis(record)
    assert (told["tensor"], told["cause"]) == (tensor, cause)
    if what == "all":
        assert (told["layer"], told["token"]) == (layer, token)
        assert outcome(record)["replay.out_of_band"] == "fail"
    if what == "state":
        assert outcome(record)["state.worst_ratio"] == "fail"
    assert any(f"Known mistake `{cause}`" in note for note in record.notes)


def test_a_bug_that_nobody_knows_is_placed_but_not_explained(
    folder: Path, found: dict[str, Any], tmp_path: Path
) -> None:
    told = diagnosis(compare(folder, dumped(found["odd-gate"], "all", tmp_path / "dump")))
    assert (told["tensor"], told["layer"], told["token"], told["cause"]) == ("att.g_lora", 0, 0, "")
    assert told["sentences"][1].startswith("None of the known mistakes explains it")


def test_some_tensors_name_the_span(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    kept = ("logits", "blocks.0.att.xw", "blocks.0.att.w")
    part = {name: value for name, value in found["v6-decay"].items() if name in kept}
    told = diagnosis(compare(folder, dumped(part, "all", tmp_path / "dump")))
    assert (told["tensor"], told["cause"]) == ("att.w", "w-v6")
    assert "blocks.0.att.w_lora, blocks.0.att.w_raw lie between it and what was recorded" in told["sentences"][0]


def test_tensors_without_logits_are_judged(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    for bug, code in (("", 0), ("v6-decay", 1)):
        part = {name: value for name, value in found[bug].items() if name.startswith("blocks.0.att.w")}
        record = compare(folder, dumped(part, "all", tmp_path / f"dump{bug}"))
        assert record.exit_code() == code
        assert any("untested: logits, the state" in note for note in record.notes)


def test_without_torch_the_free_run_still_names_a_tensor(
    folder: Path, found: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    record = compare(folder, dumped(found["transposed-key"], "all", tmp_path / "dump"))
    told = diagnosis(record)
    assert (told["tensor"], told["layer"], told["token"], told["cause"]) == ("att.k_raw", 1, 0, "")
    assert "away from its expected value" in told["sentences"][0]
    assert any("torch is not installed" in note for note in record.notes)
    right = compare(folder, dumped(found[""], "all", tmp_path / "right"))
    assert right.exit_code() == 0
    logits = compare(folder, dumped(found["v6-decay"], "logits", tmp_path / "logits"))
    assert logits.exit_code() == 1


def test_without_the_checkpoint_nothing_is_replayed(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "kit")
    dump = dumped(found["v6-decay"], "all", tmp_path / "dump")
    (tmp_path / "kit" / "model.safetensors").write_bytes(b"no checkpoint")
    record = compare(tmp_path / "kit", dump)
    assert any("could not be used, so nothing was replayed" in note for note in record.notes)
    (tmp_path / "kit" / "model.safetensors").unlink()
    record = compare(tmp_path / "kit", dump)
    assert any("model.safetensors is not in the kit" in note for note in record.notes)
    assert diagnosis(record)["tensor"] == "att.w"


# ---- other forms of a dump ----------------------------------------------------------------------


def test_the_smallest_dumps(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    logits = found[""]["logits"]
    for name, value in (("all", logits), ("last", logits[-1])):
        (tmp_path / name).mkdir()
        value.astype("<f4").tofile(tmp_path / name / "logits.bin")
        assert compare(folder, tmp_path / name).exit_code() == 0
        assert compare(folder, tmp_path / name / "logits.bin").exit_code() == 0
    (tmp_path / "short").mkdir()
    logits[0, :99].tofile(tmp_path / "short" / "logits.bin")
    record = compare(folder, tmp_path / "short")
    assert outcome(record) == {"shapes.shapes_differ": "fail"}
    assert any("shape (99,), where (80, 256), or (256,)" in note for note in record.notes)


def test_one_safetensors_file_that_states_its_format(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "port.safetensors"
    noisy = found[""]["logits"] + np.random.default_rng(0).normal(0, 0.005, (80, 256)).astype("f4")
    save_file({"logits": noisy[None]}, path, {"dtype": "bf16", "program": "a port"})
    record = compare(folder, path)
    assert record.exit_code() == 0
    assert record.subjects[1].info["dtype"] == "bf16"
    save_file({"logits": noisy}, path)  # nothing said is f32, where this is far off
    assert compare(folder, path).exit_code() == 1


def test_heads_may_be_split_but_nothing_else_is_bent(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    kk = found[""]["blocks.0.att.kk"]
    part = {"logits": found[""]["logits"], "blocks.0.att.kk": kk.reshape(80, 2, 64)}
    assert compare(folder, dumped(part, "all", tmp_path / "split")).exit_code() == 0
    for name, value in (("blocks.0.att.kk", kk.T), ("blocks.9.att.kk", kk), ("blocks.0.att.kk", kk[:40])):
        part = {"logits": found[""]["logits"], name: value}
        record = compare(folder, dumped(part, "all", tmp_path / "odd"))
        assert outcome(record)["shapes.shapes_differ"] == "fail"
        assert any(note.startswith(name) for note in record.notes)


def test_nan_never_passes(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    spoiled = {name: value.copy() for name, value in found[""].items()}
    spoiled["logits"][70, 3] = np.nan
    spoiled["state.wkv"][1] = np.inf
    record = compare(folder, dumped(spoiled, "state", tmp_path / "dump"))
    assert outcome(record)["logits.worst_ratio"] == outcome(record)["state.worst_ratio"] == "fail"


def test_other_tokens_have_nothing_in_common(folder: Path, found: dict[str, Any], tmp_path: Path) -> None:
    dump = dumped(found[""], "logits", tmp_path / "dump")
    told = json.loads((dump / "manifest.json").read_text())
    (dump / "manifest.json").write_text(json.dumps({**told, "tokens": [1, 2, 3]}))
    record = compare(folder, dump)
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
    folder: Path, found: dict[str, Any], tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    dump = dumped({k: found[""][k] for k in ("logits", "blocks.0.att.w")}, "all", tmp_path / "dump")
    told = json.loads((dump / "manifest.json").read_text())
    told["tensors"][0] |= row
    (dump / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match=words):
        compare(folder, dump)


def test_an_unknown_number_format_and_an_empty_dump(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text('{"dump": 1, "dtype": "int4", "tensors": []}')
    with pytest.raises(InputError, match="states dtype 'int4'"):
        compare(folder, tmp_path)
    (tmp_path / "manifest.json").write_text('{"dump": 1, "tensors": []}')
    with pytest.raises(InputError, match="no tensor named logits"):
        compare(folder, tmp_path)


def test_a_record_is_no_dump(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(Record("id", "now").to_json())
    with pytest.raises(InputError, match="is a record"):
        compare(folder, tmp_path / "record.json")


def test_a_damaged_kit(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "kit")
    told = json.loads((tmp_path / "kit" / "manifest.json").read_text())
    told["tensors"] = [row for row in told["tensors"] if row["name"] != "logits"]
    (tmp_path / "kit" / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="holds no expected logits"):
        Kit(tmp_path / "kit")
    with pytest.raises(InputError, match="is no kit of format 1"):
        kit.manifest(tmp_path)
    assert not kit.is_kit(tmp_path / "nowhere")


# ---- a dump as a session ------------------------------------------------------------------------


def test_a_recording_answers_only_what_was_asked_then(folder: Path, found: dict[str, Any]) -> None:
    facts = Kit(folder)
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


# ---- the commands -------------------------------------------------------------------------------


def test_kit_record_compare_from_the_command_line(command: Command, tmp_path: Path) -> None:
    out, dump = str(tmp_path / "kit"), str(tmp_path / "dump")
    made = command("kit", "--out", out, "--tokens", "24", "--honest-runs", "8")
    assert made.code == 0
    assert "README.md says what to do with it" in made.out
    listed = json.loads(command("kit", "--out", out, "--tokens", "24", "--honest-runs", "8", "--json").out)
    assert listed["bytes"] > 1e6
    for backend, code in (("torch-compile@bf16", 0), ("fault:out-no-gate@bf16", 1)):
        assert "judges it" in command("record", "--kit", out, "--backend", backend, "--out", dump).out
        judged = command("compare", out, dump)
        assert judged.code == code, judged.out
    assert "att.out" in judged.out
    assert json.loads(command("record", "--kit", out, "--backend", "torch-compile", "--out", dump, "--json").out)
    assert command("record", "--kit", str(tmp_path), "--backend", "torch-compile", "--out", dump).code == 3
    assert command("kit", "--model", "conformence", "--out", out).code == 3
    assert command("compare", out, str(tmp_path / "nothing")).code == 3


@pytest.mark.parametrize("dtype", ["f32", "bf16", "f16"])
def test_fresh_honest_runs_pass(folder: Path, tmp_path: Path, dtype: str) -> None:
    with (
        open_checkpoint(str(folder / "model.safetensors")) as weights,
        open_session(parse(f"honest:21@{dtype}"), weights, 1) as session,
    ):
        record = compare(folder, kit.record(folder, session, tmp_path / "dump"))
    assert record.exit_code() == 0, outcome(record)


def test_limits_are_those_that_the_code_speaks_of() -> None:
    from harness.compare import load_profile

    (free,) = [c for c in load_profile("strict").criteria if c.suite == "kit" and c.measure == "free_run_worst"]
    assert f"{kitcheck.FREE:g}" in free.words()


def test_the_port_runs_as_a_program(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["port", str(folder), str(tmp_path / "d"), "--dump", "logits"])
    numpy_port.main()
    assert (tmp_path / "d" / "port.bin").stat().st_size == 80 * 256 * 4
