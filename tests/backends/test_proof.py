"""The proof of a conversion: it passes what is right, and nothing else takes the final name."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from backends import convert, proof
from backends.checkpoint import assemble, open_checkpoint
from backends.convert import Order
from backends.errors import InputError, UsageError
from backends.readers import in_memory
from backends.weights import Tensor
from tests.backends.files import MODEL

VERSIONS = ("5.1", "5.2", "6", "7", "7a", "7b")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("to", ["pth", "safetensors"])
def test_every_version_there_and_back(tmp_path: Path, version: str, to: str) -> None:
    """There in one format, back in the other; tensors and logits bit-equal at every step, and at the end."""
    back = {"pth": "safetensors", "safetensors": "pth"}[to]
    source, (there, home) = f"synthetic:rwkv{version}-tiny", (tmp_path / f"there.{to}", tmp_path / f"home.{back}")
    for done in (convert.convert(source, there), convert.convert(str(there), home)):
        assert done.facts.version == version
        assert done.proof.logits == 0.0
        assert (done.proof.missing, done.loss.values) == ((), 0)
        assert done.proof.sentences()[1] == "logits of 8 tokens: the same, bit for bit"
    first, last = open_checkpoint(source), open_checkpoint(str(home))
    assert list(first) == list(last)
    assert all(torch.equal(first.get(name), last.get(name)) for name in first)


@pytest.mark.parametrize(("to", "stored", "left_out"), [("hf", "bf16", 3), ("prepared", "f32", 0)])
def test_the_folders_of_rwkv7(tmp_path: Path, to: str, stored: str, left_out: int) -> None:
    done = convert.convert("synthetic:rwkv7-tiny", tmp_path / "m", to)
    assert (done.proof.logits, len(done.proof.missing)) == (0.0, left_out)
    again = open_checkpoint(str(tmp_path / "m"))
    assert again.facts.stored == stored
    home = convert.convert(str(tmp_path / "m"), tmp_path / "home.pth", dtype="bf16")
    assert home.proof.logits == 0.0
    first, last = open_checkpoint("synthetic:rwkv7-tiny"), open_checkpoint(str(tmp_path / "home.pth"))
    assert all(torch.equal(first.get(name), last.get(name)) for name in last)
    assert home.loss.changed == 0


def test_what_is_lost_is_told(tmp_path: Path) -> None:
    torch.save(MODEL, tmp_path / "m.pth")
    done = convert.convert(str(tmp_path / "m.pth"), tmp_path / "n.safetensors", dtype="bf16")
    changed = sum(int((value.bfloat16().float() != value).sum()) for value in MODEL.values())
    assert (done.loss.values, done.loss.changed) == (sum(value.numel() for value in MODEL.values()), changed)
    assert 0 < done.loss.largest <= 2**-8
    assert done.proof.logits is not None
    assert 0 < done.proof.logits < 1
    assert "from the source's" in done.proof.sentences()[1]
    assert done.size > (tmp_path / "n.safetensors").stat().st_size - 1


def test_a_large_model_is_compared_by_its_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proof, "LARGE", 1000)
    done = convert.convert("synthetic:rwkv7-tiny", tmp_path / "m.pth")
    assert done.proof.logits is None
    assert "logits not compared: " in done.proof.sentences()[1]
    monkeypatch.setattr("backends.reference.session.VERSIONS", {})
    told = convert.convert("synthetic:rwkv7-tiny", tmp_path / "m.pth").proof.sentences()
    assert told[1] == "logits not compared: there are no equations for RWKV-7 here"


def _head_off(order: Order, name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Tensor]:
    tensors = convert.official_tensors(order.weights, order.dtype)
    right = tensors[name]
    return tensors | {name: Tensor(right.shape, right.dtype, lambda device: change(right.read(device)))}


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("blocks.1.att.receptance.weight", lambda value: value.t().contiguous()),
        ("blocks.0.att.w1", lambda value: value * (1 + 2**-20)),
        ("blocks.0.ffn.x_k", lambda value: -value * 0),  # minus zero is another bit pattern than zero
    ],
)
def test_a_writer_that_errs_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, change: Callable[[torch.Tensor], torch.Tensor]
) -> None:
    zero = MODEL | {"blocks.0.ffn.x_k": torch.zeros(1, 1, 64)}
    torch.save(zero, tmp_path / "m.pth")
    monkeypatch.setattr(Order, "tensors", lambda order: _head_off(order, name, change))
    (tmp_path / "n.pth").write_bytes(b"old")
    with pytest.raises(proof.BrokenError, match=f"{name} reads back as something else"):
        convert.convert(str(tmp_path / "m.pth"), tmp_path / "n.pth")
    assert (tmp_path / "n.pth").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pth", "n.pth"]


def test_a_tensor_that_is_missing_is_noticed(tmp_path: Path) -> None:
    extra = {f"blocks.0.att.v{part}": MODEL[f"blocks.1.att.v{part}"] for part in "012"}
    with_v, without = assemble("a", in_memory(MODEL | extra)), assemble("b", in_memory(MODEL))
    convert.save(with_v, tmp_path / "m.pth", "pth")
    with pytest.raises(proof.BrokenError, match=r"does not hold the tensors that were written: blocks\.0\.att\.v0"):
        proof.prove(without, tmp_path / "m.pth", "")


def test_not_a_number_is_equal_to_itself(tmp_path: Path) -> None:
    torch.save(MODEL | {"head.weight": torch.full((300, 64), float("nan"))}, tmp_path / "m.pth")
    assert convert.convert(str(tmp_path / "m.pth"), tmp_path / "n.st").proof.logits == 0.0


@pytest.mark.parametrize(
    ("name", "to"),
    [
        ("m.pth", "pth"),
        ("m.PT", "pth"),
        ("m.safetensors", "safetensors"),
        ("m.st", "safetensors"),
        ("m", "hf"),
        ("x/prepared", "prepared"),
    ],
)
def test_the_format_that_a_name_asks_for(name: str, to: str) -> None:
    assert convert.format_of(Path(name)) == to


def test_a_name_that_says_nothing(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"'m\.gguf' does not tell a format.*--to pth, --to safetensors, --to hf"):
        convert.format_of(tmp_path / "m.gguf")
    (tmp_path / "v1.2").mkdir()
    assert convert.format_of(tmp_path / "v1.2") == "hf"


def test_a_disk_without_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Usage:
        free = 1000

    monkeypatch.setattr("shutil.disk_usage", lambda path: Usage)
    with pytest.raises(InputError, match=r"m\.pth takes .* GB, and 0\.0 GB are free there"):
        convert.convert("synthetic:rwkv7-tiny", tmp_path / "m.pth")
    assert list(tmp_path.iterdir()) == []


def test_config_json_where_it_is_asked_for(tmp_path: Path) -> None:
    for name, config in (("a.pth", "x/a.json"), ("b.safetensors", "x/b.json"), ("prepared", "x/c.json")):
        convert.convert("synthetic:rwkv7-tiny", tmp_path / name, config=tmp_path / config)
        assert (tmp_path / config).exists()
    assert not (tmp_path / "config.json").exists()
    assert '"gate_low_rank_dim": 24' in (tmp_path / "x" / "c.json").read_text()
