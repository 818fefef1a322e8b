"""The designed checkpoint reaches what it was designed to reach, and stays calm in every number format."""

from collections.abc import Iterator, Mapping

import numpy as np
import pytest
import torch

from backends import registry
from backends.base import Array, Want
from backends.checkpoint import open_checkpoint
from backends.reference import conformance, v7
from backends.weights import Weights

C, H, L, N = conformance.C, conformance.H, conformance.L, conformance.N
TOKENS = np.frombuffer(b"The Eiffel tower is in the city of Paris, 2 + 2 = 4; " * 2, dtype=np.uint8).astype(np.int64)[
    :80
]
ALL = Want(logits="all", trace=("*",))


@pytest.fixture(scope="module")
def weights() -> Iterator[Weights]:
    with open_checkpoint("conformance") as opened:
        yield opened


def run(weights: Weights, subject: str, want: Want = ALL) -> dict[str, Array]:
    with registry.open_session(registry.parse(subject), weights, threads=1) as session:
        out = session.forward(TOKENS, want=want)
    assert out.logits is not None
    return {"logits": out.logits[0], **{name: value[0] for name, value in out.trace.items()}}


@pytest.fixture(scope="module")
def trace(weights: Weights) -> dict[str, Array]:
    return run(weights, "reference-f64")


def heads(x: Array) -> Array:
    return x.reshape(*x.shape[:-1], H, N)


@pytest.mark.parametrize("seed", [0, 1])
def test_values_are_exact_in_bf16_and_seeded(seed: int) -> None:
    one, same, other = (conformance.tensors(s) for s in (seed, seed, seed + 1))
    assert all(torch.equal(t, t.bfloat16().float()) for t in one.values())
    assert all(torch.equal(t, same[name]) for name, t in one.items())
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert sum(t.numel() for t in one.values()) * 2 < 1_500_000


def test_square_matrices_are_asymmetric() -> None:
    for name, tensor in conformance.tensors().items():
        if tensor.ndim == 2 and tensor.shape[0] == tensor.shape[1]:
            assert (tensor - tensor.mT).std() > tensor.std(), name


def test_every_layer_norm_meets_its_epsilon(trace: Mapping[str, Array]) -> None:
    """Inputs of each norm, at some token at least, have a variance that 1e-5 matters beside."""
    streams = ["emb", "ln0", *(f"blocks.{i}.{part}.res" for i in range(L) for part in ("att", "ffn"))]
    for name in streams:
        assert trace[name].var(axis=-1).min() < 20 * v7.LN_EPS, name


def test_one_head_whispers_near_the_epsilon_of_group_norm(trace: Mapping[str, Array]) -> None:
    variance = np.median(heads(trace["blocks.1.att.y"]).var(axis=-1), axis=0)
    assert variance[1] < 10 * v7.GROUP_NORM_EPS < 100 * v7.GROUP_NORM_EPS < variance[0]


def test_keys_are_long_short_and_zero(weights: Weights, trace: Mapping[str, Array]) -> None:
    def norms(layer: int) -> Array:
        k_k = weights.get(f"blocks.{layer}.att.k_k", "f64").numpy()
        found: Array = np.linalg.norm(heads(trace[f"blocks.{layer}.att.k_raw"] * k_k), axis=-1)
        return found

    assert norms(0).min() > 1
    assert norms(2)[:, 0].max() < 0.01  # sqrt(n + 1e-6) is percents away ...
    assert np.median(norms(2)[:, 0]) ** 2 > 5e-6  # ... and sqrt(n + 1e-12) below what float32 resolves
    assert not norms(2)[:, 1].any()
    assert np.allclose(np.linalg.norm(heads(trace["blocks.2.att.kk"]), axis=-1), [1, 0])


def test_decays_reach_both_ends_and_low_rank_pairs_their_bends(trace: Mapping[str, Array]) -> None:
    for layer in range(L):
        att = f"blocks.{layer}.att."
        assert trace[att + "w"].min() < 0.56
        assert trace[att + "w"].max() > 0.999
        assert np.abs(trace[att + "w_lora"]).max() > 0.9
        assert trace[att + "a"].min() < 0.05
        assert trace[att + "a"].max() > 0.95
        assert np.ptp(trace[att + "g_lora"]) > 0.8


def test_logits_have_the_spread_of_a_language_model_and_vary(trace: Mapping[str, Array]) -> None:
    assert 0.7 < trace["logits"].std() < 1.5
    assert len(set(trace["logits"].argmax(axis=-1).tolist())) > 8


@pytest.mark.parametrize(("dtype", "allowed"), [("f32", 3e-6), ("f16", 5e-3), ("bf16", 0.04)])
def test_honest_rounding_stays_small(weights: Weights, trace: Mapping[str, Array], dtype: str, allowed: float) -> None:
    """A floor that explodes would hide everything from the logits."""
    found = run(weights, f"honest:3@{dtype}")
    assert all(np.isfinite(value).all() for value in found.values())
    assert np.sqrt(np.square(found["logits"] - trace["logits"]).mean()) < allowed


@pytest.mark.parametrize(("dtype", "allowed"), [("f32", 1e-5), ("f16", 0.02), ("bf16", 0.15)])
def test_an_implementation_written_apart_agrees(
    weights: Weights, trace: Mapping[str, Array], dtype: str, allowed: float
) -> None:
    """True float16 has a range, which honest rounding leaves out."""
    found = run(weights, f"torch-compile@{dtype}", Want(logits="all"))["logits"]
    assert np.sqrt(np.square(found - trace["logits"]).mean()) < allowed
