"""RWKV as GGUF: names, shapes, orientation, types and vocabulary as llama.cpp wants them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backends import gguf, gguf_writer
from backends.checkpoint import assemble
from backends.errors import InputError, UsageError
from backends.readers import in_memory
from backends.weights import Weights
from tests.backends.random_family import Shape, random_model
from tests.backends.random_model import random_rwkv7

V7 = random_rwkv7(C=128, N=64, L=2, V=256)
V6 = random_model("6", Shape(C=128, N=64, L=2, V=256))


def opened(tensors: dict[str, torch.Tensor]) -> Weights:
    return assemble("folder/model.pth", in_memory(tensors))


def arrays(weights: Weights, dtype: str = "f32") -> dict[str, np.ndarray[Any, Any]]:
    """Every tensor as it stands in the file, in the shape that numpy has it."""
    kinds = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
    found = gguf_writer.entries(weights, dtype)
    return {e.name: np.frombuffer(e.read(), kinds[e.type]).reshape(e.shape) for e in found}


@pytest.fixture(scope="module")
def seven() -> dict[str, np.ndarray[Any, Any]]:
    return arrays(opened(V7))


def test_matrices_are_out_by_in(seven: dict[str, np.ndarray[Any, Any]]) -> None:
    for letter in "wag":
        for number in "12":
            official = V7[f"blocks.1.att.{letter}{number}"].numpy()
            np.testing.assert_array_equal(seven[f"blk.1.time_mix_{letter}{number}.weight"], official.T)
    for name in ("receptance", "key", "value", "output"):
        np.testing.assert_array_equal(seven[f"blk.1.time_mix_{name}.weight"], V7[f"blocks.1.att.{name}.weight"])
    np.testing.assert_array_equal(seven["blk.0.channel_mix_key.weight"], V7["blocks.0.ffn.key.weight"])
    np.testing.assert_array_equal(seven["output.weight"], V7["head.weight"])


def test_vectors_and_fused_mixes(seven: dict[str, np.ndarray[Any, Any]]) -> None:
    assert seven["blk.1.time_mix_lerp_fused.weight"].shape == (6, 1, 1, 128)
    for row, letter in zip(seven["blk.1.time_mix_lerp_fused.weight"], "rwkvag", strict=True):
        np.testing.assert_array_equal(row[0, 0], V7[f"blocks.1.att.x_{letter}"][0, 0])
    np.testing.assert_array_equal(seven["blk.1.time_mix_r_k.weight"], V7["blocks.1.att.r_k"].flatten())
    np.testing.assert_array_equal(seven["blk.1.time_mix_ln.bias"], V7["blocks.1.att.ln_x.bias"])
    np.testing.assert_array_equal(seven["token_embd_norm.weight"], V7["blocks.0.ln0.weight"])


def test_layer_0_has_stand_ins_for_the_value_residual(seven: dict[str, np.ndarray[Any, Any]]) -> None:
    for number in "012":
        np.testing.assert_array_equal(
            seven[f"blk.0.time_mix_v{number}.weight"], seven[f"blk.0.time_mix_a{number}.weight"]
        )
    with_dummies = V7 | {f"blocks.0.att.v{n}": V7[f"blocks.1.att.v{n}"] for n in "012"}
    assert arrays(opened(with_dummies)).keys() == seven.keys()


def test_nothing_official_is_left_out(seven: dict[str, np.ndarray[Any, Any]]) -> None:
    used = sum(array.size for name, array in seven.items() if not name.startswith("blk.0.time_mix_v"))
    used += seven["blk.0.time_mix_value.weight"].size
    assert used == sum(tensor.numel() for tensor in V7.values())


def test_rwkv6() -> None:
    found = arrays(opened(V6))
    block = {name.removeprefix("blocks.1.att."): tensor.numpy() for name, tensor in V6.items()}
    for row, letter in zip(found["blk.1.time_mix_lerp_fused.weight"], "wkvrg", strict=True):
        np.testing.assert_array_equal(row[0, 0], block[f"time_maa_{letter}"][0, 0].astype(np.float32))
    np.testing.assert_array_equal(found["blk.1.time_mix_w1.weight"], block["time_maa_w1"].T)
    np.testing.assert_array_equal(found["blk.1.time_mix_w2.weight"], block["time_maa_w2"].swapaxes(1, 2))
    np.testing.assert_array_equal(found["blk.1.time_mix_decay_w1.weight"], block["time_decay_w1"].T)
    np.testing.assert_array_equal(found["blk.1.time_mix_decay_w2.weight"], block["time_decay_w2"].T)
    np.testing.assert_array_equal(found["blk.1.time_mix_first.weight"], block["time_faaaa"])
    assert sum(array.size for array in found.values()) == sum(tensor.numel() for tensor in V6.values())
    facts = opened(V6).facts
    metadata = gguf_writer.metadata(facts, "f32")
    assert metadata["rwkv6.time_mix_extra_dim"] == block["time_maa_w2"].shape[1]
    assert metadata["rwkv6.time_decay_extra_dim"] == block["time_decay_w1"].shape[1]
    assert metadata["rwkv6.rescale_every_n_layers"] == 0


@pytest.mark.parametrize(("dtype", "kind", "number"), [("f16", "F16", 1), ("bf16", "BF16", 32), ("", "F32", 0)])
def test_types(tmp_path: Path, dtype: str, kind: str, number: int) -> None:
    path = gguf_writer.save_gguf(opened(V7), tmp_path / "new" / "m.gguf", dtype)
    header = gguf.read_header(path)
    types = {name: kind for name, (_, kind) in header.tensors.items()}
    assert types["output.weight"] == types["blk.1.time_mix_a2.weight"] == kind
    assert types["blk.1.time_mix_w2.weight"] == types["blk.1.time_mix_ln.weight"] == "F32"
    assert header.metadata["general.file_type"] == number
    assert header.metadata["rwkv7.attention.value_residual_mix_lora_rank"] == 32
    assert header.metadata["general.name"] == "model"
    assert [file.name for file in path.parent.iterdir()] == ["m.gguf"]


def test_what_cannot_be_written_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(UsageError, match="unknown number format 'f64'"):
        gguf_writer.save_gguf(opened(V7), path, "f64")
    with pytest.raises(InputError, match=r"GGUF is written for RWKV-6 and RWKV-7; .* is RWKV-7a"):
        gguf_writer.save_gguf(opened(random_model("7a", Shape(V=256))), path, "f32")
    large = V7 | {"head.weight": V7["head.weight"] * 1e6}
    with pytest.raises(InputError, match=r"output.weight holds values beyond 65504"):
        gguf_writer.save_gguf(opened(large), path, "f16")
    tuned = V6 | {f"blocks.{i}.att.time_state": torch.zeros(2, 64, 64) for i in range(2)}
    with pytest.raises(InputError, match="tuned initial state"):
        gguf_writer.save_gguf(opened(tuned), path, "f32")
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        gguf_writer.save_gguf(opened(V7), tmp_path / "file" / "m.gguf", "f32")
    assert not path.exists()


def test_byte_vocabulary() -> None:
    metadata: dict[str, Any] = gguf_writer.metadata(opened(V7).facts, "f32")
    tokens = metadata["tokenizer.ggml.tokens"]
    assert metadata["tokenizer.ggml.model"] == "rwkv"
    assert tokens[0] == rb"\x00"
    assert tokens[10] == rb"\n"
    assert tokens[65] == b"A"
    assert tokens[92] == b"\\\\"
    assert tokens[255] == rb"\xff"
    assert len(set(tokens)) == len(tokens) == 256
    assert set(metadata["tokenizer.ggml.token_type"]) == {1}
    assert "tokenizer.ggml.bos_token_id" not in metadata


def test_world_vocabulary() -> None:
    world = random_rwkv7(C=64, N=64, L=1, V=65536)
    metadata: dict[str, Any] = gguf_writer.metadata(opened(world).facts, "f32")
    tokens = metadata["tokenizer.ggml.tokens"]
    assert tokens[:2] == [b"<s>", rb"\x00"]
    assert tokens[261] == rb"\n\n"
    assert tokens[65535] == b"[PAD65535]"
    assert len(set(tokens)) == len(tokens) == 65536
    kinds = metadata["tokenizer.ggml.token_type"]
    assert (kinds[0], kinds[1], kinds[65529], kinds[65530]) == (3, 1, 1, 5)
    assert metadata["tokenizer.ggml.eot_token_id"] == 261


def test_a_vocabulary_of_no_tokenizer_has_only_its_size() -> None:
    metadata = gguf_writer.metadata(opened(random_rwkv7(C=64, N=64, L=1, V=97)).facts, "f32")
    assert metadata["tokenizer.ggml.model"] == "no_vocab"
    assert metadata["rwkv7.vocab_size"] == 97
    assert metadata["rwkv7.attention.value_residual_mix_lora_rank"] == 40  # one layer has none: the stand-ins' rank
