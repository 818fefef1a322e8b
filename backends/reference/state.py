"""Between what a walk carries on and the agreed layout of the state."""

from collections.abc import Mapping

import numpy as np
import torch

from backends.base import Array, ModelFacts, State
from backends.errors import BackendError
from backends.reference.v4 import NOTHING
from backends.reference.walk import Carry, Version

FIXED = ("att_shift", "wkv", "ffn_shift")
"""Components that every state has."""


def exported(version: Version, carry: Carry, facts: ModelFacts) -> State:
    """A carry as arrays in the agreed layout (a copy); `wkv` is empty where a version has none."""
    parts = {part: _stacked(carry, name, facts.n_layer) for part, name in version.parts().items()}
    rows = parts["att_shift"].shape[:2]
    att_shift, wkv, ffn_shift = (parts.pop(name, np.zeros((*rows, 0, 0, 0))) for name in FIXED)
    return State(att_shift, wkv, ffn_shift, parts)


def imported(version: Version, state: State, facts: ModelFacts, dtype: torch.dtype) -> Carry:
    """The carry that continues from a state; caches without a token are no caches, a memory without weight is empty.

    Raises:
        BackendError: a component is missing, too many or of another shape than this model's.
    """
    parts, due = state.parts(), _shapes(version, state, facts)
    _check(parts, due)
    tensors: dict[str, torch.Tensor] = {}
    for part, name in version.parts().items():
        if part in version.growing and parts[part].shape[2] == 0:
            continue
        kind = torch.int64 if name == "tokens" else dtype
        names = ["tokens"] if name == "tokens" else [f"blocks.{layer}.{name}" for layer in range(facts.n_layer)]
        values = (torch.from_numpy(np.array(value)).to(kind) for value in parts[part])
        if part == "memory":
            values = (_emptied(memory) for memory in values)
        tensors |= dict(zip(names, values, strict=True))
    return Carry(tensors)


def _emptied(memory: torch.Tensor) -> torch.Tensor:
    """RWKV-4's aa, bb, pp (B, 3, C), the exponent that of an empty memory where nothing has been written."""
    aa, bb, pp = memory.unbind(-2)
    return torch.stack([aa, bb, pp.masked_fill(bb == 0, NOTHING)], dim=-2)


def _stacked(carry: Carry, name: str, layers: int) -> Array:
    """(L, B, ...) over all layers; the ids, which all layers share, as (1, B, S)."""
    names = ["tokens"] if name == "tokens" else [f"blocks.{layer}.{name}" for layer in range(layers)]
    stacked: Array = torch.stack([carry.tensors[full] for full in names]).numpy()
    return stacked


def _shapes(version: Version, state: State, facts: ModelFacts) -> dict[str, tuple[int, ...]]:
    """Component -> shape; rows and history are as long as the state says."""
    L, C, H, N = facts.n_layer, facts.n_embd, facts.n_head, facts.head_size
    B = state.att_shift.shape[1] if state.att_shift.ndim > 1 else 1
    S = state.extra["tokens"].shape[-1] if "tokens" in state.extra and state.extra["tokens"].ndim else 0
    known = {
        "wkv": (L, B, H, N, N),
        "memory": (L, B, 3, C),
        "tokens": (1, B, S),
        "dea_q": (L, B, 256),
        "dea_k": (L, B, S, 32),
        "dea_v": (L, B, S, 32),
    }
    return {part: known.get(part, (L, B, C)) for part in version.parts()}


def _check(parts: Mapping[str, Array], due: Mapping[str, tuple[int, ...]]) -> None:
    found = {name: part.shape for name, part in parts.items()}
    wrong = [name for name in {**due, **found} if found.get(name) != due.get(name)]
    if wrong:
        name = wrong[0]
        has, wants = (shapes.get(name, "nothing") for shapes in (found, due))
        raise BackendError(f"state part {name!r} is {has}, where this model has {wants}.")
