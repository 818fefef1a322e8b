"""The kit: small, whole, read without a parser, and never half written."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backends.checkpoint import open_checkpoint
from backends.dumps import Dump
from backends.errors import InputError
from backends.registry import open_session, parse
from harness import kit as kits
from harness.compare import compare
from harness.dumps import read, settled
from harness.kitcheck import Kit
from tests.harness import numpy_port
from tests.harness.conftest import Command

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_kit_is_small_and_whole(kit: Path) -> None:
    assert sum(file.stat().st_size for file in kit.iterdir()) < 10e6
    names = {file.name for file in kit.iterdir()}
    assert {"README.md", "manifest.json", "model.safetensors", "expected.safetensors", "bands.safetensors"} <= names
    assert {"tokens.bin", "logits.bin", "state.wkv.bin", "state.att_shift.bin", "state.ffn_shift.bin"} <= names
    assert all(file.stat().st_mode & 0o444 == 0o444 for file in kit.iterdir())


def test_the_manifest_leads_to_every_number_without_a_parser(kit: Path) -> None:
    facts = json.loads((kit / "manifest.json").read_text())
    kinds = {"f64": "<f8", "f32": "<f4", "i32": "<i4"}
    seen = Kit(kit).expected
    for row in facts["tensors"]:
        with (kit / row["file"]).open("rb") as file:
            file.seek(row["offset"])
            value = np.fromfile(file, dtype=kinds[row["dtype"]], count=int(np.prod(row["shape"])))
        np.testing.assert_array_equal(value.reshape(row["shape"]), seen[row["name"]])
    for row in facts["raw"]:
        assert (kit / row["file"]).stat().st_size == 4 * np.prod(row["shape"])
    assert facts["calls"] == [40, 40]
    assert len(facts["tokens"]) == 80


def test_the_checkpoint_is_the_model_itself(kit: Path) -> None:
    with open_checkpoint(str(kit / "model.safetensors")) as theirs, open_checkpoint("conformance") as ours:
        assert list(theirs) == list(ours)
        assert all(torch.equal(theirs.get(name), ours.get(name)) for name in ours)


def test_the_readme_names_every_tensor_and_no_placeholder(kit: Path) -> None:
    text = (kit / "README.md").read_text()
    assert "$" not in text
    names = {name.split(".", 2)[-1] for name in Kit(kit).expected if name.startswith("blocks.")}
    assert len(names) > 30
    for name in names | {"emb", "ln0", "ln_out", "att.state"}:
        assert f"| `{name}` |" in text


def test_the_readme_manifest_is_json_that_is_accepted(kit: Path, tmp_path: Path) -> None:
    text = (kit / "README.md").read_text()
    told = json.loads(text[text.index("```json") + 7 : text.index("```\n", text.index("```json") + 7)])
    for row in told["tensors"]:
        np.zeros(row["shape"], "<f4").tofile(tmp_path / row["file"])
    (tmp_path / "manifest.json").write_text(json.dumps(told))
    dump = read(tmp_path)
    assert isinstance(dump, Dump)
    assert not settled(dump, Kit(kit).shapes())[1]


def test_a_kit_replaces_a_kit_and_nothing_else(kit: Path, tmp_path: Path) -> None:
    out = tmp_path / "kit"
    shutil.copytree(kit, out)
    (out / "old").touch()
    kits.make("conformance", out, tokens=6, runs=2)
    assert not (out / "old").exists()
    assert json.loads((out / "manifest.json").read_text())["calls"] == [3, 3]
    foreign = tmp_path / "foreign"
    foreign.mkdir()
    (foreign / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds something else"):
        kits.make("conformance", foreign)
    assert [file.name for file in foreign.iterdir()] == ["thesis.tex"]
    with pytest.raises(InputError, match="holds something else"):
        kits.make("conformance", foreign / "thesis.tex")


def test_nothing_half_written_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(kits, "_write", full)
    with pytest.raises(InputError, match="cannot be written: No space left"):
        kits.make("conformance", tmp_path / "kit", tokens=4, runs=1)
    assert list(tmp_path.iterdir()) == []


def test_a_large_model_comes_without_named_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kits, "LARGE", 1000)
    out = kits.make("conformance", tmp_path / "kit", tokens=6, runs=2)
    assert sorted(Kit(out).expected) == ["logits", "state.att_shift", "state.ffn_shift", "state.wkv"]
    assert "| `att.w` |" in (out / "README.md").read_text()


def test_one_token_is_one_call() -> None:
    assert kits.calls(1) == [1]
    assert kits.calls(100) == [40, 60]


def test_a_damaged_kit(kit: Path, tmp_path: Path) -> None:
    shutil.copytree(kit, tmp_path / "kit")
    told = json.loads((tmp_path / "kit" / "manifest.json").read_text())
    told["tensors"] = [row for row in told["tensors"] if row["name"] != "logits"]
    (tmp_path / "kit" / "manifest.json").write_text(json.dumps(told))
    with pytest.raises(InputError, match="holds no expected logits"):
        Kit(tmp_path / "kit")
    with pytest.raises(InputError, match="is no kit of format 1"):
        kits.manifest(tmp_path)
    assert not kits.is_kit(tmp_path / "nowhere")


# ---- the commands -----------------------------------------------------------------------------


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
def test_fresh_honest_runs_pass(kit: Path, tmp_path: Path, dtype: str) -> None:
    with (
        open_checkpoint(str(kit / "model.safetensors")) as weights,
        open_session(parse(f"honest:21@{dtype}"), weights, 1) as session,
    ):
        record = compare(kit, kits.record(kit, session, tmp_path / "dump"))
    assert record.exit_code() == 0, record.verdicts


def test_the_port_runs_as_a_program(kit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["port", str(kit), str(tmp_path / "d"), "--dump", "logits"])
    numpy_port.main()
    assert (tmp_path / "d" / "port.bin").stat().st_size == 80 * 256 * 4
