"""What each bad file or folder is told, in one line, and that nothing in it is run."""

import json
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from backends import readers
from backends.checkpoint import open_checkpoint
from backends.errors import InputError
from tests.backends.files import MODEL, told


class _Bomb:
    """Runs a shell command wherever it is unpickled without care."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {self.flag}",)


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("bare", [False, True])
def test_pickle_bombs_do_not_go_off(tmp_path: Path, bare: bool, protocol: int) -> None:
    flag, path = tmp_path / "went-off", tmp_path / "bomb.pth"
    state = {**MODEL, "extra": _Bomb(flag)}
    if bare:
        path.write_bytes(pickle.dumps({"extra": _Bomb(flag)}, protocol=protocol))
    else:
        torch.save(state, path, pickle_protocol=protocol)
    assert "nothing in it was run" in told(path)
    assert not flag.exists()
    torch.load(path, weights_only=False) if not bare else pickle.loads(path.read_bytes())
    assert flag.exists()  # the bomb was live


def _truncated(path: Path) -> None:
    torch.save(MODEL, path)
    os.truncate(path, path.stat().st_size // 2)


def _truncated_legacy(path: Path) -> None:
    torch.save(MODEL, path, _use_new_zipfile_serialization=False)
    os.truncate(path, path.stat().st_size // 2)


def _plain_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme.txt", "no tensors")


def _saved(content: Any) -> Callable[[Path], None]:
    return lambda path: torch.save(content, path)


BAD_PTH: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.touch(), "is empty (0 bytes)"),
    "truncated": (_truncated, "is cut short or damaged"),
    "truncated legacy": (_truncated_legacy, "is no readable PyTorch checkpoint"),
    "half a pickle": (
        lambda path: path.write_bytes(pickle.dumps({"a": 1}, protocol=2)[:-3]),
        "not written by torch.save, or is damaged",
    ),
    "text": (lambda path: path.write_text("hello"), "not written by torch.save"),
    "plain zip": (_plain_zip, "not written by torch.save"),
    "html": (lambda path: path.write_text("\n<!DOCTYPE html><p>"), "is an HTML page"),
    "lfs": (lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull"),
    "list": (_saved([1, 2]), "holds a list, not a state dict"),
    "nothing": (_saved({}), "holds an empty state dict"),
    "number": (_saved({**MODEL, "epoch": 3}), "holds 'epoch', of type int"),
    "number as name": (_saved({3: torch.zeros(1)}), "holds 3, of type Tensor"),
    "nested": (_saved({"epoch": 1, "model": MODEL}), "nests its state dict under 'model'"),
    "a whole module": (_saved(torch.nn.Linear(2, 2)), "asks for torch.nn.modules.linear.Linear"),
    "integers": (_saved({**MODEL, "emb.weight": torch.zeros(3, 3, dtype=torch.int64)}), "'emb.weight' in"),
    "sparse": (_saved({**MODEL, "emb.weight": torch.eye(3).to_sparse()}), "is float32 sparse_coo"),
    "no data": (_saved({**MODEL, "emb.weight": torch.zeros(3, device="meta")}), "is without data"),
    "no rwkv": (_saved({"fc.weight": torch.zeros(3, 3)}), "is no RWKV checkpoint: it holds fc.weight"),
    "wrong shape": (
        _saved({**MODEL, "blocks.1.att.g2": torch.zeros(64, 128)}),
        "blocks.1.att.g2 is 64x128, expected 64x64",
    ),
    "control characters": (_saved({**MODEL, "a\nb\x1b[1m": torch.zeros(1)}), r"'a\nb\x1b[1m'"),
}


@pytest.mark.parametrize("kind", BAD_PTH)
def test_bad_pth(tmp_path: Path, kind: str) -> None:
    write, words = BAD_PTH[kind]
    path = tmp_path / "bad.pth"
    write(path)
    assert words in told(path)


def _header(text: bytes, data: bytes = b"") -> Callable[[Path], object]:
    return lambda path: path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def _cut_safetensors(path: Path) -> None:
    save_file(MODEL, path)
    os.truncate(path, path.stat().st_size - 5)


BAD_SAFETENSORS: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda path: path.touch(), "is empty (0 bytes)"),
    "short": (lambda path: path.write_bytes(b"abc"), "is no readable safetensors file"),
    "truncated": (_cut_safetensors, "is no readable safetensors file"),
    "header is no JSON": (_header(b"{nonsense"), "is no readable safetensors file"),
    "header too long": (lambda path: path.write_bytes(b"\xff" * 64), "is no readable safetensors file"),
    "no tensors": (_header(b"{}"), "holds no tensors"),
    "integers": (_header(b'{"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}', b"\0" * 8), "'a' in"),
}


@pytest.mark.parametrize("kind", BAD_SAFETENSORS)
def test_bad_safetensors(tmp_path: Path, kind: str) -> None:
    write, words = BAD_SAFETENSORS[kind]
    path = tmp_path / "bad.safetensors"
    write(path)
    assert words in told(path)


def test_random_damage_never_ends_in_a_traceback(tmp_path: Path, pth: Path, st: Path) -> None:
    rng = np.random.default_rng(0)
    lines: list[str] = []
    for path in (pth, st):
        whole = path.read_bytes()
        for trial in range(40):
            damaged = bytearray(whole)
            for place in rng.integers(0, min(len(whole), 20_000), size=1 + trial % 7):
                damaged[place] = rng.integers(256)
            bad = tmp_path / f"damaged{path.suffix}"
            bad.write_bytes(damaged if trial % 3 else damaged[: rng.integers(1, len(damaged))])
            try:
                weights = open_checkpoint(str(bad))
            except InputError as error:
                lines.append(str(error))
            else:
                assert all(weights.get(name) is not None for name in weights)
    assert len(lines) > 20
    assert all(line.isprintable() for line in lines)


def test_bad_folders(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    assert "holds no checkpoint file" in told(folder)
    (folder / "config.json").write_text("{broken")
    assert "config.json is no readable JSON" in told(folder)
    (folder / "config.json").write_text("[1]")
    assert "config.json holds a JSON list" in told(folder)
    (folder / "config.json").unlink()
    (folder / "a.pth").touch()
    (folder / "b.safetensors").touch()
    assert "holds 2 checkpoint files (a.pth, b.safetensors): name one of them" in told(folder)


def test_bad_indexes(tmp_path: Path, st: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"

    def about(weight_map: object) -> str:
        index.write_text(json.dumps({"weight_map": weight_map}))
        return told(tmp_path)

    assert "has no weight_map" in about(None)
    assert "lacks the shard gone.safetensors" in about(
        {"emb.weight": "model.safetensors", "head.weight": "gone.safetensors"}
    )
    assert "does not lie in its folder" in about({"emb.weight": "../elsewhere.safetensors"})
    assert "lacks 1 tensors that its index names, ghost first" in about({"ghost": st.name, "emb.weight": st.name})
    index.write_text("")
    assert "index.json is no readable JSON" in told(tmp_path)


def test_unknown_extension_and_unreadable_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pth: Path) -> None:
    (tmp_path / "model.ckpt").write_bytes(b"x")
    assert "has no known checkpoint extension; readable are .pth, .pt, .safetensors, .st" in told(
        tmp_path / "model.ckpt"
    )

    def forbidden(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)
    assert "model.pth cannot be read: Permission denied" in told(pth)


def test_in_memory_tensors_are_checked_without_a_path() -> None:
    with pytest.raises(
        InputError, match=r"^tensor 'a' is int8 strided; dense tensors in f64, f32, bf16, f16 are read\.$"
    ):
        readers.in_memory({"a": torch.zeros(1, dtype=torch.int8)})
