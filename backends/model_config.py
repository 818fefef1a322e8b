"""`config.json`: the sizes of a checkpoint in the keys that other programs read, all derived from the tensors."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from backends.base import ModelFacts
from backends.errors import InputError
from backends.readers import read_json

TORCH_NAMES = {"f64": "float64", "f32": "float32", "bf16": "bfloat16", "f16": "float16"}
"""Number format -> how HF spells it."""


def config(facts: ModelFacts, dtype: str = "") -> dict[str, Any]:
    """`config.json` as HF exports of the version have it.

    Args:
        facts: sizes of the checkpoint.
        dtype: number format of the written file; empty is the stored one.
    """
    special = _rwkv7(facts) if facts.version.startswith("7") else _earlier(facts)
    return {
        **special,
        "vocab_size": facts.vocab_size,
        "hidden_size": facts.n_embd,
        "num_hidden_layers": facts.n_layer,
        "num_heads": facts.n_head,
        "intermediate_size": facts.n_ffn,
        "tie_word_embeddings": False,
        "bos_token_id": 0,
        "eos_token_id": 0,
        "torch_dtype": TORCH_NAMES[dtype or facts.stored.partition("+")[0]],
    }


def prepared(facts: ModelFacts, dtype: str = "") -> dict[str, Any]:
    """`config.json` of candle_rwkv7's prepared folder, whose reader knows these keys only."""
    del dtype  # always float32
    ranks = facts.ranks
    return {
        "vocab_size": facts.vocab_size,
        "hidden_size": facts.n_embd,
        "num_hidden_layers": facts.n_layer,
        "head_dim": facts.head_size,
        "intermediate_size": facts.n_ffn,
        "a_low_rank_dim": ranks["a"],
        "decay_low_rank_dim": ranks["w"],
        "v_low_rank_dim": ranks.get("v", 0),
        "gate_low_rank_dim": ranks["g"],
        "norm_eps": 1e-5,
    }


Keys = Callable[[ModelFacts, str], dict[str, Any]]


def write(path: Path, facts: ModelFacts, dtype: str, keys: Keys = config) -> None:
    """Write the file."""
    path.write_text(json.dumps(keys(facts, dtype), indent=2) + "\n", encoding="utf-8")


def refuse_foreign(path: Path, facts: ModelFacts) -> None:
    """Refuse to replace the config.json of another model that lives in the same folder.

    Raises:
        InputError: there is one, and it states other sizes.
    """
    there = read_json(path) if path.exists() else {}
    ours = config(facts)
    if any(there.get(key, ours[key]) != ours[key] for key in ours.keys() - {"torch_dtype"}):
        raise InputError(
            f"{path} describes another model: write this one into a folder of its own, or say where with --config."
        )


def _rwkv7(facts: ModelFacts) -> dict[str, Any]:
    ranks, name = facts.ranks, f"rwkv{facts.version}"
    return {
        "architectures": [f"RWKV{facts.version}ForCausalLM"],
        "model_type": name,
        "attn_mode": "chunk",
        "head_dim": facts.head_size,
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
    }


def _earlier(facts: ModelFacts) -> dict[str, Any]:
    """RWKV-4 to 6; `head_size` says what it means, unlike exports that put it into `num_attention_heads`."""
    major = facts.version.partition(".")[0]
    return {
        "architectures": [f"Rwkv{major if major != '4' else ''}ForCausalLM"],
        "model_type": f"rwkv{major if major != '4' else ''}",
        "rwkv_version": facts.version,
        "attention_hidden_size": facts.n_embd,
        "head_size": facts.head_size,
        "layer_norm_epsilon": 1e-5,
    }
