"""HF names: the table, both ways, by hand-written expectations and with asymmetric numbers."""

import pytest
import torch

from backends import names
from backends.errors import InputError
from backends.readers import in_memory
from backends.weights import Tensor
from tests.backends.random_model import random_rwkv7

# A square width and ranks equal to it would hide a missing transpose: every size here differs.
MODEL = random_rwkv7(C=64, N=32, L=2, V=97)


def _source() -> dict[str, Tensor]:
    return dict(in_memory(MODEL).tensors)


def _hf() -> dict[str, Tensor]:
    return names.hf(_source())


@pytest.mark.parametrize(
    ("here", "there", "turned"),
    [
        ("emb.weight", "model.embeddings.weight", False),
        ("head.weight", "lm_head.weight", False),
        ("ln_out.bias", "model.norm.bias", False),
        ("blocks.0.ln0.weight", "model.layers.0.pre_norm.weight", False),
        ("blocks.1.ln1.weight", "model.layers.1.attn_norm.weight", False),
        ("blocks.1.ln2.bias", "model.layers.1.ffn_norm.bias", False),
        ("blocks.1.att.x_a", "model.layers.1.attn.x_a", False),
        ("blocks.1.att.w1", "model.layers.1.attn.w_lora.lora.0.weight", True),
        ("blocks.1.att.a2", "model.layers.1.attn.a_lora.lora.2.weight", True),
        ("blocks.1.att.v0", "model.layers.1.attn.v_lora.lora.2.bias", False),
        ("blocks.1.att.g1", "model.layers.1.attn.g_lora.lora.0.weight", True),
        ("blocks.1.att.k_k", "model.layers.1.attn.k_k", False),
        ("blocks.1.att.r_k", "model.layers.1.attn.r_k", False),
        ("blocks.1.att.receptance.weight", "model.layers.1.attn.r_proj.weight", False),
        ("blocks.1.att.key.weight", "model.layers.1.attn.k_proj.weight", False),
        ("blocks.1.att.value.weight", "model.layers.1.attn.v_proj.weight", False),
        ("blocks.1.att.output.weight", "model.layers.1.attn.o_proj.weight", False),
        ("blocks.1.att.ln_x.weight", "model.layers.1.attn.g_norm.weight", False),
        ("blocks.1.ffn.x_k", "model.layers.1.ffn.x_k", False),
        ("blocks.1.ffn.key.weight", "model.layers.1.ffn.key.weight", False),
        ("blocks.1.ffn.value.weight", "model.layers.1.ffn.value.weight", False),
    ],
)
def test_the_table(here: str, there: str, turned: bool) -> None:
    official, renamed = MODEL[here], _hf()[there].read("cpu")
    expected = official.t() if turned else official
    assert torch.equal(renamed.reshape(-1), expected.reshape(-1))
    assert tuple(renamed.shape) == _hf()[there].shape


def test_only_the_six_mixes_keep_their_leading_ones() -> None:
    kept = {key for key, tensor in _hf().items() if tensor.shape[:2] == (1, 1)}
    assert kept == {f"model.layers.{layer}.attn.x_{mix}" for layer in range(2) for mix in "rwkvag"}


def test_there_and_back() -> None:
    back = names.official("m", _hf())
    assert back.keys() == MODEL.keys()
    for name, tensor in back.items():
        read = tensor.read("cpu")
        assert tuple(read.shape) == tensor.shape
        assert torch.equal(read.reshape(-1), MODEL[name].reshape(-1)), name
    assert all(back[name].shape == MODEL[name].shape for name in MODEL if MODEL[name].ndim == 2)


def test_official_names_stay() -> None:
    source = _source()
    assert names.official("m", source) == source


def test_layer_0_drops_its_unused_value_residual() -> None:
    source = _source()
    extra = {f"blocks.0.att.v{part}": source[f"blocks.1.att.v{part}"] for part in "012"}
    assert names.hf(source | extra).keys() == names.hf(source).keys()


@pytest.mark.parametrize("middle", [(), (1,), (1, 1)])
def test_stacked_mixes_of_older_exports(middle: tuple[int, ...]) -> None:
    tensors = _hf()
    stack = torch.stack(
        [tensors.pop(f"model.layers.1.attn.x_{mix}").read("cpu").reshape(*middle, 64) for mix in "rwkvag"]
    )
    tensors |= in_memory({"model.layers.1.attn.x_x": stack}).tensors
    found = names.official("m", tensors)
    for mix in "rwkvag":
        assert torch.equal(
            found[f"blocks.1.att.x_{mix}"].read("cpu").reshape(-1), MODEL[f"blocks.1.att.x_{mix}"].reshape(-1)
        )


def test_tied_head() -> None:
    tensors = _hf()
    del tensors["lm_head.weight"]
    assert "head.weight" not in names.official("m", tensors)
    assert torch.equal(names.official("m", tensors, tied=True)["head.weight"].read("cpu"), MODEL["emb.weight"])


def _with(key: str, tensor: torch.Tensor) -> dict[str, Tensor]:
    return _hf() | dict(in_memory({key: tensor}).tensors)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (_with("model.layers.0.attn.rotary", torch.zeros(1)), r"does not know: model\.layers\.0\.attn\.rotary\.$"),
        (_with("model.extra", torch.zeros(1)), r"does not know: model\.extra\.$"),
        (_with("model.layers.0.attn.x_x", torch.zeros(5, 64)), r"stacks the six mixes, but has the shape \(5, 64\)"),
        (
            _with("model.layers.0.attn.w_lora.lora.0.weight", torch.zeros(3)),
            r"must be a matrix, but has the shape \(3,\)",
        ),
        (dict(in_memory({"rwkv.blocks.0.ln1.weight": torch.zeros(1)}).tensors), "HF names of RWKV-4 to 6"),
    ],
)
def test_strange_names(tensors: dict[str, Tensor], words: str) -> None:
    with pytest.raises(InputError, match=words):
        names.official("m", tensors)


def test_no_hf_name() -> None:
    for name in ("blocks.0.ffn.s_emb.weight", "strange.weight"):
        with pytest.raises(InputError, match=f"no HF name is known for the tensor {name}"):
            names.hf(dict(in_memory({name: torch.zeros(2)}).tensors))
