"""Weights to files that other programs read: official `.pth`, official-name safetensors, an HF folder.

Shapes are those of official files (vectors as (1, 1, C)). Nothing half-written ever stands under the final
name: everything is written beside it and renamed. safetensors are written tensor by tensor.
"""

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from backends import detect, names
from backends.base import ModelFacts
from backends.errors import InputError, unknown
from backends.readers import read_json
from backends.weights import DTYPES, Tensor, Weights

_SAFETENSORS = {"f64": "F64", "f32": "F32", "bf16": "BF16", "f16": "F16"}
_TORCH_NAMES = {"f64": "float64", "f32": "float32", "bf16": "bfloat16", "f16": "float16"}


def save(weights: Weights, dest: Path, to: str, dtype: str = "") -> Path:
    """Write a checkpoint.

    Args:
        weights: what to write.
        dest: the file ("pth", "safetensors"; replaced if it exists), or a folder that does not exist yet ("hf").
        to: "pth", "safetensors" (with a config.json beside it) or "hf".
        dtype: number format; empty keeps the stored one.

    Returns:
        `dest`.

    Raises:
        UsageError: another format or number format.
        InputError: `dest` cannot be written, or the version has no HF names.
    """
    if to not in _WRITERS:
        raise unknown("format", to, _WRITERS)
    if dtype and dtype not in DTYPES:
        raise unknown("number format", dtype, DTYPES)
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        _WRITERS[to](weights, dest, dtype)
    except OSError as error:
        raise InputError(f"{dest} cannot be written: {error.strerror or error}.") from error
    return dest


def official_tensors(weights: Weights, dtype: str = "") -> dict[str, Tensor]:
    """The tensors in official order and in the shapes that official files have; still unread."""
    shapes = detect.file_shapes(weights.facts, weights.tensors)
    return {name: _cast(detect.reshaped(weights.tensors[name], shape), dtype) for name, shape in shapes.items()}


def config(facts: ModelFacts, dtype: str = "") -> dict[str, Any]:
    """`config.json` of an RWKV-7 in the keys that HF exports use, all derived from the tensors."""
    ranks = facts.ranks
    return {
        "architectures": ["RWKV7ForCausalLM"],
        "model_type": "rwkv7",
        "attn_mode": "chunk",
        "vocab_size": facts.vocab_size,
        "hidden_size": facts.n_embd,
        "num_hidden_layers": facts.n_layer,
        "head_dim": facts.head_size,
        "num_heads": facts.n_head,
        "intermediate_size": facts.n_ffn,
        "hidden_ratio": facts.n_ffn / facts.n_embd,
        "decay_low_rank_dim": ranks["w"],
        "a_low_rank_dim": ranks["a"],
        "v_low_rank_dim": ranks.get("v", 0),
        "gate_low_rank_dim": ranks["g"],
        "value_dim": [facts.n_embd] * facts.n_layer,
        "hidden_act": "sqrelu",
        "norm_eps": 1e-5,
        "norm_first": True,
        "norm_bias": True,
        "fuse_norm": False,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": _TORCH_NAMES[dtype or facts.stored.partition("+")[0]],
    }


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """A safetensors file, one tensor in memory at a time.

    The format: the length of the header (u64, little endian), the header as JSON padded with spaces to a
    multiple of 8, then the raw tensors in the order of their offsets.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + _nbytes(tensor)
        header[name] = {"dtype": _SAFETENSORS[tensor.dtype], "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            raw = tensor.read("cpu").contiguous().reshape(-1).view(torch.uint8)
            file.write(raw.numpy().data)


def _write_pth(weights: Weights, dest: Path, dtype: str) -> None:
    tensors = official_tensors(weights, dtype)
    with replacing(dest) as part:
        # A clone of its own storage each, since torch.save writes whole storages, also of views.
        torch.save({name: tensor.read("cpu").clone().contiguous() for name, tensor in tensors.items()}, part)


def _write_safetensors(weights: Weights, dest: Path, dtype: str) -> None:
    described = weights.facts.version == "7"  # whose config.json has agreed keys
    beside = dest.parent / "config.json"
    if described:
        _refuse_foreign(beside, weights.facts)
    with replacing(dest) as part:
        write_safetensors(part, official_tensors(weights, dtype))
    if described:
        with replacing(beside) as part:
            _write_config(part, weights.facts, dtype)


def _write_hf(weights: Weights, dest: Path, dtype: str) -> None:
    if weights.facts.version != "7":
        raise InputError(f"only RWKV-7 has HF names here; {weights.facts.name} is RWKV-{weights.facts.version}.")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise InputError(f"{dest} exists already: give the HF folder a new name or remove it.")
    with replacing(dest) as part:
        part.mkdir()
        write_safetensors(part / "model.safetensors", names.hf(official_tensors(weights, dtype)))
        _write_config(part / "config.json", weights.facts, dtype)


_WRITERS: dict[str, Callable[[Weights, Path, str], None]] = {
    "pth": _write_pth,
    "safetensors": _write_safetensors,
    "hf": _write_hf,
}


@contextmanager
def replacing(dest: Path) -> Iterator[Path]:
    """A path beside `dest` that takes its place when the block ends well and vanishes when it does not."""
    part = dest.with_name(f".{dest.name}.{os.getpid()}.part")
    try:
        yield part
        for file in [*part.rglob("*"), part]:
            _flush(file)
        part.replace(dest)
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        part.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Onto the disk before the rename, which would otherwise survive a power cut that the content does not."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def _refuse_foreign(path: Path, facts: ModelFacts) -> None:
    """Refuse to replace the config.json of another model that lives in the same folder."""
    there = read_json(path) if path.exists() else {}
    ours = config(facts)
    if any(there.get(key, ours[key]) != ours[key] for key in ours.keys() - {"torch_dtype"}):
        raise InputError(f"{path} describes another model: write this one into a folder of its own.")


def _write_config(path: Path, facts: ModelFacts, dtype: str) -> None:
    path.write_text(json.dumps(config(facts, dtype), indent=2) + "\n", encoding="utf-8")


def _cast(tensor: Tensor, dtype: str) -> Tensor:
    if not dtype or dtype == tensor.dtype:
        return tensor
    return replace(tensor, dtype=dtype, read=lambda device: tensor.read(device).to(DTYPES[dtype]))


def _nbytes(tensor: Tensor) -> int:
    return torch.Size(tensor.shape).numel() * DTYPES[tensor.dtype].itemsize
