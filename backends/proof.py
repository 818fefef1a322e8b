"""A written checkpoint, read back: every tensor bit-equal to what was to be written, and the same logits.

The file is opened as any user would open it, so that names, shapes and orientation go through their inverse.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from backends.base import Array, Want
from backends.checkpoint import open_checkpoint
from backends.detect import listed
from backends.errors import BackendError
from backends.names import HF7_DROPPED
from backends.weights import Weights

TOKENS = 8
"""Length of the forward that both checkpoints run."""

LARGE = 600_000_000
"""Parameters beyond which the logits are left out: that would take longer than the conversion."""

_BITS = {8: torch.int64, 4: torch.int32, 2: torch.int16}


class BrokenError(BackendError):
    """What was written is not what was asked for."""


@dataclass(frozen=True)
class Proof:
    """What was checked.

    Attributes:
        tensors: how many are bit-equal.
        missing: tensors that the format has no place for.
        logits: largest difference to the logits of what was read; None where they were not compared.
        why_not: the reason, in words.
    """

    tensors: int
    missing: tuple[str, ...] = ()
    logits: float | None = None
    why_not: str = ""

    def sentences(self) -> list[str]:
        """It in words."""
        told = [f"proved: {self.tensors} tensors bit-equal after reading back"]
        if self.logits is None:
            told.append(f"logits not compared: {self.why_not}")
        else:
            same = "the same, bit for bit" if self.logits == 0 else f"at most {self.logits:.3g} from the source's"
            told.append(f"logits of {TOKENS} tokens: {same}")
        if self.missing:
            told.append(f"left out: {', '.join(self.missing)}, which nothing reads and this format has no place for")
        return told


def prove(weights: Weights, path: Path, dtype: str, told: Callable[[str], None] = lambda _: None) -> Proof:
    """Compare a written file or folder with what it was written from.

    Args:
        weights: the source.
        path: what was written.
        dtype: number format that was asked for; empty is each tensor's own.
        told: progress.

    Raises:
        BrokenError: a tensor is missing, has another shape, or any other bit.
    """
    with open_checkpoint(str(path)) as written:
        missing = tuple(name for name in weights if name not in written)
        if set(missing) - HF7_DROPPED or set(written) - set(weights):
            wrong = listed(sorted(set(weights) ^ set(written)))
            raise BrokenError(f"{path} does not hold the tensors that were written: {wrong}.")
        for name in written:
            told(f"comparing {name}")
            if not _equal(weights.get(name, dtype), written.get(name)):
                raise BrokenError(f"{name} reads back as something else than was written.")
            weights.forget()
            written.forget()
        difference, why_not = _logits(weights, written, told)
        return Proof(len(written.tensors), missing, difference, why_not)


def _equal(a: torch.Tensor, b: torch.Tensor) -> bool:
    """The same shape, number format and bits, those of NaN included."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    kind = _BITS[a.element_size()]
    return torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


def _logits(weights: Weights, written: Weights, told: Callable[[str], None]) -> tuple[float | None, str]:
    from backends.reference.session import VERSIONS

    facts = weights.facts
    if facts.version not in VERSIONS:
        return None, f"there are no equations for RWKV-{facts.version} here"
    if facts.parameters > LARGE:
        return None, f"{facts.parameters:,} parameters, more than {LARGE:,}; equal tensors give equal logits"
    told("comparing logits")
    a, b = (_forward(each) for each in (weights, written))
    return 0.0 if np.array_equal(a, b, equal_nan=True) else float(abs(a - b).max()), ""


def _forward(weights: Weights) -> Array:
    """Logits (1, T, V) of a few tokens, in float32."""
    from backends.reference.session import EquationSession

    tokens = [(7 + 31 * t) % weights.facts.vocab_size for t in range(TOKENS)]
    with EquationSession(weights, "torch-cpu-f32", "f32") as session:
        logits = session.forward(tokens, want=Want(logits="all")).logits
    assert logits is not None
    return logits
