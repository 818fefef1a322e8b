"""Faults around the equations: the state between two calls, the tokenizer, the choice of the next token."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from backends.base import Array, Ids, Sampler, Tokenizer
from backends.reference.equations import Carry

Handover = Callable[[Mapping[str, Tensor]], dict[str, Tensor]]
"""What a state becomes on its way into the next call: full tensor name -> (B, ...)."""


def drop(*parts: str) -> Handover:
    """Parts of these names are not handed over at all."""
    return lambda tensors: {name: value for name, value in tensors.items() if not name.endswith(parts)}


def forget(part: str) -> Handover:
    """Parts of that name start the next call from zero."""
    return change(part, torch.zeros_like)


def change(part: str | tuple[str, ...], how: Callable[[Tensor], Tensor]) -> Handover:
    """Parts of that name, or of these names, are passed through `how`."""
    return lambda tensors: {name: how(value) if name.endswith(part) else value for name, value in tensors.items()}


def swap(one: str, other: str) -> Handover:
    """Parts with one text in their name change places with those that have the other."""

    def swapped(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        places = {name: _exchanged(name, one, other) for name in tensors}
        return {name: tensors.get(place, tensors[name]) for name, place in places.items()}

    return swapped


def _exchanged(name: str, one: str, other: str) -> str:
    return name.replace(one, other) if one in name else name.replace(other, one)


def _through_bf16(state: Tensor) -> Tensor:
    return state.to(torch.bfloat16).to(state.dtype)


CACHE = ("qkv.k_lora", "qkv.v_lora", "tokens")
"""What DEA keeps of every token."""

HANDOVERS: Mapping[str, Handover] = {
    "edge-shift": forget("att.ln1"),
    "edge-ffn-shift": forget("ffn.ln2"),
    "edge-state": forget("att.state"),
    "edge-state-transposed": change("att.state", lambda S: S.mT),
    "edge-state-bf16": change("att.state", _through_bf16),
    "edge-heads": change("att.state", lambda S: S.flip(1)),
    "edge-layers": swap("blocks.0.att.state", "blocks.1.att.state"),
    "edge-shifts-swapped": swap("att.ln1", "ffn.ln2"),
    "edge-query": forget("qkv.q"),
    "edge-cache": drop(*CACHE),
    "edge-cache-short": change(CACHE, lambda z: z[:, :-1]),
}
"""Fault -> what it does to a state that is passed in."""


def hand_over(state: Carry, names: Sequence[str]) -> Carry:
    """The state as the faults of these names deliver it; the one passed in is left as it is."""
    tensors = dict(state.tensors)
    for name in names:
        if name in HANDOVERS:
            tensors = HANDOVERS[name](tensors)
    return Carry(tensors)


@dataclass
class Spoiled:
    """A tokenizer around a sound one.

    Attributes:
        name: of the sound one.
        inner: the sound one.
        before: what happens to the text.
        after: what happens to the ids.
        back: what happens to ids before they are decoded.
        lossy: True decodes token by token and replaces what is no whole character.
    """

    name: str = field(init=False)
    inner: Tokenizer
    before: Callable[[str], str] = str
    after: Callable[[list[int]], list[int]] = list
    back: Callable[[Sequence[int]], Sequence[int]] = list
    lossy: bool = False

    def __post_init__(self) -> None:
        self.name = self.inner.name

    def encode(self, text: str) -> list[int]:
        """Ids, with the mistake."""
        return self.after(self.inner.encode(self.before(text)))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """Bytes, with the mistake."""
        ids = self.back(ids)
        if not self.lossy:
            return self.inner.decode_bytes(ids)
        return "".join(self.inner.decode_bytes([ident]).decode("utf-8", "replace") for ident in ids).encode()


TOKENIZERS: Mapping[str, Callable[[Tokenizer], Tokenizer]] = {
    "tokenizer-ascii": lambda inner: Spoiled(inner, before=lambda text: text.encode("ascii", "replace").decode()),
    "tokenizer-id-shift": lambda inner: Spoiled(
        inner, after=lambda ids: [i + 1 for i in ids], back=lambda ids: [i - 1 for i in ids]
    ),
    "tokenizer-bos": lambda inner: Spoiled(inner, after=lambda ids: [0, *ids]),
    "tokenizer-crlf": lambda inner: Spoiled(inner, before=lambda text: text.replace("\r\n", "\n")),
    "tokenizer-strip": lambda inner: Spoiled(inner, before=str.strip),
    "tokenizer-lossy": lambda inner: Spoiled(inner, lossy=True),
}
"""Fault -> the tokenizer that it makes of a sound one."""


@dataclass(frozen=True)
class Request:
    """What `generate` was asked for: ids (B, T), how to choose, how many."""

    tokens: Ids
    sampler: Sampler
    count: int


def choosing(spoil: Callable[[Array, Array], Array]) -> Callable[[Request], Request]:
    """A request whose sampler sees logits (B, V) that `spoil` made of them and of what was counted so far (B, V)."""

    def spoiled(request: Request) -> Request:
        seen: list[Ids] = []

        def choose(logits: Array) -> Ids:
            counts = np.zeros_like(logits)
            for ids in seen:
                counts[np.arange(len(ids)), ids] += 1
            seen.append(request.sampler(spoil(logits, counts)))
            return seen[-1]

        return Request(request.tokens, choose, request.count)

    return spoiled


def _without_best(logits: Array, counts: Array) -> Array:
    del counts
    return np.where(logits == logits.max(axis=-1, keepdims=True), -np.inf, logits)


def _halved(logits: Array, counts: Array) -> Array:
    del counts
    return logits / 2


def _penalised(logits: Array, counts: Array) -> Array:
    return logits - counts


def _stale(request: Request) -> Request:
    before: list[Array] = []

    def choose(logits: Array) -> Ids:
        before.append(logits)
        return request.sampler(before[max(0, len(before) - 2)])

    return Request(request.tokens, choose, request.count)


REQUESTS: Mapping[str, Callable[[Request], Request]] = {
    "sampler-stale": _stale,
    "sampler-repeat-last": lambda asked: Request(
        np.concatenate([asked.tokens, asked.tokens[:, -1:]], axis=1), asked.sampler, asked.count
    ),
    "sampler-penalty": choosing(_penalised),
    "sampler-off-by-one": choosing(_without_best),
    "sampler-one-short": lambda asked: Request(asked.tokens, asked.sampler, asked.count - 1),
    "sampler-temperature": choosing(_halved),
}
"""Fault -> what it makes of a request to generate."""
