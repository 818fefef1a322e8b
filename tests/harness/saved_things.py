"""Files as other programs save them, and what a comparison of two came to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save_file

from reports.record import Outcome, Record

Array = npt.NDArray[Any]


V = 300


def logits(T: int = 1, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(T, V)).astype(np.float32) * 3


def softmax(x: Array) -> Array:
    e = np.exp(x.astype(np.float64) - x.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def candle_mi(**changes: Any) -> dict[str, Any]:
    rows = [{"token_id": i, "token": f"t{i}", "probability": 0.5 / i, "logit": 9.0 - i} for i in range(1, 11)]
    plain = {"model_id": "m", "test_prompt": "a b", "token_ids": [7, 8], "token_strings": ["a", " b"]}
    return {**plain, "top_predictions": rows, "generated_token_ids": [1, 2], **changes}


def write(path: Path, content: Any) -> Path:
    path.write_text(json.dumps(content))
    return path


def candle(folder: Path, name: str, x: Array, p: Array | None = None, tokens: list[int] | None = None) -> Path:
    x.astype("<f4").tofile(folder / f"{name}_final_logits.bin")
    if p is not None:
        p.astype("<f4").tofile(folder / f"{name}_final_probs.bin")
    if tokens:
        write(folder / f"{name}_final_logits.json", {"logits": x.tolist(), "tokens": tokens})
    return folder / f"{name}_final_logits.bin"


def tensors(path: Path, **arrays: Array) -> Path:
    save_file({name.replace("__", "."): np.ascontiguousarray(x) for name, x in arrays.items()}, path)
    return path


def numbers(record: Record) -> dict[str, float | None]:
    return {m.name: m.value for m in record.measurements}


def outcomes(record: Record) -> dict[str, Outcome]:
    return {v.criterion.rpartition(".")[2]: v.outcome for v in record.verdicts}
