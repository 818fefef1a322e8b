"""One string for every model: what opens, from where, and what is said about a string that means nothing."""

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from backends import checkpoint, hub, names, readers
from backends.checkpoint import open_checkpoint
from backends.errors import InputError
from backends.sizes import MADE
from tests.backends.files import MODEL, SHARED, told


def _is_the_model(model: str | Path) -> bool:
    with open_checkpoint(str(model)) as weights:
        assert set(weights) == set(MODEL)
        for name in weights:
            tensor = weights.get(name)
            assert tuple(tensor.shape) == weights.tensors[name].shape
            assert torch.equal(tensor.reshape(-1), MODEL[name].reshape(-1))
    return True


def test_files(pth: Path, st: Path) -> None:
    for path in (pth, st):
        assert _is_the_model(path)
        weights = open_checkpoint(str(path))
        assert weights.path == path
        assert weights.facts.name == str(path)
        assert (weights.facts.version, weights.facts.stored, weights.facts.tokenizer) == ("7", "f32", "bytes")
        assert weights.tensors["blocks.0.att.x_r"].shape == (64,)


@pytest.mark.parametrize("dtype", ["f64", "bf16", "f16"])
def test_stored_format_is_kept(tmp_path: Path, dtype: str) -> None:
    kind = {"f64": torch.float64, "bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    state = {name: tensor.to(kind) for name, tensor in MODEL.items()}
    torch.save(state, tmp_path / "m.pth")
    save_file(state, tmp_path / "m.safetensors")
    for extension in ("pth", "safetensors"):
        weights = open_checkpoint(str(tmp_path / f"m.{extension}"))
        assert weights.facts.stored == dtype
        assert torch.equal(weights.get("head.weight"), state["head.weight"])
        assert weights.get("head.weight", "f32").dtype == torch.float32


def test_opening_reads_no_values(tmp_path: Path) -> None:
    """A file whose values are a hole of 4 GB opens in the memory that its names take."""
    rows = 1 << 24
    header = {"emb.weight": {"dtype": "F32", "shape": [rows, 64], "data_offsets": [0, rows * 256]}}
    text = json.dumps(header).encode()
    path = tmp_path / "sparse.safetensors"
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + rows * 256)
    source = readers.read(path)
    assert source.tensors["emb.weight"].shape == (rows, 64)
    source.close()


def test_pth_is_memory_mapped_and_legacy_files_open_too(
    tmp_path: Path, pth: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []
    load = torch.load

    def spied(*args: Any, **options: Any) -> Any:
        assert options["weights_only"] is True
        seen.append(options["mmap"])
        return load(*args, **options)

    monkeypatch.setattr(torch, "load", spied)
    assert _is_the_model(pth)
    old = tmp_path / "legacy.pth"
    torch.save(MODEL, old, _use_new_zipfile_serialization=False)
    assert _is_the_model(old)
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(pth) as source, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target:
        for member in source.namelist():
            target.writestr(member, source.read(member))
    assert _is_the_model(packed)
    assert seen == [True, False, False]


def test_parameters_and_views_are_tensors_too(tmp_path: Path) -> None:
    path = tmp_path / "m.pth"
    state: dict[str, torch.Tensor] = {name: torch.nn.Parameter(tensor) for name, tensor in MODEL.items()}
    state["blocks.0.att.w1"] = MODEL["blocks.0.att.w1"].t().contiguous().t()
    torch.save(state, path)
    assert _is_the_model(path)
    assert not open_checkpoint(str(path)).get("emb.weight").requires_grad


def _hf_state() -> dict[str, torch.Tensor]:
    return {name: t.read("cpu").contiguous() for name, t in names.hf(dict(readers.in_memory(MODEL).tensors)).items()}


def test_hf_folder_whole_and_sharded(tmp_path: Path) -> None:
    state = _hf_state()
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    whole.mkdir()
    sharded.mkdir()
    save_file(state, whole / "model.safetensors")
    halves = {"one.safetensors": list(state)[::2], "two.safetensors": list(state)[1::2]}
    for shard, keys in halves.items():
        save_file({key: state[key] for key in keys}, sharded / shard)
    index = {"metadata": {}, "weight_map": {key: shard for shard, keys in halves.items() for key in keys}}
    (sharded / "model.safetensors.index.json").write_text(json.dumps(index))
    for folder in (whole, sharded):
        (folder / "config.json").write_text(json.dumps({"hidden_size": 64, "num_heads": None}))
        assert _is_the_model(folder)
        assert open_checkpoint(str(folder)).path == folder


def test_tied_head_of_an_hf_folder(tmp_path: Path) -> None:
    state = _hf_state()
    del state["lm_head.weight"]
    save_file(state, tmp_path / "model.safetensors")
    assert "lacks head.weight" in told(tmp_path)
    (tmp_path / "config.json").write_text('{"tie_word_embeddings": true}')
    weights = open_checkpoint(str(tmp_path))
    assert torch.equal(weights.get("head.weight"), weights.get("emb.weight"))


def test_folder_with_one_file(pth: Path) -> None:
    assert _is_the_model(pth.parent)
    assert open_checkpoint(str(pth.parent)).path == pth


def test_config_that_contradicts_the_tensors(tmp_path: Path, st: Path) -> None:
    config = {"hidden_size": 768, "vocab_size": 300, "norm_eps": 1e-6, "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = open_checkpoint(str(tmp_path)).facts
    assert facts.n_embd == 64
    assert "config.json says hidden_size 768, the tensors say 64" in facts.evidence
    assert "norm_eps 1e-06" in facts.evidence
    assert "vocab_size" not in facts.evidence


def test_nan_weights_are_legal_and_named(tmp_path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in MODEL.items()}
    state["blocks.1.att.k_a"][0, 0, 3] = torch.nan
    state["head.weight"][2, 2] = torch.inf
    torch.save(state, tmp_path / "m.pth")
    weights = open_checkpoint(str(tmp_path / "m.pth"))
    assert sorted(checkpoint.not_finite(weights)) == ["blocks.1.att.k_a", "head.weight"]
    assert checkpoint.not_finite(open_checkpoint("conformance")) == []


def test_conformance_and_its_seed() -> None:
    plain, same, other = map(open_checkpoint, ("conformance", "conformance?seed=0", "conformance?seed=1"))
    assert torch.equal(plain.get("head.weight"), same.get("head.weight"))
    assert not torch.equal(plain.get("head.weight"), other.get("head.weight"))
    assert plain.path is None
    assert plain.facts.evidence.endswith("; made by code")
    assert other.facts.name == "conformance?seed=1"


def test_builtin_names_come_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conformance").mkdir()
    assert open_checkpoint("conformance").path is None
    assert set(MADE) == set(checkpoint.BUILTIN)
    assert MADE["synthetic:rwkv7-0.1b"].startswith("12 layers of 768")


def test_hub_ids_are_fetched(st: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[hub.HubId] = []

    def fetch(ident: hub.HubId) -> Path:
        asked.append(ident)
        return st

    monkeypatch.setattr(hub, "fetch", fetch)
    assert _is_the_model("RWKV/some-model@v1")
    assert _is_the_model("owner/repo/file.pth")
    assert asked == [hub.HubId("RWKV/some-model", "", "v1"), hub.HubId("owner/repo", "file.pth")]


@pytest.mark.skipif(not SHARED.is_dir(), reason="the tiny trained model does not lie beside this repository")
def test_tiny_trained_model() -> None:
    one = open_checkpoint(str(SHARED / "tiny-rwkv-7v0-834K.pth"))
    two = open_checkpoint(str(SHARED / "tiny-rwkv-7v0-834K.safetensors"))
    facts = one.facts
    assert (facts.n_layer, facts.n_embd, facts.n_head, facts.head_size, facts.n_ffn) == (12, 64, 1, 64, 256)
    assert (facts.vocab_size, facts.parameters) == (256, 829_888)
    assert dict(facts.ranks) == dict.fromkeys("wavg", 32)
    assert list(one) == list(two)
    assert all(torch.equal(one.get(name), two.get(name)) for name in one)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            "confromance",
            "unknown model 'confromance'. Did you mean conformance or ",
        ),
        ("synthetic:rwkv7-0.3b", "Did you mean synthetic:rwkv7-"),
        ("", "unknown model ''"),
        ("https://host/model", "unknown model"),
        ("a\0b", "unknown model"),
        ("x" * 5000, "unknown model"),
        ("conformance?sede=1", "has the option 'sede=1'; the only one is seed=N"),
        ("conformance?seed=", "the only one is seed=N"),
        ("conformance?zeros=0.5", "has the option 'zeros=0.5'; the only one is seed=N"),
        ("synthetic:rwkv7-0.1b?zeros=1.0", "there are seed=N with an integer N and zeros=S with the share S"),
        ("synthetic:rwkv7-0.1b?zeros=-0.5", "there are seed=N"),
        ("synthetic:rwkv7-0.1b?zeros=0", "there are seed=N"),
        ("synthetic:rwkv7-0.1b?zeros=0.00", "there are seed=N"),
        ("synthetic:rwkv7-0.1b?zeros=0.99999999999999999999", "with up to six digits"),
        ("conformance?seed=--5", "the only one is seed=N"),
        ("conformance?seed=1.5", "the only one is seed=N"),
        ("conformance?seed=1&fast", "has the option 'fast'"),
        ("synthetic:rwkv7-0.1b?width=3", "has the option 'width=3'"),
        ("owner/repo?seed=1", "options behind '?', which only models made by code take"),
        ("./gone.pth", "there is no file or folder './gone.pth'"),
        ("models/gone.pth", "there is no file or folder 'models/gone.pth'"),
        ("/gone", "there is no file or folder '/gone'"),
        ("~no-such-user/gone.pth", "there is no file or folder"),
    ],
)
def test_names_that_mean_nothing(model: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        open_checkpoint(model)
    assert words in str(caught.value)


def test_missing_path_offers_its_neighbours(pth: Path) -> None:
    assert "Did you mean model.pth?" in told(pth.with_name("modle.pth"))
    assert "options behind '?'" in told(f"{pth}?seed=1")


def test_a_refused_file_is_given_back(tmp_path: Path) -> None:
    closed: list[bool] = []
    source = readers.in_memory({"strange": torch.zeros(1)}, tmp_path)
    source = readers.Source(source.tensors, source.path, {}, lambda: closed.append(True))
    with pytest.raises(InputError, match="is no RWKV checkpoint"):
        checkpoint.assemble("m", source)
    assert closed == [True]
