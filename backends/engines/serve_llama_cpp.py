"""llama.cpp behind the protocol, through the C API that llama-cpp-python wraps."""

import ctypes
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import llama_cpp as lib
import numpy as np

from backends.engines import saved_state
from backends.engines.serve import Array, Refusal, Result

BATCH = 512
"""Tokens that go through at once; bounds the memory of the logits."""


@dataclass(frozen=True)
class Saved:
    """The state after some tokens."""

    raw: bytes
    position: int


class Port:
    """One model. Settings: `version` of RWKV, `dtype`, `tokenizer` (or ""), `layers`."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def hello(self) -> dict[str, Any]:
        """See `Engine.hello`."""
        features = lib.llama_print_system_info().decode().replace(" = 1", "").replace(" | ", " ").strip()
        return {
            "name": "llama.cpp",
            "version": f"llama-cpp-python {lib.__version__}",
            "abilities": ["logits-all", "state", *(["tokenizer"] if self.settings["tokenizer"] else [])],
            "dtypes": [self.settings["dtype"]],
            "devices": ["cpu", "cuda"],
            "versions": [self.settings["version"]],
            "attention": "llama.cpp's graph, sequential WKV",
            "arrays": "file",
            "notes": [f"built with {features}"],
        }

    def load(self, path: str, dtype: str, device: str, threads: int) -> dict[str, int]:
        """Open a GGUF."""
        del dtype
        lib.llama_backend_init()
        model = lib.llama_model_default_params()
        model.n_gpu_layers = 0 if device == "cpu" else 1 << 16
        if device != "cpu" and not lib.llama_supports_gpu_offload():
            raise Refusal("this build of llama.cpp has no GPU support")
        self.model = lib.llama_model_load_from_file(path.encode(), model)
        if not self.model:
            raise Refusal("llama.cpp refuses the file; its log says why")
        context = lib.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch, context.n_seq_max = 1 << 15, BATCH, BATCH, 1
        context.no_perf = True
        if threads:
            context.n_threads = context.n_threads_batch = threads
        self.context = lib.llama_init_from_model(self.model, context)
        if not self.context:
            raise Refusal("llama.cpp cannot make a context of this model; its log says why")
        self.memory = lib.llama_get_memory(self.context)
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.V, self.C = lib.llama_vocab_n_tokens(self.vocab), lib.llama_model_n_embd(self.model)
        self.batch = lib.llama_batch_init(BATCH, 0, 1)
        return {"vocab_size": self.V, "n_embd": self.C, "n_layer": lib.llama_model_n_layer(self.model)}

    def forward(self, tokens: list[Any], state: Saved | None, logits: str, trace: list[str]) -> Result:
        """See `Engine.forward`; the sequence is restored from its bytes, run, and saved again."""
        del trace  # nothing inside can be seen
        self._restore(state)
        begin = state.position + 1 if state else 0
        rows = [
            self._run(tokens[start : start + BATCH], begin + start, logits == "all", start + BATCH >= len(tokens))
            for start in range(0, len(tokens), BATCH)
        ]
        found = np.concatenate(rows) if logits == "all" else rows[-1]
        return found, self._save(begin + len(tokens) - 1), {}

    def _run(self, tokens: list[int], position: int, every: bool, last: bool) -> Array:
        """One batch; its logits (n, V), of all tokens or of the last."""
        batch, count = self.batch, len(tokens)
        batch.n_tokens = count
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i], batch.n_seq_id[i] = token, position + i, 1
            batch.seq_id[i][0] = 0
            batch.logits[i] = every or (last and i == count - 1)
        status = lib.llama_decode(self.context, batch)
        if status:
            raise Refusal(f"llama_decode answered {status}")
        lib.llama_synchronize(self.context)
        rows = count if every else int(last)
        if not rows:
            return np.zeros((0, self.V), dtype=np.float32)
        pointer = lib.llama_get_logits(self.context)
        return np.ctypeslib.as_array(pointer, shape=(rows, self.V)).copy()

    def _restore(self, state: Saved | None) -> None:
        lib.llama_memory_clear(self.memory, True)
        if state is not None:
            raw = (ctypes.c_uint8 * len(state.raw)).from_buffer_copy(state.raw)
            if not lib.llama_state_seq_set_data(self.context, raw, len(state.raw), 0):
                raise Refusal("llama.cpp refuses a state that it saved itself")

    def _save(self, position: int) -> Saved:
        size = lib.llama_state_seq_get_size(self.context, 0)
        raw = (ctypes.c_uint8 * size)()
        written = lib.llama_state_seq_get_data(self.context, raw, size, 0)
        return Saved(bytes(raw)[:written], position)

    def exported(self, state: Saved) -> dict[str, Array]:
        """The parts of a saved sequence; RWKV-6 keeps key rows, RWKV-7 value rows."""
        shifts, wkv = saved_state.read(state.raw, self.settings["layers"])
        shifts = shifts.reshape(len(shifts), 2, self.C)
        size = wkv.shape[1] // self.C
        heads = wkv.reshape(len(wkv), self.C // size, size, size)
        turned = heads if self.settings["version"] == "7" else heads.swapaxes(-1, -2)
        return {"att_shift": shifts[:, 0], "wkv": turned, "ffn_shift": shifts[:, 1]}

    def imported(self, parts: Mapping[str, Array]) -> Saved:
        """The bytes of a sequence after one token, with these numbers in the place of its own."""
        _, like, _ = self.forward([0], None, "none", [])
        shifts = np.stack([parts["att_shift"], parts["ffn_shift"]], axis=1)
        wkv = parts["wkv"] if self.settings["version"] == "7" else parts["wkv"].swapaxes(-1, -2)
        return Saved(saved_state.replaced(like.raw, [*shifts, *wkv]), like.position)

    def encode(self, text: bytes) -> list[int]:
        """Ids by llama.cpp's tokenizer; nothing added, no special names recognised."""
        room = (lib.llama_token * (len(text) + 8))()
        count = lib.llama_tokenize(self.vocab, text, len(text), room, len(room), False, False)
        if count < 0:
            raise Refusal(f"llama_tokenize answered {count}")
        return list(room[:count])

    def decode(self, ids: list[int]) -> bytes:
        """The bytes of ids, one after the other."""
        return b"".join(map(self._piece, ids))

    def _piece(self, ident: int) -> bytes:
        room = ctypes.create_string_buffer(4096)
        count = lib.llama_token_to_piece(self.vocab, ident, room, len(room), 0, False)
        if count < 0:
            raise Refusal(f"llama_token_to_piece answered {count} for id {ident}")
        return room.raw[:count]
