"""The `rwkv` package behind the protocol. It reads its settings when it is imported: one process, one model."""

import importlib.metadata
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from backends.engines.serve import Array, Refusal, Result

FIXED = {"RWKV_V7_ON": ("7", "7a"), "RWKV_DE_VERSION": ("7a",)}
"""Environment variable of the package -> versions of RWKV for which it is "1"."""


class Port:
    """A model of the package. Settings: `version` of RWKV, `strategy`, `tokenizer` ("world" or "")."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def hello(self) -> dict[str, Any]:
        """See `Engine.hello`."""
        version, strategy = self.settings["version"], self.settings["strategy"]
        abilities = ["logits-all"]
        abilities += ["state"] if version != "4" else []  # whose state has other parts than the agreed layout
        abilities += ["tokenizer"] if self.settings["tokenizer"] == "world" else []
        return {
            "name": "rwkv",
            "version": f"{importlib.metadata.version('rwkv')} with torch {importlib.metadata.version('torch')}",
            "abilities": abilities,
            "dtypes": ["f32", "bf16", "f16"],
            "devices": ["cpu", "cuda", "mps"],
            "versions": [version],
            "attention": f"the rwkv package, strategy {strategy!r}",
            "arrays": "file",
        }

    def load(self, path: str, dtype: str, device: str, threads: int) -> dict[str, int]:
        """Open an official .pth, which the package names without its suffix."""
        del dtype, device  # the strategy says both
        for name, versions in FIXED.items():
            os.environ[name] = "1" if self.settings["version"] in versions else "0"
        os.environ.setdefault("RWKV_JIT_ON", "0")
        os.environ.setdefault("RWKV_CUDA_ON", "0")
        import torch

        if threads:
            torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        from rwkv.model import RWKV

        try:
            self.model = RWKV(model=path.removesuffix(".pth"), strategy=self.settings["strategy"])
        except (AssertionError, ValueError) as error:
            raise Refusal(f"the package refuses strategy {self.settings['strategy']!r}: {error}") from None
        sizes = self.model.args
        return {"n_embd": int(sizes.n_embd), "n_layer": int(sizes.n_layer)}

    def forward(self, tokens: list[Any], state: Any, logits: str, trace: list[str]) -> Result:
        """See `Engine.forward`; the package writes into the state that it is given, so it gets a copy."""
        del trace
        own = None if state is None else [part.clone() for part in state]
        # It wants a list, and takes a list of one token for a single step.
        found, after = self.model.forward(list(tokens), own, full_output=logits == "all")
        rows = found.float().cpu().numpy()
        return rows.reshape(-1, rows.shape[-1]), after, {}

    def exported(self, state: Any) -> dict[str, Array]:
        """Three tensors a layer; RWKV-5 and 6 keep key rows and value columns, RWKV-7 has it the other way round."""
        att_shift, wkv, ffn_shift = (np.stack([part.float().cpu().numpy() for part in state[i::3]]) for i in range(3))
        return {"att_shift": att_shift, "wkv": self._turned(wkv), "ffn_shift": ffn_shift}

    def imported(self, parts: Mapping[str, Array]) -> Any:
        """See `Engine.imported`."""
        import torch

        _, like = self.model.forward([0], None)  # tells formats and devices of every part
        arrays = (parts["att_shift"], self._turned(parts["wkv"]), parts["ffn_shift"])
        flat = [part for layer in zip(*arrays, strict=True) for part in layer]
        return [torch.from_numpy(np.array(new, order="C")).to(old) for new, old in zip(flat, like, strict=True)]

    def _turned(self, wkv: Array) -> Array:
        return wkv if self.settings["version"].startswith("7") else wkv.swapaxes(-1, -2)

    def encode(self, text: bytes) -> list[int]:
        """Ids by the package's own tokenizer."""
        return list(self._tokenizer().encodeBytes(text))

    def decode(self, ids: list[int]) -> bytes:
        """Bytes by the package's own tokenizer; id 0, which ends a document, has none."""
        return bytes(self._tokenizer().decodeBytes([ident for ident in ids if ident]))

    def _tokenizer(self) -> Any:
        if not hasattr(self, "_trie"):
            import rwkv
            from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

            folder = next(iter(rwkv.__path__))
            self._trie = TRIE_TOKENIZER(os.path.join(folder, "rwkv_vocab_v20230424.txt"))  # noqa: PTH118
        return self._trie
