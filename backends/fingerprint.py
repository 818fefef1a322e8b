"""A short name for the values of a checkpoint, so that a saved state is never continued by another model."""

import hashlib
from collections.abc import Iterator

import torch

from backends.weights import Weights

WHOLE = 100_000_000
"""Parameters up to which every value counts. Beyond, reading everything would take longer than answering."""

SMALL = 1 << 20
"""Values of a tensor that counts whole in larger checkpoints; of a larger tensor, this many from its beginning do."""


def fingerprint(weights: Weights) -> str:
    """16 hexadecimal digits of the tensors' names, shapes and values.

    Values count as float32, so that a conversion that loses nothing keeps the fingerprint. Of checkpoints with more
    than `WHOLE` parameters all vectors and low-rank pairs count, and the beginning of the matrices of the first
    and the last block.
    """
    digest = hashlib.blake2b(digest_size=8)
    for name in _chosen(weights):
        values = weights.get(name).reshape(-1)
        if weights.facts.parameters > WHOLE:
            values = values[:SMALL]
        digest.update(f"{name} {weights.tensors[name].shape}\n".encode())
        digest.update(values.to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def _chosen(weights: Weights) -> Iterator[str]:
    ends = ("blocks.0.", f"blocks.{weights.facts.n_layer - 1}.")
    for name in sorted(weights):
        count = 1
        for size in weights.tensors[name].shape:
            count *= size
        if weights.facts.parameters <= WHOLE or count <= SMALL or name.startswith(ends):
            yield name
