"""The state as torch tensors, layer by layer, and its way to and from the layout that all backends agree on."""

from typing import NamedTuple

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


NetState = tuple[LayerState, ...]
"""One entry a layer. A handle of this kind is never written to once it was handed out."""


def zero_state(facts: ModelFacts, B: int, dtype: torch.dtype, device: torch.device) -> NetState:
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


def exported(state: NetState) -> State:
    """Copies as float32, stacked over layers."""

    def stacked(part: int) -> Array:
        return np.stack([layer[part].float().cpu().numpy() for layer in state])

    return State(att_shift=stacked(0), wkv=stacked(1), ffn_shift=stacked(2))


def imported(state: State, facts: ModelFacts, dtype: torch.dtype, device: torch.device) -> NetState:
    """Inverse of `exported`, for a model of these sizes.

    Raises:
        BackendError: a part has another shape than this model's, or does not belong to it.
    """
    B = state.att_shift.shape[1] if state.att_shift.ndim == 3 else 1
    shift = (facts.n_layer, B, facts.n_embd)
    wanted = {
        "att_shift": shift,
        "wkv": (facts.n_layer, B, facts.n_head, facts.head_size, facts.head_size),
        "ffn_shift": shift,
    }
    for name, part in state.parts().items():
        if name not in wanted:
            raise BackendError(f"RWKV-7 has no state named {name!r}; it has {', '.join(wanted)}.")
        if part.shape != wanted[name]:
            raise BackendError(f"state {name} has shape {part.shape}; this model needs {wanted[name]}.")

    def tensor(part: Array, kind: torch.dtype) -> Tensor:
        return torch.tensor(part, dtype=kind, device=device)

    layers = zip(state.att_shift, state.wkv, state.ffn_shift, strict=True)
    return tuple(LayerState(tensor(att, dtype), tensor(S, torch.float32), tensor(ffn, dtype)) for att, S, ffn in layers)
