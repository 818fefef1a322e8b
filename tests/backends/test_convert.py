"""What is written reads back bit-equal, in official shapes, all of it or nothing of it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from backends import convert
from backends.checkpoint import assemble, open_checkpoint
from backends.errors import InputError, UsageError
from backends.model_config import TORCH_NAMES
from backends.readers import Source, in_memory
from backends.weights import DTYPES, Tensor, Weights
from tests.backends import files
from tests.backends.random_model import random_rwkv7

MODEL = random_rwkv7(C=64, N=32, L=3, V=300)


@pytest.fixture
def weights() -> Weights:
    return assemble("m", in_memory(MODEL))


@pytest.mark.parametrize(("to", "name"), [("pth", "m.pth"), ("safetensors", "m.safetensors"), ("hf", "folder")])
@pytest.mark.parametrize("dtype", ["", "bf16", "f16", "f64"])
def test_round_trip(tmp_path: Path, weights: Weights, to: str, name: str, dtype: str) -> None:
    dest = tmp_path / "new" / name
    assert convert.save(weights, dest, to, dtype) == dest
    again = open_checkpoint(str(dest))
    assert again.facts.stored == (dtype or "f32")
    assert list(again) == list(weights)
    assert all(torch.equal(again.get(key), weights.get(key, dtype)) for key in weights)
    assert not [path for path in tmp_path.rglob("*") if path.name.endswith(".part")]


def test_written_files_have_official_names_and_shapes(tmp_path: Path, weights: Weights) -> None:
    convert.save(weights, tmp_path / "m.pth", "pth")
    convert.save(weights, tmp_path / "m.safetensors", "safetensors")
    for state in (torch.load(tmp_path / "m.pth"), load_file(tmp_path / "m.safetensors")):
        assert {name: tensor.shape for name, tensor in state.items()} == {n: t.shape for n, t in MODEL.items()}
        assert all(torch.equal(state[name], MODEL[name]) for name in MODEL)
    assert list(torch.load(tmp_path / "m.pth"))[:3] == ["emb.weight", "blocks.0.ln1.weight", "blocks.0.ln1.bias"]


def test_views_are_not_written_with_what_they_are_views_of(tmp_path: Path) -> None:
    base = torch.cat([MODEL["head.weight"], torch.zeros(100_000, 64)])
    weights = assemble("m", in_memory(MODEL | {"head.weight": base[:300]}))
    convert.save(weights, tmp_path / "m.pth", "pth")
    assert (tmp_path / "m.pth").stat().st_size < 4 * sum(t.numel() for t in MODEL.values()) + 200_000


def test_config_is_derived_from_the_tensors(tmp_path: Path, weights: Weights) -> None:
    convert.save(weights, tmp_path / "hf", "hf", "bf16")
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    expected = {
        "model_type": "rwkv7",
        "hidden_size": 64,
        "num_hidden_layers": 3,
        "head_dim": 32,
        "num_heads": 2,
        "vocab_size": 300,
        "intermediate_size": 256,
        "decay_low_rank_dim": 48,
        "a_low_rank_dim": 40,
        "v_low_rank_dim": 32,
        "gate_low_rank_dim": 64,
        "norm_eps": 1e-5,
        "torch_dtype": "bfloat16",
        "value_dim": [64, 64, 64],
    }
    assert expected.items() <= config.items()
    assert "config.json says" not in open_checkpoint(str(tmp_path / "hf")).facts.evidence


def test_a_config_of_another_model_stays(tmp_path: Path, weights: Weights) -> None:
    convert.save(weights, tmp_path / "m.safetensors", "safetensors")
    convert.save(weights, tmp_path / "m.safetensors", "safetensors", "bf16")  # itself may be replaced
    other = assemble("o", in_memory(random_rwkv7(C=64, N=32, L=2, V=300)))
    with pytest.raises(InputError, match=r"config\.json describes another model"):
        convert.save(other, tmp_path / "o.safetensors", "safetensors")
    assert not (tmp_path / "o.safetensors").exists()


def test_unused_value_residual_of_layer_0(tmp_path: Path) -> None:
    extra = {f"blocks.0.att.v{part}": MODEL[f"blocks.1.att.v{part}"] for part in "012"}
    weights = assemble("m", in_memory(MODEL | extra))
    for to, name, kept in (("pth", "m.pth", True), ("hf", "folder", False)):
        convert.save(weights, tmp_path / name, to)
        assert ("blocks.0.att.v1" in open_checkpoint(str(tmp_path / name))) is kept


@pytest.mark.parametrize("version", files.ALL)
def test_every_version_has_its_official_shapes(tmp_path: Path, version: str) -> None:
    shapes = files.ALL[version]()
    if version == "5.1":
        shapes |= {name: (files.H,) for name in shapes if name.endswith("time_decay")}
    if version == "5.2":
        shapes |= {name: (files.H, files.N) for name in shapes if name.endswith("time_faaaa")}
    weights = assemble("m", Source(files.unread(shapes)))
    path = convert.save(weights, tmp_path / "m.safetensors", "safetensors")
    assert {name: tuple(tensor.shape) for name, tensor in load_file(path).items()} == shapes
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["hidden_size"], config["num_hidden_layers"], config["vocab_size"]) == (files.C, files.L, files.V)
    if version != "7":
        with pytest.raises(InputError, match=f"only RWKV-7 has HF names here; m is RWKV-{version}"):
            convert.save(weights, tmp_path / "hf", "hf")


def test_safetensors_as_the_library_writes_them(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6.0).reshape(2, 3).t(), "a": torch.ones(3, dtype=torch.bfloat16), "é": torch.zeros(())}
    convert.write_safetensors(tmp_path / "ours.st", dict(in_memory(tensors).tensors), {"key": "value"})
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "theirs.st")
    ours, theirs = load_file(tmp_path / "ours.st"), load_file(tmp_path / "theirs.st")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert int.from_bytes((tmp_path / "ours.st").read_bytes()[:8], "little") % 8 == 0


def _broken(weights: Weights) -> Weights:
    def fail(_: str) -> torch.Tensor:
        raise RuntimeError("the disk is gone")

    tensors = dict(weights.tensors)
    tensors["head.weight"] = Tensor(tensors["head.weight"].shape, "f32", fail)
    return Weights(weights.facts, tensors)


@pytest.mark.parametrize(("to", "name"), [("pth", "m.pth"), ("safetensors", "m.safetensors"), ("hf", "folder")])
def test_a_failure_leaves_nothing_behind(tmp_path: Path, weights: Weights, to: str, name: str) -> None:
    with pytest.raises(RuntimeError, match="the disk is gone"):
        convert.save(_broken(weights), tmp_path / name, to)
    assert list(tmp_path.iterdir()) == []


def test_a_failure_leaves_the_old_file_alone(tmp_path: Path, weights: Weights) -> None:
    path = tmp_path / "m.pth"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="the disk is gone"):
        convert.save(_broken(weights), path, "pth")
    assert path.read_bytes() == b"old"
    convert.save(weights, path, "pth")
    assert open_checkpoint(str(path)).facts.n_layer == 3


def test_a_checkpoint_may_be_written_over_itself(tmp_path: Path, weights: Weights) -> None:
    path = convert.save(weights, tmp_path / "m.pth", "pth")
    convert.save(open_checkpoint(str(path)), path, "pth", "bf16")
    assert torch.equal(open_checkpoint(str(path)).get("emb.weight"), weights.get("emb.weight", "bf16"))


@pytest.mark.parametrize(
    ("call", "kind", "words"),
    [
        (
            lambda w, d: convert.save(w, d / "m", "gguf"),
            UsageError,
            r"unknown format 'gguf'.*Known: hf, prepared, pth, safetensors",
        ),
        (
            lambda w, d: convert.save(w, d / "m", "pth", "fp32"),
            UsageError,
            r"unknown number format 'fp32'. Did you mean f32",
        ),
        (lambda w, d: convert.save(w, d, "hf"), InputError, "exists already: give the folder a new name"),
        (lambda w, d: convert.save(w, d / "occupied" / "m.pth", "pth"), InputError, r"m\.pth cannot be written: "),
        (lambda w, d: convert.save(w, d, "safetensors"), InputError, "cannot be written: "),
    ],
)
def test_what_cannot_be_written(
    tmp_path: Path, weights: Weights, call: Callable[[Weights, Path], Path], kind: type[Exception], words: str
) -> None:
    (tmp_path / "occupied").touch()
    with pytest.raises(kind, match=words):
        call(weights, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["occupied"]


def test_an_empty_folder_may_become_the_hf_folder(tmp_path: Path, weights: Weights) -> None:
    (tmp_path / "hf").mkdir()
    convert.save(weights, tmp_path / "hf", "hf")
    assert sorted(path.name for path in (tmp_path / "hf").iterdir()) == ["config.json", "model.safetensors"]


def test_short_names_cover_all_formats() -> None:
    assert convert._SAFETENSORS.keys() == TORCH_NAMES.keys() == DTYPES.keys()
