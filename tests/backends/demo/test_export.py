"""From weights to the file: what stands in it, and that only the package's own file is opened as `demo`."""

import json
import platform
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from backends.checkpoint import open_checkpoint
from backends.demo import export, initial
from backends.errors import InputError
from tests.backends.demo import tiny


@pytest.fixture
def weights() -> dict[str, torch.Tensor]:
    return initial.weights(tiny.SHAPE, 0)


def header(path: Path) -> dict[str, Any]:
    """What a safetensors file says of itself."""
    raw = path.read_bytes()
    found: dict[str, Any] = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    return found


def test_the_file_holds_the_rounded_weights(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "tiny.safetensors"
    export.write(weights, {}, path)
    rounded = export.rounded(weights)
    with open_checkpoint(str(path)) as opened:
        assert opened.facts.stored == "bf16"
        assert set(opened) == set(weights)
        assert all(torch.equal(opened.get(name, "f32"), rounded[name]) for name in opened)
    assert {p.dtype for p in rounded.values()} == {torch.float32}
    assert not any(p.requires_grad for p in rounded.values())


def test_names_and_shapes_are_official(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    export.write(weights, {}, tmp_path / "tiny.safetensors")
    shapes = {name: tuple(tensor.shape) for name, tensor in load_file(tmp_path / "tiny.safetensors").items()}
    assert shapes["blocks.1.att.x_r"] == shapes["blocks.0.att.w0"] == (1, 1, 16)
    assert shapes["blocks.1.att.v1"] == (16, 6)
    assert shapes["blocks.0.att.r_k"] == (2, 8)
    assert shapes["emb.weight"] == (256, 16)


def test_the_file_says_what_it_is(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "tiny.safetensors"
    digest = export.write(weights, {"corpus": "0123", "steps": "7"}, path)
    assert digest == export.sha256(path)
    assert header(path)["__metadata__"] == {
        "format": "pt",
        "python": platform.python_version(),
        "licence": "trained on the Python standard library (Python Software Foundation License)",
        "corpus": "0123",
        "steps": "7",
    }
    assert export.write(weights, {"corpus": "0123", "steps": "7"}, tmp_path / "again.safetensors") == digest


def test_no_half_file(tmp_path: Path, weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tiny.safetensors"
    digest = export.write(weights, {}, path)

    def broken(part: Path, *_: object) -> None:
        part.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export, "write_safetensors", broken)
    with pytest.raises(OSError, match="No space left"):
        export.write(weights, {"steps": "8"}, path)
    assert export.sha256(path) == digest
    assert [file.name for file in tmp_path.iterdir()] == ["tiny.safetensors"]


def test_another_file_under_the_name_is_refused(tmp_path: Path, weights: dict[str, torch.Tensor]) -> None:
    path = tmp_path / "demo.safetensors"
    with pytest.raises(InputError, match=r"^demo\.safetensors is missing .* or train it: python -m backends\.demo\.$"):
        export.checked(path)
    export.write(weights, {}, path)
    with pytest.raises(InputError, match=r"^demo\.safetensors is not the file that .*; open another by its path\.$"):
        export.checked(path)
    with open_checkpoint(str(path)) as opened:
        assert opened.facts.n_embd == 16


def test_one_changed_bit_is_refused_under_the_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    raw = bytearray(export.FILE.read_bytes())
    raw[-1] ^= 1
    (tmp_path / "demo.safetensors").write_bytes(raw)
    with pytest.raises(InputError, match="is not the file that this package came with"):
        export.checked(tmp_path / "demo.safetensors")
    monkeypatch.setattr(export, "SHA256", "0" * 64)
    with pytest.raises(InputError, match="is not the file that this package came with"):
        open_checkpoint("demo")
