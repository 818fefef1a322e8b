"""Generated checkpoints: real shapes, the same values whenever and wherever they are read, sane activations."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from backends import registry, synthetic, tokenizer
from backends.base import Want
from backends.checkpoint import assemble, open_checkpoint
from backends.errors import InputError
from backends.sizes import SIZES, Size
from backends.weights import Weights
from tests.backends.feeding import ids_for

PARAMETERS = {
    "rwkv7-0.1b": 191_084_544,
    "rwkv7-0.4b": 450_834_432,
    "rwkv7-1.5b": 1_527_668_736,
    "rwkv7-2.9b": 2_948_065_280,
    "rwkv7-7.2b": 7_199_932_416,
}
"""Published counts, the unused value residual of layer 0 included."""


@pytest.mark.parametrize("size", PARAMETERS)
def test_published_number_of_parameters(size: str) -> None:
    facts = open_checkpoint(f"synthetic:{size}").facts
    assert facts.parameters == PARAMETERS[size]
    assert (facts.version, facts.vocab_size, facts.head_size) == ("7", 65536, 64)
    assert facts.n_ffn == 4 * facts.n_embd
    assert (facts.stored, facts.tokenizer) == ("bf16", "world")


def test_largest_size_says_where_its_ranks_come_from() -> None:
    facts = open_checkpoint("synthetic:rwkv7-13.3b").facts
    assert (facts.n_layer, facts.n_embd) == (61, 4096)
    assert "ranks as in 7.2b, since those of 13.3b are unpublished" in facts.evidence


def test_unknown_size_names_what_exists() -> None:
    with pytest.raises(InputError, match=r"no synthetic model 'rwkv7-1b'; there are rwkv7-0\.1b, "):
        synthetic.source("rwkv7-1b")


def test_without_a_vocabulary_it_opens_without_a_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """For timing nobody has to read anything; other checkpoints say what is missing when it is needed."""

    def absent() -> Path:
        raise InputError("the World vocabulary was not found")

    monkeypatch.setattr(tokenizer, "find_vocabulary", absent)
    facts = open_checkpoint("synthetic:rwkv7-0.1b").facts
    assert facts.tokenizer == ""
    assert tokenizer.for_model(facts) is None
    assert "the World vocabulary is not installed (pip install pyrwkv-tokenizer)" in tokenizer.none_because(facts)
    assert open_checkpoint("conformance").facts.tokenizer == "bytes"


def _small(seed: int = 0, L: int = 3) -> Weights:
    return assemble("small", synthetic.of_sizes(Size(L, 128, (16, 12, 8, 24)), seed, vocab=512))


def test_values_depend_on_seed_and_name_only() -> None:
    one, two, other = _small(), _small(), _small(seed=1)
    for name in list(one)[::-1]:
        assert torch.equal(one.get(name), two.get(name))
        assert one.get(name).dtype == torch.bfloat16
        assert not torch.equal(one.get(name), other.get(name))
    assert not torch.equal(one.get("emb.weight"), one.get("head.weight"))
    assert not torch.equal(one.get("blocks.0.att.key.weight"), one.get("blocks.1.att.key.weight"))


def test_every_number_format_sees_the_same_weights() -> None:
    weights = _small()
    assert torch.equal(weights.get("head.weight", "f32"), weights.get("head.weight", "f64").float())
    assert torch.equal(weights.get("head.weight", "f32").bfloat16(), weights.get("head.weight"))


def test_the_block_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = synthetic.draw(7, "head.weight", (999, 33))
    monkeypatch.setitem(synthetic._BLOCK, "cpu", 1000)
    assert torch.equal(synthetic.draw(7, "head.weight", (999, 33)), whole)


def test_known_values() -> None:
    """The draws are part of what a benchmark record means: a change must be deliberate."""
    assert synthetic.draw(0, "emb.weight", (2, 3)).flatten().tolist() == KNOWN


KNOWN = [-0.337890625, 0.796875, 0.11572265625, -0.64453125, 0.23046875, -0.53125]


@pytest.mark.parametrize("version", ["5.2", "6", "7"])
@pytest.mark.parametrize("zeros", [0.25, 0.5, 0.85])
def test_the_share_of_zeros_behind_the_squared_relu_can_be_chosen(zeros: float, version: str) -> None:
    row = next(size for size in SIZES.values() if size.version == version)
    weights = assemble("some", synthetic.of_sizes(replace(row, L=2, C=256), vocab=512, zeros=zeros))
    with registry.open_session(registry.parse("torch-cpu-f32"), weights) as session:
        found = session.forward(ids_for(100, 512), want=Want(trace=("blocks.*.ffn.act",))).trace
    assert len(found) == 2
    for values in found.values():
        assert (values == 0).mean() == pytest.approx(zeros, abs=0.03)


@pytest.mark.parametrize("name", ["head.weight", "blocks.0.ffn.key.weight", "emb.weight"])
def test_draws_look_random(name: str) -> None:
    x = synthetic.draw(0, name, (512, 512)).double()
    centre, width = synthetic._spread(name, (512, 512))
    assert x.mean().item() == pytest.approx(centre, abs=0.01 * width)
    assert x.std().item() == pytest.approx(width / math.sqrt(3), rel=0.01)
    rows = torch.corrcoef(x - x.mean())
    assert (rows - torch.eye(512)).abs().max() < 6 / math.sqrt(512)  # six standard deviations
    # The largest singular value of 512 x 512 independent numbers is 2 sqrt(512) standard deviations.
    assert torch.linalg.matrix_norm(x - x.mean(), 2).item() == pytest.approx(
        2 * math.sqrt(512) * x.std().item(), rel=0.05
    )


def test_low_rank_pairs_keep_the_variance_of_their_input() -> None:
    x = torch.randn(256, 128, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weights = _small()
    for pair in "wavg":
        middle = x @ weights.get(f"blocks.1.att.{pair}1", "f64")
        out = middle @ weights.get(f"blocks.1.att.{pair}2", "f64")
        assert 0.7 < middle.std() < 1.4, pair
        assert 0.5 < out.std() < 2, pair


@pytest.mark.parametrize("layers", [2, 61])
def test_activations_stay_sane_at_any_depth(layers: int) -> None:
    with registry.open_session(registry.parse("torch-cpu-f32"), _small(L=layers)) as session:
        logits = session.forward(np.arange(24) * 7 % 512, want=Want(logits="all")).logits
    assert logits is not None
    assert 0.5 < logits.std() < 2
    assert len(set(logits[0].argmax(axis=-1).tolist())) > 8  # one token does not drown the others


@pytest.mark.cuda
def test_a_gpu_draws_the_same_bits() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    for name, shape in (("emb.weight", (300, 70)), ("blocks.0.att.w0", (1, 1, 70))):
        assert torch.equal(synthetic.draw(3, name, shape, "cuda").cpu(), synthetic.draw(3, name, shape))
