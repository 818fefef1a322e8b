"""rwkv.cpp's files, written here from the format's description: what is read back, and what is refused."""

import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from backends import rwkvcpp
from backends.checkpoint import open_checkpoint
from backends.weights import Weights
from tests.backends.files import told

MIXES = "rwkvag"


def _record(name: str, value: torch.Tensor, kind: int | None = None) -> bytes:
    array = np.ascontiguousarray(value.numpy())
    kind = {np.dtype("f4"): 0, np.dtype("f2"): 1}[array.dtype] if kind is None else kind
    head = struct.pack("<3i", array.ndim, len(name.encode()), kind)
    return head + struct.pack(f"<{array.ndim}i", *array.shape[::-1]) + name.encode() + array.tobytes()


def _header(version: int = 101, magic: int = 0x67676D66) -> bytes:
    return struct.pack("<6i", magic, version, 256, 128, 3, 0)


def _stored(version: str, weights: Weights) -> dict[str, torch.Tensor]:
    """What rwkv.cpp's converter makes of a checkpoint, in float32."""
    stored: dict[str, torch.Tensor] = {}
    heads = weights.facts.n_head
    for name in weights:
        value, last = weights.get(name, "f32"), name.rpartition(".")[2]
        if version == "7" and last.startswith("x_") and ".att." in name:
            continue
        if version == "7" and last in {f"{a}{b}" for a in "wavg" for b in "12"}:
            value = value.t().contiguous()
        if version == "6" and last in ("time_maa_w1", "time_decay_w1", "time_decay_w2"):
            value = value.t().contiguous()
        if version == "6" and last == "time_maa_w2":
            value = value.transpose(1, 2).contiguous()
        if version == "6" and last in ("time_decay", "time_faaaa"):
            value = value.reshape(heads, -1, 1)
        stored[name] = _eagle(version, last, value, heads)
    for layer in range(weights.facts.n_layer) if version == "7" else ():
        mixes = [weights.get(f"blocks.{layer}.att.x_{mix}", "f32").reshape(1, -1) for mix in MIXES]
        stored[f"blocks.{layer}.att.x_rwkvag"] = torch.stack(mixes)
    return stored


def _eagle(version: str, last: str, value: torch.Tensor, heads: int) -> torch.Tensor:
    """What becomes of the decays and bonuses of RWKV-4 and 5."""
    if version == "4":
        return -value.exp() if last == "time_decay" else value
    if not version.startswith("5") or last not in ("time_decay", "time_first", "time_faaaa"):
        return value
    used = {"time_decay": value.exp().neg().exp(), "time_first": value.exp(), "time_faaaa": value}
    return used[last].reshape(heads, -1, 1)


def _file(path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    path.write_bytes(_header() + b"".join(_record(name, value) for name, value in tensors.items()))
    return path


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2", "6", "7"])
def test_every_version_reads_back(tmp_path: Path, version: str) -> None:
    weights = open_checkpoint(f"synthetic:rwkv{version}-tiny")
    again = open_checkpoint(str(_file(tmp_path / "m.bin", _stored(version, weights))))
    assert again.facts.version == version
    bonus = version in ("5.0", "5.1") and any(name.endswith("time_first") for name in weights)
    for name in weights:
        want = weights.get(name, "f32")
        if bonus and name.endswith("time_first"):  # stored as it is used
            want = want.exp()
        got = again.get(name.replace("time_first", "time_faaaa") if bonus else name)
        if name.endswith("time_decay") and version[0] in "45":
            torch.testing.assert_close(got, want, rtol=2e-6, atol=2e-6)
        else:
            assert torch.equal(got, want), name
    assert len(again.tensors) == len(weights.tensors)
    assert (rwkvcpp.REMARK in again.facts.evidence) is (version[0] in "45")


def test_a_bonus_that_is_already_exponential(tmp_path: Path) -> None:
    weights = open_checkpoint("synthetic:rwkv5.2-tiny")
    stored = _stored("5.2", weights)
    renamed = {name.replace("time_faaaa", "time_first"): value for name, value in stored.items()}
    again = open_checkpoint(str(_file(tmp_path / "m.bin", renamed)))
    assert torch.equal(again.get("blocks.1.att.time_faaaa"), weights.get("blocks.1.att.time_faaaa", "f32"))


def test_half_precision_matrices(tmp_path: Path) -> None:
    weights = open_checkpoint("synthetic:rwkv7-tiny")
    stored = _stored("7", weights)
    stored["head.weight"] = stored["head.weight"].half()
    again = open_checkpoint(str(_file(tmp_path / "m.bin", stored)))
    assert again.get("head.weight").dtype == torch.float16
    assert torch.equal(again.get("head.weight").float(), stored["head.weight"].float())
    again.forget()
    assert torch.equal(again.get("emb.weight"), weights.get("emb.weight", "f32"))


TINY = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (_header(version=7), "no rwkv.cpp file of version 100 or 101"),
        (_header() + _record("emb.weight", TINY)[:-1], "is cut short: emb.weight"),
        (_header() + _record("emb.weight", TINY, kind=8), "is quantised: emb.weight is Q5_1; FP32 and FP16 files"),
        (_header() + _record("emb.weight", TINY, kind=77), r"of an unknown format \(77\)"),
        (_header() + struct.pack("<3i", 99, 3, 0), "damaged rwkv.cpp file: a tensor of 99 axes"),
        (_header() + struct.pack("<3i", 2, 99999, 0), "a name of 99999 bytes"),
        (_header() + struct.pack("<3i", 1, 2, 0) + struct.pack("<i", -4) + b"ab", "is cut short: ab"),
        (_header()[:10], "damaged rwkv.cpp file"),
        (_header() + struct.pack("<3i", 1, 2, 0)[:7], "damaged rwkv.cpp file"),
        (_header() + struct.pack("<3i", 1, 2, 0) + struct.pack("<i", 1) + b"\xff\xfe" + bytes(4), "damaged rwkv.cpp"),
        (
            _header() + _record("blocks.0.att.x_rwkvag", torch.ones(5, 1, 4)),
            r"x_rwkvag stacks six mixes, but has the shape \(5, 1, 4\)",
        ),
    ],
)
def test_what_is_refused(tmp_path: Path, content: bytes, words: str) -> None:
    import re

    path = tmp_path / "m.bin"
    path.write_bytes(content)
    assert re.search(words, told(path))


def test_a_pickled_bin_is_read_as_what_it_is(tmp_path: Path) -> None:
    weights = open_checkpoint("synthetic:rwkv7-tiny")
    torch.save({name: weights.get(name).clone() for name in weights}, tmp_path / "pytorch_model.bin")
    assert open_checkpoint(str(tmp_path / "pytorch_model.bin")).facts.version == "7"
    (tmp_path / "other.bin").write_bytes(b"something else entirely")
    assert "other.bin is no readable PyTorch checkpoint" in told(tmp_path / "other.bin")
