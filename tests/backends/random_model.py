"""A random RWKV-7 whose mechanisms all matter, as a state dict and as opened `Weights`."""

from collections.abc import Callable, Mapping

import torch

from backends.base import ModelFacts
from backends.weights import SHORT, Tensor, Weights

RANKS = {"w": 48, "a": 40, "v": 32, "g": 64}
"""Inner sizes of the low-rank pairs."""


def random_rwkv7(
    C: int = 256, N: int = 64, L: int = 4, V: int = 997, seed: int = 0, dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """An official state dict: official names, vectors stored (1, 1, C), logits of standard deviation 1.

    Projections are dense and asymmetric, the low-rank pairs have outputs of order 1 and every mix differs,
    so that a missing transpose, tanh or head boundary shows. Layer 0 carries no `att.v0`, `v1`, `v2`.

    Args:
        C: width, a multiple of N.
        N: head size.
        L: layers.
        V: vocabulary.
        seed: of the draws, which are made in float64.
        dtype: what the draws are rounded to.
    """
    draw = torch.Generator().manual_seed(seed)

    def n(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    def norm(prefix: str) -> dict[str, torch.Tensor]:
        return {f"{prefix}.weight": 1 + 0.1 * n(C), f"{prefix}.bias": 0.1 * n(C)}

    model = {"emb.weight": 0.5 * n(V, C), **norm("blocks.0.ln0")}
    for layer in range(L):
        model |= norm(f"blocks.{layer}.ln1") | norm(f"blocks.{layer}.ln2")
        model |= {f"blocks.{layer}.{name}": tensor for name, tensor in _block(n, C, N, with_v=layer > 0).items()}
        model |= norm(f"blocks.{layer}.att.ln_x")
        for letter in "rwkvag":
            model[f"blocks.{layer}.att.x_{letter}"] = torch.rand(1, 1, C, generator=draw, dtype=torch.float64)
        model[f"blocks.{layer}.ffn.x_k"] = torch.rand(1, 1, C, generator=draw, dtype=torch.float64)
    model |= norm("ln_out") | {"head.weight": n(V, C) / C**0.5}
    return {name: tensor.to(dtype) for name, tensor in model.items()}


def _block(n: Callable[..., torch.Tensor], C: int, N: int, *, with_v: bool) -> dict[str, torch.Tensor]:
    block = {
        "att.r_k": 0.1 * n(C // N, N),
        "att.k_k": 0.8 + 0.2 * n(1, 1, C),
        "att.k_a": 1 + 0.1 * n(1, 1, C),
        "ffn.key.weight": n(4 * C, C) / C**0.5,
        "ffn.value.weight": n(C, 4 * C) / (4 * C) ** 0.5,
    }
    for name in ("receptance", "key", "value", "output"):
        block[f"att.{name}.weight"] = n(C, C) / C**0.5
    for letter, rank in RANKS.items():
        if letter == "v" and not with_v:
            continue
        block[f"att.{letter}1"] = n(C, rank) / C**0.5
        block[f"att.{letter}2"] = n(rank, C) / rank**0.5
        if letter != "g":
            block[f"att.{letter}0"] = 1.5 * n(1, 1, C)
    return block


def as_weights(tensors: Mapping[str, torch.Tensor], name: str = "random") -> Weights:
    """`Weights` over an official state dict, without a file and without any of the loader's code."""
    canonical = {key: t.reshape(-1) if t.ndim == 3 and t.shape[:2] == (1, 1) else t for key, t in tensors.items()}
    return Weights(_facts(canonical, name), {key: _opened(t) for key, t in canonical.items()})


def _opened(tensor: torch.Tensor) -> Tensor:
    return Tensor(tuple(tensor.shape), SHORT[tensor.dtype], tensor.to)


def _facts(tensors: Mapping[str, torch.Tensor], name: str) -> ModelFacts:
    V, C = tensors["emb.weight"].shape
    H, N = tensors["blocks.0.att.r_k"].shape
    L = 1 + max(int(key.split(".")[1]) for key in tensors if key.startswith("blocks."))
    last = f"blocks.{L - 1}.att."
    return ModelFacts(
        name=name,
        version="7",
        evidence="made by tests/backends/random_model.py",
        vocab_size=V,
        n_embd=C,
        n_layer=L,
        n_head=H,
        head_size=N,
        n_ffn=tensors["blocks.0.ffn.key.weight"].shape[0],
        parameters=sum(t.numel() for t in tensors.values()),
        ranks={letter: tensors[f"{last}{letter}1"].shape[1] for letter in "wavg" if f"{last}{letter}1" in tensors},
        stored=SHORT[tensors["emb.weight"].dtype],
        tokenizer="bytes" if V >= 256 else "",
    )
