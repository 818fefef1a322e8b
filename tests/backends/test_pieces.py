"""Files that cannot be mapped whole: the same tensors, one mapping a read."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from backends import pieces, readers
from backends.checkpoint import open_checkpoint
from backends.weights import DTYPES
from tests.backends.files import told
from tests.backends.random_model import random_rwkv7

MODEL = random_rwkv7(C=64, N=32, L=2, V=300, dtype=torch.bfloat16)


@pytest.fixture
def _no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    """What torch says where a file is larger than memory."""
    load = torch.load

    def refuse(*_: Any, **__: Any) -> None:
        raise RuntimeError("unable to mmap 26476830792 bytes from file <x>: Cannot allocate memory (12)")

    def loading(*arguments: Any, **options: Any) -> Any:
        return refuse() if options.get("mmap") else load(*arguments, **options)

    monkeypatch.setattr(readers, "safe_open", refuse)
    monkeypatch.setattr(torch, "load", loading)


def _written(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    if path.suffix == ".pth":
        torch.save(tensors, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return path


@pytest.mark.usefixtures("_no_room")
@pytest.mark.parametrize("name", ["m.pth", "m.safetensors"])
def test_the_same_tensors(tmp_path: Path, name: str) -> None:
    with open_checkpoint(str(_written(tmp_path / name, MODEL))) as weights:
        assert weights.facts.stored == "bf16"
        for key in weights:
            assert torch.equal(weights.get(key), MODEL[key].reshape(weights.tensors[key].shape)), key
        weights.forget()


@pytest.mark.usefixtures("_no_room")
def test_views_of_one_storage(tmp_path: Path) -> None:
    base = torch.cat([MODEL["emb.weight"], MODEL["head.weight"]])
    path = _written(tmp_path / "m.pth", MODEL | {"emb.weight": base[:300], "head.weight": base[300:]})
    assert torch.equal(open_checkpoint(str(path)).get("head.weight"), MODEL["head.weight"])


@pytest.mark.usefixtures("_no_room")
@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([1, 2], "holds a list, not a state dict"),
        ({"a": torch.zeros(2, 3).t()}, "tensor 'a' in"),
        ({"a": torch.zeros(2, dtype=torch.int8)}, "tensor 'a' in"),
        ({"model": MODEL}, "nests its state dict under 'model'"),
        ({"epoch": 3}, "holds 'epoch', of type int"),
    ],
)
def test_what_cannot_be_read_so(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "m.pth")
    assert words in told(tmp_path / "m.pth")


@pytest.mark.usefixtures("_no_room")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], "does not fit its shape or the file"),
        (lambda data: b"\xff" * 8 + data[8:], "its header is longer than the file"),
        (lambda data: data[:8] + b"?" + data[9:], "is no readable safetensors file"),
        (lambda data: data.replace(b"BF16", b"I8  ", 1), "is no readable safetensors file"),
    ],
)
def test_damaged_safetensors(tmp_path: Path, change: Any, words: str) -> None:
    path = _written(tmp_path / "m.safetensors", {"a": torch.ones(3, 2, dtype=torch.bfloat16)})
    path.write_bytes(change(path.read_bytes()))
    assert words in told(path) or "are read" in told(path)


@pytest.mark.parametrize("begin", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", ["f64", "f32", "bf16", "f16"])
def test_any_place_in_a_file(tmp_path: Path, begin: int, dtype: str) -> None:
    value = torch.randn(3, 4).to(DTYPES[dtype])
    (tmp_path / "x").write_bytes(bytes(begin) + value.view(torch.uint8).numpy().tobytes())
    assert torch.equal(pieces.mapped(tmp_path / "x", begin, (3, 4), dtype), value)
    assert pieces.mapped(tmp_path / "x", begin, (0, 4), dtype).shape == (0, 4)
