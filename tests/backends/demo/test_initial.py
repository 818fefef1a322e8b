"""The first weights: a complete RWKV-7 that begins by knowing nothing."""

import numpy as np
import torch

from backends.base import Want
from backends.checkpoint import assemble
from backends.demo import initial, network
from backends.demo.initial import Shape
from backends.readers import in_memory
from backends.reference.session import open_reference
from tests.backends.demo import tiny


def test_sizes_of_the_demo() -> None:
    weights = initial.weights(Shape(), 0)
    assert sum(p.numel() for p in weights.values()) == 1_756_480
    facts = assemble("demo", in_memory({name: p.detach() for name, p in weights.items()})).facts
    assert (facts.version, facts.vocab_size, facts.n_layer, facts.n_embd) == ("7", 256, 5, 160)
    assert (facts.n_head, facts.head_size, facts.n_ffn) == (5, 32, 640)
    assert facts.ranks == {"w": 16, "a": 16, "v": 16, "g": 32}
    assert facts.tokenizer == "bytes"


def test_weights_are_seeded_and_trainable() -> None:
    one, two, other = (initial.weights(tiny.SHAPE, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert not torch.equal(one["emb.weight"], other["emb.weight"])
    assert all(p.requires_grad and p.is_contiguous() and p.dtype == torch.float32 for p in one.values())
    assert not [name for name in one if name.startswith("blocks.0.att.v") and name.endswith(("v0", "v1", "v2"))]


def test_layers_add_nothing_at_first() -> None:
    weights = initial.weights(tiny.SHAPE, 0)
    ids = torch.arange(32)[None]
    carried = network.fresh(tiny.SHAPE.L, 1, tiny.SHAPE.H, tiny.SHAPE.N)
    with torch.no_grad():
        logits, _ = network.run(weights, ids, carried, torch.float32, network.wkv)
        without, _ = network.run(weights, ids, [], torch.float32, network.wkv)
    assert torch.equal(logits, without)


def test_decays_reach_from_slow_to_fast() -> None:
    for layer in range(5):
        w0 = initial.weights(Shape(), 0)[f"blocks.{layer}.att.w0"].detach()
        decay = torch.exp(-network.DECAY * torch.sigmoid(w0))
        assert decay.max() > 0.995
        assert decay.min() < 0.8


def test_the_reference_reads_them() -> None:
    weights = {name: p.detach() for name, p in initial.weights(tiny.SHAPE, 0).items()}
    session = open_reference(assemble("tiny", in_memory(weights)))
    got = session.forward(np.arange(16), want=Want(logits="all")).logits
    carried = network.fresh(tiny.SHAPE.L, 1, tiny.SHAPE.H, tiny.SHAPE.N)
    want, _ = network.run(weights, torch.arange(16)[None], carried, torch.float32, network.wkv)
    assert got is not None
    assert tiny.far(torch.from_numpy(got), want.double()) < 1e-5
