"""Reads what other programs saved: logits, probabilities, states. No torch, never pickle.

Readable:
    rwkv7_reference.json      candle-mi: the top ten of one prompt, and greedy tokens
    *_final_logits.json       candle_rwkv7: logits, probs, tokens
    *_final_logits.bin        candle_rwkv7: float32, little-endian; *_final_probs.bin beside it is read too
    *.npy                     logits (V,) or (T, V)
    *.safetensors             `logits`, `probs`, `tokens`, `state.*`, named tensors; metadata `dtype`
    manifest.json             raw files of a port, see docs/kit.md
    a folder                  with a manifest.json, or exactly one of the others
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.errors import InputError

Array = npt.NDArray[Any]

MANIFEST = "manifest.json"

FORMATS = ("f64", "f32", "bf16", "f16")
"""Number formats that a program may say it computes in."""

STREAM = ("emb", "ln0", "ln_out", "head")
"""Named tensors outside the blocks."""


@dataclass(frozen=True)
class Dump:
    """Outputs of one program on one prompt.

    Attributes:
        format: what kind of file it was, in words.
        logits: (T, V) or (V,); None where only some are known.
        probs: recorded probabilities, like `logits`.
        top: token id -> logit of the leading tokens after the prompt, best first, where `logits` is None.
        top_probs: token id -> recorded probability, likewise.
        pieces: token id -> text.
        tokens: the prompt; empty if not recorded.
        generated: greedy continuation; empty if not recorded.
        state: recurrent state by component.
        tensors: named tensors ("blocks.0.att.w"), (T, ...).
        dtype: number format that the program computes in; empty if not recorded.
        model: the model's name, if recorded.
        prompt: the prompt's text, if recorded.
        ignored: names that were there and nothing reads.
    """

    format: str
    logits: Array | None = None
    probs: Array | None = None
    top: Mapping[int, float] = field(default_factory=dict)
    top_probs: Mapping[int, float] = field(default_factory=dict)
    pieces: Mapping[int, str] = field(default_factory=dict)
    tokens: tuple[int, ...] = ()
    generated: tuple[int, ...] = ()
    state: Mapping[str, Array] = field(default_factory=dict)
    tensors: Mapping[str, Array] = field(default_factory=dict)
    dtype: str = ""
    model: str = ""
    prompt: str = ""
    ignored: tuple[str, ...] = ()


def read(path: Path) -> Dump:
    """Read a dump, whatever it is.

    Raises:
        InputError: missing, unreadable, or nothing that is known here.
    """
    file = located(path)
    try:
        return READERS[file.suffix.lower()](file)
    except InputError:
        raise
    except Exception as error:  # a foreign file fails in as many ways as there are readers
        raise InputError(
            f"{file}: damaged or not what its name says ({type(error).__name__}: {one_line(error)})."
        ) from None


def located(path: Path) -> Path:
    """The file that is meant: of a folder the manifest, or the one readable thing; parts of one dump count as one.

    Raises:
        InputError: there is none, there are several, or nothing reads it.
    """
    if path.is_dir():
        return _inside(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file or folder.")
    if path.suffix.lower() not in READERS:
        raise InputError(f"{path}: cannot read {path.suffix or 'a file without extension'}; {_KNOWN}")
    return path


def header(file: Path) -> str:
    """The JSON in which a file says what it is of; an empty object where it says nothing.

    Raises:
        OSError: it cannot be read.
    """
    if file.suffix.lower() == ".json":
        return file.read_text(encoding="utf-8")
    if file.suffix.lower() != ".safetensors":
        return "{}"
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        told = json.loads(stream.read(min(length, file.stat().st_size)))
    return json.dumps(told.get("__metadata__", {}))


def _inside(path: Path) -> Path:
    if (path / MANIFEST).is_file():
        return path / MANIFEST
    found = sorted(p for p in path.iterdir() if p.suffix.lower() in READERS and not p.name.endswith("_final_probs.bin"))
    twins = {p.with_suffix(".json") for p in found if p.name.endswith("_final_logits.bin")}
    choice = [p for p in found if p not in twins]
    if len(choice) != 1:
        names = ", ".join(p.name for p in choice[:8]) + (", ..." if len(choice) > 8 else "")
        problem = f"several things to compare ({names}); name one" if choice else f"nothing to compare; {_KNOWN}"
        raise InputError(f"{path}: the folder holds {problem}{'.' if choice else ''}")
    return choice[0]


def _json(path: Path) -> Dump:
    data = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(data, dict):
        raise InputError(f"{path}: JSON, but a {type(data).__name__} where an object is expected.")
    if "recording" in data:
        raise InputError(f"{path.parent} is a recording of calls: `--backend recorded:{path.parent}` plays it.")
    if "tensors" in data:
        return _manifest(path, data)
    if "top_predictions" in data:
        return _candle_mi(data)
    if "logits" in data:
        return _candle_rwkv7(data)
    raise InputError(f"{path}: JSON with the keys {', '.join(sorted(data)[:8])}; {_KNOWN}")


def _candle_mi(data: dict[str, Any]) -> Dump:
    rows = data["top_predictions"]
    ids = [_id(row["token_id"]) for row in rows]
    if len(set(ids)) != len(ids) or not ids:
        raise ValueError("top_predictions is empty or names a token twice")
    tokens = _ids(data.get("token_ids", ()))
    order = sorted(rows, key=lambda row: (-_float(row["logit"]), row["token_id"]))
    return Dump(
        format="candle-mi reference",
        top={row["token_id"]: _float(row["logit"]) for row in order},
        top_probs={row["token_id"]: _float(row["probability"]) for row in order if "probability" in row},
        pieces=dict(zip(tokens, map(str, data.get("token_strings", ())), strict=False))
        | {row["token_id"]: str(row.get("token", "")) for row in order},
        tokens=tokens,
        generated=_ids(data.get("generated_token_ids", ())),
        model=str(data.get("model_id", "")),
        prompt=str(data.get("test_prompt", "")),
    )


def _candle_rwkv7(data: dict[str, Any]) -> Dump:
    logits = _numbers(data["logits"], "logits")
    if "vocab_size" in data and logits.shape[-1] != data["vocab_size"]:
        raise ValueError(f"vocab_size says {data['vocab_size']}, but there are {logits.shape[-1]} logits")
    return Dump(
        format="candle_rwkv7 JSON",
        logits=logits,
        probs=_numbers(data["probs"], "probs") if data.get("probs") else None,
        tokens=_ids(data.get("tokens", ())),
        prompt=str(data.get("context", "")),
    )


def _bin(path: Path) -> Dump:
    """One candle_rwkv7 vector; its siblings add the probabilities and the tokens, never the logits."""
    values = _floats(path)
    if path.name.endswith("probs.bin"):
        return Dump(format="candle_rwkv7 probabilities", probs=values)
    stem = path.name.removesuffix("_logits.bin")
    probs, facts = path.with_name(f"{stem}_probs.bin"), path.with_suffix(".json")
    paired = stem != path.name
    told = read(facts) if paired and facts.is_file() else None
    return Dump(
        format="candle_rwkv7 logits",
        logits=values,
        probs=_floats(probs) if paired and probs.is_file() else None,
        tokens=told.tokens if isinstance(told, Dump) else (),
        prompt=told.prompt if isinstance(told, Dump) else "",
    )


def _floats(path: Path) -> Array:
    raw = path.read_bytes()
    if not raw or len(raw) % 4:
        raise InputError(f"{path}: {len(raw)} bytes are no float32 vector.")
    return np.frombuffer(raw, dtype="<f4")


def _npy(path: Path) -> Dump:
    return Dump(format="npy", logits=_logits(np.load(path, allow_pickle=False), "the array"))


def _safetensors(path: Path) -> Dump:
    raw = path.read_bytes()
    stored = _stored(raw)  # first: it checks the header
    told = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")]).get("__metadata__", {})
    return _named(path, "safetensors", stored, told)


def _stored(raw: bytes) -> dict[str, Array]:
    import safetensors

    parts = safetensors.deserialize(raw)  # type: ignore[no-untyped-call]
    return {name: _array(name, part) for name, part in parts}


def _manifest(path: Path, data: dict[str, Any]) -> Dump:
    """Raw little-endian numbers in files beside a manifest."""
    arrays: dict[str, Array] = {}
    for row in data["tensors"]:
        kind, name = _RAW.get(str(row["dtype"]).lower(), ""), str(row["name"])
        if not kind:
            raise ValueError(f"tensor {name} has number format {row['dtype']!r}; readable are {', '.join(_RAW)}")
        if name in arrays:
            raise ValueError(f"tensor {name} is there twice")
        shape = [int(n) for n in row["shape"]]
        part = {"dtype": kind, "shape": shape, "data": _cut(path.parent, row, math.prod(shape) * _WIDTHS[kind])}
        arrays[name] = _array(name, part)
    return _named(path, "manifest", arrays, data)


def _cut(folder: Path, row: dict[str, Any], size: int) -> bytes:
    """The bytes of one tensor; nothing outside the dump's folder is read."""
    file, offset = (folder / str(row["file"])).resolve(), int(row.get("offset", 0))
    if not file.is_relative_to(folder.resolve()):
        raise ValueError(f"tensor {row['name']} lies outside the folder: {row['file']}")
    if not file.is_file():
        raise InputError(f"{file}: the manifest names this file for {row['name']}, but it is not there.")
    with file.open("rb") as stream:
        stream.seek(offset)
        found = stream.read(size)
    if len(found) != size or offset < 0:
        there = f"{file.stat().st_size} bytes"
        raise ValueError(f"{row['name']} should take {size} bytes from {offset} on in {file.name}, which has {there}")
    return found


def _named(path: Path, kind: str, arrays: dict[str, Array], told: Mapping[str, Any]) -> Dump:
    """A dump from arrays under their agreed names and what is told besides: `dtype`, `program`, `tokens`."""
    dtype = str(told.get("dtype", "")).lower()
    if dtype and dtype not in FORMATS:
        raise ValueError(f"states dtype {dtype!r}; known are {', '.join(FORMATS)}")
    state = {name.removeprefix("state."): arrays.pop(name) for name in sorted(arrays) if name.startswith("state.")}
    tensors = {name: arrays.pop(name) for name in list(arrays) if name.startswith("blocks.") or name in STREAM}
    logits, probs, tokens = (arrays.pop(name, None) for name in ("logits", "probs", "tokens"))
    if logits is None and probs is None and not state and not tensors:
        names = ", ".join(sorted(arrays)[:8])
        raise InputError(f"{path}: no tensor named logits, probs, state.* or blocks.*; it has {names}.")
    prompt = tokens.ravel().tolist() if tokens is not None else told.get("tokens", ())
    return Dump(
        format=kind,
        logits=None if logits is None else _logits(logits, "logits"),
        probs=None if probs is None else _logits(probs, "probs"),
        tokens=_ids(json.loads(prompt) if isinstance(prompt, str) else prompt),
        state=state,
        tensors=tensors,
        dtype=dtype,
        model=str(told.get("program", "")),
        ignored=tuple(sorted(arrays)),
    )


def _array(name: str, part: dict[str, Any]) -> Array:
    """One tensor; bfloat16, which numpy lacks, is the upper half of a float32."""
    kind, raw = part["dtype"], part["data"]
    if kind == "BF16":
        flat = (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    elif kind in _DTYPES:
        flat = np.frombuffer(raw, dtype=_DTYPES[kind])
    else:
        raise ValueError(f"tensor {name} has number format {kind}; readable are BF16, {', '.join(_DTYPES)}")
    return flat.reshape(part["shape"])


def _logits(array: Array, name: str) -> Array:
    """Floats of shape (V,) or (T, V); leading axes of length 1, such as a batch, are dropped."""
    shape = array.shape
    while array.ndim > 2 and array.shape[0] == 1:
        array = array[0]
    if array.ndim not in {1, 2} or not array.size or not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{name} must be floats of shape (V,) or (T, V), not {array.dtype} {shape}")
    return array


def _numbers(values: Any, name: str) -> Array:
    """Floats from a JSON list, or list of lists; null, which some writers put for NaN, stays NaN."""
    return _logits(np.array(values, dtype=np.float64), name)


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def _id(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{value!r} is no token id")
    return value


def _ids(values: Iterable[Any]) -> tuple[int, ...]:
    return tuple(_id(value) for value in values)


def one_line(error: Exception) -> str:
    """The first line of a message, short enough for a terminal."""
    return (str(error).splitlines() or ["no details"])[0][:160]


_DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "U16": "<u2", "U8": "u1"}

_RAW = {"f64": "F64", "f32": "F32", "bf16": "BF16", "f16": "F16", "i32": "I32", "i64": "I64"}
"""Number formats as a manifest spells them, and as safetensors do."""

_WIDTHS = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2, "I32": 4, "I64": 8}

READERS: dict[str, Callable[[Path], Dump]] = {
    ".json": _json,
    ".bin": _bin,
    ".npy": _npy,
    ".safetensors": _safetensors,
}
"""Reader by file extension."""

_KNOWN = (
    "readable are records of this program, rwkv7_reference.json (candle-mi), *_final_logits.bin or .json "
    "(candle_rwkv7), .npy and .safetensors with `logits`."
)
