"""RWKV-7 and RWKV-6 as GGUF, written from the official tensors as llama.cpp's own converter writes them.

Names, metadata and which tensors always stay in F32 follow llama.cpp (conversion/rwkv.py and conversion/base.py
there). Nothing of that program is used: on one file, both give the same tensors, see docs/engines.md.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backends import gguf
from backends.base import ModelFacts
from backends.convert import replacing
from backends.errors import InputError, unknown
from backends.tokenizer import find_vocabulary, read_vocabulary
from backends.weights import DTYPES, Weights

FORMATS = {"f32": ("F32", 0), "f16": ("F16", 1), "bf16": ("BF16", 32)}
"""Number format -> type of the matrices, number of the file's type."""

V6, V7 = "6", "7"

_TOP = {
    "emb.weight": "token_embd.weight",
    "blocks.0.ln0.weight": "token_embd_norm.weight",
    "blocks.0.ln0.bias": "token_embd_norm.bias",
    "ln_out.weight": "output_norm.weight",
    "ln_out.bias": "output_norm.bias",
    "head.weight": "output.weight",
}
_SHARED = {
    "ln1": "attn_norm",
    "ln2": "attn_norm_2",
    "att.ln_x": "time_mix_ln",
    **{f"att.{name}": f"time_mix_{name}" for name in ("receptance", "key", "value", "output")},
    **{f"ffn.{name}": f"channel_mix_{name}" for name in ("key", "value")},
}
_PAIRS = [f"{letter}{number}" for letter in "wavg" for number in "012" if f"{letter}{number}" != "g0"]
_BLOCK = {
    V7: {
        **_SHARED,
        **{f"att.{name}": f"time_mix_{name}" for name in (*_PAIRS, "k_k", "k_a", "r_k")},
        "ffn.x_k": "channel_mix_lerp_k",
    },
    V6: {
        **_SHARED,
        "att.time_maa_x": "time_mix_lerp_x",
        "att.time_maa_w1": "time_mix_w1",
        "att.time_maa_w2": "time_mix_w2",
        "att.time_decay": "time_mix_decay",
        "att.time_decay_w1": "time_mix_decay_w1",
        "att.time_decay_w2": "time_mix_decay_w2",
        "att.time_faaaa": "time_mix_first",
        "att.gate": "time_mix_gate",
        "ffn.receptance": "channel_mix_receptance",
        "ffn.time_maa_k": "channel_mix_lerp_k",
        "ffn.time_maa_r": "channel_mix_lerp_r",
    },
}
_FUSED = {V7: "att.x_{}", V6: "att.time_maa_{}"}
_FUSED_ORDER = {V7: "rwkvag", V6: "wkvrg"}

_TURNED = ("w1", "w2", "a1", "a2", "v1", "v2", "g1", "g2")
"""Low-rank pairs, whose matrices are (in, out) in official files; ggml multiplies (out, in)."""

_ALWAYS_F32 = tuple(f"time_mix_{name}.weight" for name in ("w1", "w2", "decay_w1", "decay_w2", "first", "lerp_fused"))
"""Matrices that llama.cpp wants in F32, as all vectors."""


def save_gguf(weights: Weights, dest: Path, dtype: str = "") -> Path:
    """Write a checkpoint as GGUF.

    Args:
        weights: an RWKV-7 or RWKV-6.
        dest: the file; replaced if it exists, and only as a whole.
        dtype: "f32", "bf16" or "f16" of the matrices; vectors and small matrices stay in F32. Empty keeps the
            stored format.

    Returns:
        `dest`.

    Raises:
        UsageError: another number format.
        InputError: a version that llama.cpp has not, a value beyond f16, or `dest` cannot be written.
    """
    dtype = dtype or weights.facts.stored.partition("+")[0]
    if dtype not in FORMATS:
        raise unknown("number format", dtype, FORMATS)
    if weights.facts.version not in _BLOCK:
        known = " and ".join(f"RWKV-{version}" for version in sorted(_BLOCK))
        raise InputError(f"GGUF is written for {known}; {weights.facts.name} is RWKV-{weights.facts.version}.")
    if "blocks.0.att.time_state" in weights:
        raise InputError(f"{weights.facts.name} holds a tuned initial state, for which GGUF has no place.")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        with replacing(dest) as part:
            gguf.write(part, metadata(weights.facts, dtype), entries(weights, dtype))
    except OSError as error:
        raise InputError(f"{dest} cannot be written: {error.strerror or error}.") from error
    return dest


def entries(weights: Weights, dtype: str) -> Iterator[gguf.Entry]:
    """Every tensor of the file, unread, in the order of the official file."""
    facts, table = weights.facts, _BLOCK[weights.facts.version]
    for official, name in _TOP.items():
        yield _entry(weights, (official,), name, dtype)
    for layer in range(facts.n_layer):
        block = f"blocks.{layer}."
        fused = tuple(block + _FUSED[facts.version].format(letter) for letter in _FUSED_ORDER[facts.version])
        yield _entry(weights, fused, f"blk.{layer}.time_mix_lerp_fused.weight", dtype)
        for official in weights.block(layer):
            suffix = ".bias" if official.endswith(".bias") else ".weight"
            stem = official.removeprefix(block).removesuffix(suffix)
            if stem in table and not (layer == 0 and stem in ("att.v0", "att.v1", "att.v2")):
                yield _entry(weights, (official,), f"blk.{layer}.{table[stem]}{suffix}", dtype)
        if layer == 0 and facts.version == V7:
            # Never used, but llama.cpp wants tensors of the learning rate's shapes there.
            for number in "012":
                yield _entry(weights, (f"blocks.0.att.a{number}",), f"blk.0.time_mix_v{number}.weight", dtype)


def metadata(facts: ModelFacts, dtype: str) -> dict[str, gguf.Value]:
    """The keys that llama.cpp reads, all derived from the tensors.

    Args:
        facts: of the checkpoint.
        dtype: of the matrices.
    """
    arch = f"rwkv{facts.version}"
    sizes: dict[str, gguf.Value] = {
        "context_length": 1 << 20,  # there is no limit; the number that llama.cpp's converter writes
        "embedding_length": facts.n_embd,
        "block_count": facts.n_layer,
        "attention.layer_norm_epsilon": 1e-5,
        "wkv.head_size": facts.head_size,
        "feed_forward_length": facts.n_ffn,
        "attention.head_count": 0,  # asked for, not used
    }
    ranks = facts.ranks
    if facts.version == V7:
        sizes |= {
            "attention.decay_lora_rank": ranks["w"],
            "attention.iclr_lora_rank": ranks["a"],
            "attention.value_residual_mix_lora_rank": ranks.get("v", ranks["a"]),
            "attention.gate_lora_rank": ranks["g"],
        }
    else:
        sizes |= {"rescale_every_n_layers": 0, "time_mix_extra_dim": ranks["m"], "time_decay_extra_dim": ranks["d"]}
    general: dict[str, gguf.Value] = {
        "general.architecture": arch,
        "general.type": "model",
        "general.name": Path(facts.name).stem,
        "general.file_type": FORMATS[dtype][1],
        "general.quantization_version": 2,
    }
    return general | {f"{arch}.{key}": value for key, value in sizes.items()} | _vocabulary(facts, arch)


def _vocabulary(facts: ModelFacts, arch: str) -> dict[str, gguf.Value]:
    """The tokenizer's keys; a vocabulary that belongs to none gets only its size."""
    if facts.tokenizer == "world":
        tokens, special = read_vocabulary(find_vocabulary())[1:], [b"<s>"]
        ids: dict[str, gguf.Value] = {"bos_token_id": 0, "eos_token_id": 0, "eot_token_id": 261}
    elif facts.tokenizer == "bytes":
        tokens, special, ids = [bytes([value]) for value in range(256)], [], {}
    else:
        return {"tokenizer.ggml.model": "no_vocab", f"{arch}.vocab_size": facts.vocab_size}
    words = special + [_escaped(token) for token in tokens]
    spare = facts.vocab_size - len(words)
    kinds = [3] * len(special) + [1] * len(tokens) + [5] * spare  # control, normal, unused
    words += [f"[PAD{ident}]".encode() for ident in range(len(words), facts.vocab_size)]
    named = {f"tokenizer.ggml.{key}": value for key, value in ids.items()}
    table: dict[str, gguf.Value] = {
        "tokenizer.ggml.model": "rwkv",
        "tokenizer.ggml.tokens": words,
        "tokenizer.ggml.token_type": np.array(kinds, dtype=np.int32),
    }
    return table | named | ({"tokenizer.chat_template": "rwkv-world"} if special else {})


def _escaped(token: bytes) -> bytes:
    r"""A token as llama.cpp unescapes it: printable ASCII as it is, all else as \n, \t, \r or \xHH."""
    return repr(token)[2:-1].encode()


def _entry(weights: Weights, sources: Sequence[str], name: str, dtype: str) -> gguf.Entry:
    """One tensor of the file, made of one official tensor or of several that are stacked."""
    shape = _shape(weights.tensors[sources[0]].shape, name)
    if len(sources) > 1:
        shape = (len(sources), 1, 1, *shape)
    kept = len(shape) == 1 or name.endswith(_ALWAYS_F32)
    kind = "F32" if kept else FORMATS[dtype][0]
    size = 4 if kind == "F32" else 2

    def read() -> memoryview:
        parts = [_turned(weights.get(source).to(torch.float32), name) for source in sources]
        return _raw(torch.stack(parts) if len(parts) > 1 else parts[0], dtype if size == 2 else "f32", name)

    return gguf.Entry(name, shape, kind, size * int(np.prod(shape, dtype=np.int64)), read)


def _shape(official: tuple[int, ...], name: str) -> tuple[int, ...]:
    stem = name.removesuffix(".weight")
    if stem.endswith("r_k"):
        return (official[0] * official[1],)
    return (*official[:-2], official[-1], official[-2]) if _is_turned(stem) and len(official) > 1 else official


def _is_turned(stem: str) -> bool:
    return "time_mix_" in stem and stem.partition("time_mix_")[2].removeprefix("decay_") in _TURNED


def _turned(tensor: torch.Tensor, name: str) -> torch.Tensor:
    stem = name.removesuffix(".weight")
    if stem.endswith("r_k"):
        return tensor.flatten()
    return tensor.transpose(-1, -2) if _is_turned(stem) and tensor.ndim > 1 else tensor


def _raw(tensor: torch.Tensor, dtype: str, name: str) -> memoryview:
    cast = tensor.to(DTYPES[dtype]).contiguous()
    if dtype == "f16" and bool((torch.isinf(cast) & ~torch.isinf(tensor)).any()):
        raise InputError(f"{name} holds values beyond 65504, the largest of f16: write bf16 or f32.")
    flat: Any = cast.reshape(-1).view(torch.uint8).numpy()
    return memoryview(flat)
