"""RWKV-7 in Hugging Face Transformers behind the protocol, by the pure PyTorch package `rwkv7-hf`."""

import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from backends.engines.serve import Array, Result

FORMATS = {"f32": ("fp32", "float32"), "bf16": ("bf16", "bfloat16"), "f16": ("fp16", "float16")}
"""Number format -> its name for the converter of `rwkv7-hf`, its name in torch."""


class Port:
    """One model of `rwkv7-hf`. Settings: `convert`, whether the path is a .pth for the package's own converter."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings

    def hello(self) -> dict[str, Any]:
        """See `Engine.hello`."""
        version = importlib.metadata.version
        libraries = f"transformers {version('transformers')}, torch {version('torch')}"
        return {
            "name": "rwkv7-hf",
            "version": f"{version('rwkv7-hf')} with {libraries}",
            "abilities": ["logits-all", "state", "batch"],
            "dtypes": list(FORMATS),
            "devices": ["cpu", "cuda", "mps"],
            "attention": "the package's recurrence in PyTorch, one token after the other",
            "arrays": "file",
        }

    def load(self, path: str, dtype: str, device: str, threads: int) -> dict[str, int]:
        """Open an HF folder, or convert an official .pth by the package's converter first."""
        import torch
        from rwkv7_hf import RWKV7Cache, RWKV7ForCausalLM, converter

        if threads:
            torch.set_num_threads(threads)
        torch.set_grad_enabled(False)
        name, kind = FORMATS[dtype]
        folder = path
        if self.settings["convert"]:
            folder = str(Path(path).with_name("converted"))
            converter.main(["--input", path, "--output", folder, "--precision", name])
        model = RWKV7ForCausalLM.from_pretrained(folder, dtype=getattr(torch, kind))
        self.model, self.cache, self.device = model.to(device).eval(), RWKV7Cache, device
        config = model.config
        return {"vocab_size": config.vocab_size, "n_embd": config.hidden_size, "n_layer": config.num_hidden_layers}

    def forward(self, tokens: list[Any], state: Any, logits: str, trace: list[str]) -> Result:
        """See `Engine.forward`, with rows; the model goes on from a copy of the cache."""
        import torch

        del trace
        ids = torch.tensor(tokens, dtype=torch.long, device=self.device)
        cache = None if state is None else state.clone()
        out = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=0 if logits == "all" else 1)
        return out.logits.float().cpu().numpy(), out.past_key_values, {}

    def exported(self, state: Any) -> dict[str, Array]:
        """The cache's three lists; its recurrent state has key rows."""
        return {
            "att_shift": _stacked(state.attention_shift),
            "wkv": _stacked(state.recurrent_state).swapaxes(-1, -2),
            "ffn_shift": _stacked(state.ffn_shift),
        }

    def imported(self, parts: Mapping[str, Array]) -> Any:
        """See `Engine.imported`."""
        import torch

        like = self.model(torch.zeros((1, 1), dtype=torch.long, device=self.device), use_cache=True).past_key_values
        arrays = (parts["wkv"].swapaxes(-1, -2), parts["att_shift"], parts["ffn_shift"])
        olds = (like.recurrent_state, like.attention_shift, like.ffn_shift)
        lists = [
            [torch.from_numpy(np.array(new, order="C")).to(old) for new, old in zip(rows, old_rows, strict=True)]
            for rows, old_rows in zip(arrays, olds, strict=True)
        ]
        return self.cache(*lists, seen_tokens=1)


def _stacked(rows: Any) -> Array:
    found: Array = np.stack([row.float().cpu().numpy() for row in rows])
    return found
