"""The state as torch tensors, layer by layer, and its way to and from the layout that all backends agree on."""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from backends.base import Array, ModelFacts, State
from backends.errors import BackendError


class LayerState(NamedTuple):
    """What one layer remembers.

    Attributes:
        att: (B, C), the last normed input of the time mix, in the activations' format.
        wkv: (B, H, N, N) float32, rows = value channels.
        ffn: (B, C), the last normed input of the channel mix.
    """

    att: Tensor
    wkv: Tensor
    ffn: Tensor

    def plain(self) -> "LayerState":
        """The part that every version has: all of it."""
        return self


class DeaState(NamedTuple):
    """What one layer of 7b remembers; T are all tokens so far.

    Attributes:
        att, wkv, ffn: as in `LayerState`.
        ids: (B, T), the tokens.
        low_k, low_v: (B, T, 32), the low-rank inputs of DEA's keys and values.
        q, k, v: (B, 256 or C), what the next token's query, key and value are mixed with.
        keys, values: (B, T, 256 or C), what queries meet.
    """

    att: Tensor
    wkv: Tensor
    ffn: Tensor
    ids: Tensor
    low_k: Tensor
    low_v: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    keys: Tensor
    values: Tensor

    def plain(self) -> LayerState:
        """The part that every version has."""
        return LayerState(self.att, self.wkv, self.ffn)


NetState = tuple[Any, ...]
"""One `LayerState` or `DeaState` a layer. A handle of this kind is never written to once it was handed out."""


def zero_state(facts: ModelFacts, B: int, dtype: torch.dtype, device: torch.device) -> tuple[LayerState, ...]:
    """The state before the first token, for B rows."""

    def shift() -> Tensor:
        return torch.zeros(B, facts.n_embd, dtype=dtype, device=device)

    def wkv() -> Tensor:
        return torch.zeros(B, facts.n_head, facts.head_size, facts.head_size, device=device)

    return tuple(LayerState(shift(), wkv(), shift()) for _ in range(facts.n_layer))


def check_rows(state: NetState, B: int) -> None:
    """Refuse a state of another number of rows, which would broadcast silently.

    Raises:
        BackendError: the numbers differ.
    """
    rows = state[0].att.shape[0]
    if rows != B:
        raise BackendError(f"the state holds {rows} rows and the tokens {B}; they must be equal.")


GROWN = {"dea_q": "q", "dea_k": "low_k", "dea_v": "low_v"}
"""Component of the agreed state that 7b adds -> the part of `DeaState`; the ids are "tokens", (1, B, T)."""


def exported(state: NetState) -> State:
    """Copies as float32, stacked over layers; the caches of 7b behind the rest."""

    def stacked(part: str) -> Array:
        return np.stack([getattr(layer, part).float().cpu().numpy() for layer in state])

    extra = {}
    if isinstance(state[0], DeaState):
        extra = {"tokens": state[0].ids.cpu().numpy()[None].copy(), **{n: stacked(part) for n, part in GROWN.items()}}
    return State(stacked("att"), stacked("wkv"), stacked("ffn"), extra)


def imported(state: State, facts: ModelFacts, dtype: torch.dtype, device: torch.device) -> tuple[LayerState, ...]:
    """The part that every version has, from the agreed layout of a model of these sizes.

    Raises:
        BackendError: a part is missing, has another shape than this model's, or does not belong to it.
    """
    wanted = _shapes(state, facts)
    for name, part in state.parts().items():
        if name not in wanted:
            raise BackendError(f"RWKV-{facts.version} has no state named {name!r}; it has {', '.join(wanted)}.")
        if part.shape != wanted[name]:
            raise BackendError(f"state {name} has shape {part.shape}; this model needs {wanted[name]}.")
    if missing := [name for name in wanted if name not in state.parts()]:
        raise BackendError(f"the state lacks {', '.join(missing)}, which RWKV-{facts.version} has.")

    def tensor(part: Array, kind: torch.dtype) -> Tensor:
        return torch.tensor(part, dtype=kind, device=device)

    layers = zip(state.att_shift, state.wkv, state.ffn_shift, strict=True)
    return tuple(LayerState(tensor(att, dtype), tensor(S, torch.float32), tensor(ffn, dtype)) for att, S, ffn in layers)


def _shapes(state: State, facts: ModelFacts) -> dict[str, tuple[int, ...]]:
    """Component -> shape; rows, and how much 7b remembers, are as many as the state says."""
    L, C, H, N = facts.n_layer, facts.n_embd, facts.n_head, facts.head_size
    B = state.att_shift.shape[1] if state.att_shift.ndim == 3 else 1
    shapes: dict[str, tuple[int, ...]] = {"att_shift": (L, B, C), "wkv": (L, B, H, N, N), "ffn_shift": (L, B, C)}
    if facts.version == "7b":
        T = state.extra["tokens"].shape[-1] if "tokens" in state.extra else 0
        shapes |= {"tokens": (1, B, T), "dea_q": (L, B, 256), "dea_k": (L, B, T, 32), "dea_v": (L, B, T, 32)}
    return shapes
