"""RWKV-7 by the C program: the same verbs as `compiled.net.Net`, on the same states."""

import ctypes
import threading
import weakref
from typing import Any

import numpy as np
import torch
from torch import Tensor

from backends.base import Ids, ModelFacts, State
from backends.compiled.parts import Reader
from backends.compiled.state import LayerState, NetState
from backends.errors import BackendError
from backends.native import build, packing
from backends.native.library import typed
from backends.native.packing import LAYER, pointer
from backends.weights import DTYPES, Weights

COLUMNS = 256
"""Tokens, of all rows together, that walk through the layers at once: their activations stay in the cache."""

_WANT = {"none": 0, "last": 1, "all": 2}
_ENDS = ("emb", "ln0_weight", "ln0_bias", "ln_out_weight", "ln_out_bias", "head")
_SIZES = ("L", "C", "F", "H", "N", "V", "Rw", "Ra", "Rv", "Rg")


class _Layer(ctypes.Structure):
    _fields_ = [*((name, ctypes.c_void_p) for name in LAYER), ("skips", ctypes.c_int64)]


class _Model(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int) for name in _SIZES),
        *(
            (name, ctypes.c_void_p)
            for name in ("emb", "ln0_weight", "ln0_bias", "ln_out_weight", "ln_out_bias", "head")
        ),
        ("layers", ctypes.POINTER(_Layer)),
    ]


def obstacle(facts: ModelFacts, dtype: str) -> str:
    """Why the C program does not serve such a model, in words; empty if it does."""
    if facts.version != "7":
        return f"the rest knows RWKV-7, not {facts.version}"
    if dtype not in ("f32", "bf16"):
        return f"the rest knows f32 and bf16, not {dtype}"
    if facts.head_size % 4 or facts.head_size > 128:
        return f"it knows head sizes up to 128 that are multiples of 4, not {facts.head_size}"
    return ""


class NativeNet:
    """A loaded model.

    Attributes:
        instructions: the instruction set that it was built for.
        vocabulary: V.
    """

    grows = False

    def __init__(self, weights: Weights, dtype: str, threads: int, sparse: bool = True) -> None:
        self.instructions = build.chosen()
        self._lib = typed(self.instructions, dtype)
        self._facts, self._dtype = weights.facts, DTYPES[dtype]
        self.vocabulary = weights.facts.vocab_size
        self._lock = threading.Lock()
        self._tensors, self._model = self._read(weights, dtype, sparse)
        self._pool = self._lib.pool_new(threads)
        self._buffers = self._lib.buffers_new()
        self._free = weakref.finalize(self, _release, self._lib, self._pool, self._buffers)

    def _read(self, weights: Weights, dtype: str, sparse: bool) -> tuple[list[dict[str, Tensor]], _Model]:
        """The weights as the program wants them, and where they are."""
        facts, get = weights.facts, Reader(weights, dtype, "cpu")
        lanes, step = self._lib.lanes(), self._lib.step()
        room = packing.Room()
        layers = [packing.layer(get, i, facts.n_head, lanes, step, room) for i in range(facts.n_layer)]
        ends = {
            "emb": get("emb.weight"),
            **{f"ln0_{part}": get(f"blocks.0.ln0.{part}").float() for part in ("weight", "bias")},
            **{f"ln_out_{part}": get(f"ln_out.{part}").float() for part in ("weight", "bias")},
            "head": room.panels(get("head.weight"), lanes, step),
        }
        self._structs = (_Layer * facts.n_layer)(*(_layer(layer, sparse) for layer in layers))
        sizes = (facts.n_layer, facts.n_embd, facts.n_ffn, facts.n_head, facts.head_size, facts.vocab_size)
        ranks = (facts.ranks.get(letter, 0) for letter in "wavg")
        model = _Model(*sizes, *ranks, *map(pointer, ends.values()), self._structs)
        return [*layers, ends], model

    @property
    def skipped_bytes(self) -> int:
        """Bytes of weights left unread so far, where the squared ReLU left zeros for a single token."""
        found: float = self._lib.unread(self._buffers)
        return round(found)

    @property
    def skipped_operations(self) -> int:
        """Operations left out so far, where the squared ReLU left zeros."""
        found: float = self._lib.skipped(self._buffers)
        return round(found)

    def start(self, facts: ModelFacts, B: int) -> NetState:
        """The state before the first token, for B rows; by numpy, so that torch's threads go on sleeping."""
        shift, S = (B, facts.n_embd), (B, facts.n_head, facts.head_size, facts.head_size)

        def zeros(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
            return torch.from_numpy(np.zeros(shape, dtype=np.float32)).to(dtype)

        return tuple(
            LayerState(zeros(shift, self._dtype), zeros(S, torch.float32), zeros(shift, self._dtype))
            for _ in range(facts.n_layer)
        )

    def resume(self, plain: tuple[LayerState, ...], state: State) -> NetState:
        """The handle that continues from a state in the agreed layout: `plain` holds all of it."""
        del state
        return plain

    def empty(self, B: int) -> NetState:
        """Room for a state of B rows."""
        C, H, N = self._facts.n_embd, self._facts.n_head, self._facts.head_size

        def shift() -> Tensor:
            return torch.empty(B, C, dtype=self._dtype)

        return tuple(LayerState(shift(), torch.empty(B, H, N, N), shift()) for _ in range(self._facts.n_layer))

    def run(self, ids: Tensor, state: NetState, logits: str) -> tuple[Tensor | None, NetState]:
        """Feed a prompt, as `Net.run`; logits are float32."""
        B, T = ids.shape
        each = max(1, COLUMNS // B)
        parts = []
        for start in range(0, T, each):
            want = logits if logits == "all" or start + each >= T else "none"
            found = self._room(B, min(each, T - start), want)
            state = self.feed(ids[:, start : start + each].contiguous(), state, self.empty(B), want, found)
            parts += [found] if found is not None else []
        return (torch.cat(parts, dim=1) if len(parts) > 1 else parts[0] if parts else None), state

    def _room(self, B: int, T: int, want: str) -> Tensor | None:
        """Where logits shall be written."""
        return None if want == "none" else torch.empty(B, T if want == "all" else 1, self._facts.vocab_size)

    def feed(self, ids: Tensor, before: NetState, after: NetState, want: str, logits: Tensor | None) -> NetState:
        """One call of the program.

        Args:
            ids: (B, T), contiguous.
            before: not written to.
            after: written, every part contiguous; none of them a part of `before`, but for T = 1 it may be `before`.
            want: which logits.
            logits: (B, 1 or T, V) float32, written; None for want "none".

        Returns:
            `after`.
        """
        before = tuple(LayerState(*(part.contiguous() for part in layer)) for layer in before)
        B, T = ids.shape
        self.call(B, T, want, pointer(ids), _places(before), _places(after), pointer(logits))
        return after

    def call(self, B: int, T: int, want: str, ids: Any, before: Any, after: Any, logits: Any) -> None:
        """The same with addresses; what lies there is the caller's business."""
        with self._lock:
            failed = self._lib.rwkv7(
                self._pool, ctypes.byref(self._model), self._buffers, ids, before, after, B, T, _WANT[want], logits
            )
        if failed:
            raise BackendError(f"no memory for the activations of {B} rows of {T} tokens.")


class NativeSteps:
    """Greedy decode in memory that is taken once: a step writes its state over the one before.

    The largest logit is found by numpy: torch would wake its own threads for it, which then spin for milliseconds on
    the cores that the next token needs.

    Attributes:
        ids: (B, 1) int64, the newest tokens; overwritten by `advance`.
    """

    def __init__(self, net: NativeNet, ids: Tensor, state: NetState) -> None:
        self.ids = ids.clone()
        self._net = net
        self._state = tuple(LayerState(*(part.clone() for part in layer)) for layer in state)
        self._logits = torch.empty(len(ids), net.vocabulary)
        self._seen = self._logits.numpy(), self.ids.numpy()  # made once: a step leaves nothing of Python in the cache
        places = _places(self._state)
        self._arguments = (len(ids), 1, "last", pointer(self.ids), places, places, pointer(self._logits))

    def advance(self) -> None:
        """Feed `ids`; afterwards `ids` holds the greedy continuation."""
        self._net.call(*self._arguments)
        logits, ids = self._seen
        logits.argmax(-1, out=ids[:, 0])

    def newest(self) -> Ids:
        """A copy of `ids` for the caller, (B,)."""
        return self._seen[1][:, 0].copy()


def _layer(weights: dict[str, Tensor], sparse: bool) -> _Layer:
    """Zero times what is not finite is NaN, so that nothing may be left out there."""
    skips = sparse and bool(weights["ffn_value"].isfinite().all())
    return _Layer(*(pointer(weights.get(name)) for name in LAYER), skips)


def _places(state: NetState) -> ctypes.Array[ctypes.c_void_p]:
    """Where a state lies, layer by layer: `struct state` of rwkv7.h."""
    found = [part.data_ptr() for layer in state for part in layer]
    return (ctypes.c_void_p * len(found))(*found)


def _release(lib: ctypes.CDLL, pool: int, buffers: int) -> None:
    lib.pool_free(pool)
    lib.buffers_free(buffers)
