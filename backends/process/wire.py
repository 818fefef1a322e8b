"""Requests and answers as bytes: JSON-RPC 2.0 in one line, arrays inline or in files."""

import base64
import binascii
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from backends.base import Array
from backends.errors import BackendError

WIDTHS = {"f64": 8, "f32": 4, "bf16": 2, "f16": 2}
"""Bytes of a number, by the number formats of an array."""


class Malformed(BackendError):  # noqa: N818 - an answer, seen from the port's side
    """An answer that is no answer of the protocol."""


def request(ident: int, method: str, params: dict[str, Any]) -> bytes:
    """One request, without its line's end: keys in the given order, no spaces."""
    message = {"jsonrpc": "2.0", "id": ident, "method": method, "params": params}
    return json.dumps(message, separators=(",", ":"), ensure_ascii=False).encode()


def answer(line: bytes, ident: int) -> dict[str, Any]:
    """The result of an answer.

    Raises:
        Malformed: no JSON object, or one that does not answer request `ident`.
        BackendError: the port answered with an error; its own words.
    """
    try:
        message = json.loads(line, parse_constant=_no_constant)
    except (ValueError, RecursionError):
        raise Malformed(f"wrote what is no JSON: {shown(line)}") from None
    if not isinstance(message, dict):
        raise Malformed(f"wrote {shown(line)}, where an object with id, and result or error, is due")
    if message.get("id") != ident or isinstance(message.get("id"), bool):
        raise Malformed(f"answered id {message.get('id')!r}, where {ident} is due")
    if "error" in message:
        told = message["error"]
        words = told.get("message") if isinstance(told, dict) else told
        raise BackendError(str(words)[:500])
    result = message.get("result")
    if not isinstance(result, dict):
        raise Malformed(f"answered {shown(line)}, which has no object as its result")
    return result


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)


def shown(line: bytes) -> str:
    """The beginning of a line, quoted and printable."""
    text = "".join(c if c.isprintable() else " " for c in line[:60].decode("utf-8", "replace"))
    return f'"{text}"' + ("..." if len(line) > 60 else "")


def whole(value: Any, what: str, least: int = 0) -> int:
    """A whole number of an answer."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise BackendError(f"{what} is {value!r}, where a whole number from {least} on is due")
    return value


def ids(value: Any, what: str, vocab_size: int) -> list[int]:
    """Token ids of an answer."""
    if not isinstance(value, list):
        raise BackendError(f"{what} are {str(value)[:60]!r}, where a list of ids is due")
    found = [whole(one, f"an id of {what}") for one in value]
    if found and max(found) >= vocab_size:
        raise BackendError(f"{what} hold id {max(found)}, but the vocabulary ends at {vocab_size - 1}")
    return found


def text(value: Any, what: str) -> bytes:
    """Bytes that were sent as base64."""
    if not isinstance(value, str):
        raise BackendError(f"{what} is {str(value)[:60]!r}, where base64 is due")
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BackendError(f"{what} is no base64: {error}") from None


def encoded(array: Array) -> dict[str, Any]:
    """An array as a request carries it inline: f32."""
    raw = np.ascontiguousarray(array, dtype="<f4")
    return {"dtype": "f32", "shape": list(array.shape), "base64": base64.b64encode(raw.tobytes()).decode()}


class Files:
    """The folder through which arrays go that are not sent inline.

    Args:
        folder: an own one; the port is told its path.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read: set[Path] = set()
        self._written = 0

    def put(self, array: Array) -> dict[str, Any]:
        """Write an array for the port: f32, raw."""
        name = f"request-{self._written}.bin"
        self._written += 1
        path = self.folder / name
        path.write_bytes(np.ascontiguousarray(array, dtype="<f4").tobytes())
        self._read.add(path)
        return {"dtype": "f32", "shape": list(array.shape), "file": name, "offset": 0}

    def clear(self) -> None:
        """Delete what was exchanged by the last answer."""
        for path in self._read:
            path.unlink(missing_ok=True)
        self._read.clear()

    def array(self, data: Any, shape: Sequence[int] | None, what: str) -> Array:
        """An array of an answer: float64 from f64, else float32.

        Args:
            data: as JSON.
            shape: the one that is due; -1 stands for any length, None for any shape.
            what: its name, for errors.

        Raises:
            BackendError: no array, or one of another shape or length.
        """
        if not isinstance(data, dict):
            raise BackendError(f"{what}: {str(data)[:60]!r}, where an array is due")
        if "tensor" in data:
            kind, found, raw = self._from_safetensors(data, what)
        else:
            kind, found = _described(data, what)
            size = math.prod(found) * WIDTHS[kind]
            raw = text(data["base64"], what) if "base64" in data else self._from_raw(data, size, what)
            if len(raw) != size:
                raise BackendError(f"{what}: {len(raw)} bytes, but {kind} of shape {found} has {size}")
        if shape is not None and not _fits(found, shape):
            due = ", ".join("any" if n < 0 else str(n) for n in shape)
            raise BackendError(f"{what} has shape {found}, where ({due}) is due")
        return _numbers(kind, raw).reshape(found)

    def _from_raw(self, data: dict[str, Any], size: int, what: str) -> bytes:
        path, offset = self._inside(data.get("file"), what), whole(data.get("offset", 0), f"the offset of {what}")
        with path.open("rb") as file:
            file.seek(offset)
            return file.read(size)

    def _from_safetensors(self, data: dict[str, Any], what: str) -> tuple[str, tuple[int, ...], bytes]:
        import safetensors

        path = self._inside(data.get("file"), what)
        try:
            parts = dict(safetensors.deserialize(path.read_bytes()))  # type: ignore[no-untyped-call]
        except safetensors.SafetensorError as error:
            raise BackendError(f"{what}: {path.name} is no safetensors file: {error}") from None
        if data["tensor"] not in parts:
            raise BackendError(f"{what}: {path.name} holds no tensor {data['tensor']!r}")
        part = parts[data["tensor"]]
        kind, shape = _described({"dtype": part["dtype"].lower(), "shape": list(part["shape"])}, what)
        return kind, shape, bytes(part["data"])

    def _inside(self, name: Any, what: str) -> Path:
        """A file of the folder; nothing outside it is read or deleted."""
        if not isinstance(name, str):
            raise BackendError(f"{what} has neither base64 nor a file")
        path, folder = (self.folder / name).resolve(), self.folder.resolve()
        if not path.is_relative_to(folder) or path.name == "model.safetensors":
            raise BackendError(f"{what}: the file {name!r} does not lie in the folder that `load` named")
        if not path.is_file():
            raise BackendError(f"{what}: there is no file {name!r}")
        self._read.add(path)
        return path


def _described(data: dict[str, Any], what: str) -> tuple[str, tuple[int, ...]]:
    kind, shape = data.get("dtype"), data.get("shape")
    if kind not in WIDTHS:
        raise BackendError(f"{what} has number format {kind!r}; known are {', '.join(WIDTHS)}")
    if not isinstance(shape, list):
        raise BackendError(f"{what} has the shape {shape!r}, where a list is due")
    return str(kind), tuple(whole(n, f"a length of {what}") for n in shape)


def _fits(found: Sequence[int], due: Sequence[int]) -> bool:
    return len(found) == len(due) and all(want in (-1, got) for got, want in zip(found, due, strict=True))


def _numbers(kind: str, raw: bytes) -> Array:
    """Flat numbers; bfloat16, which numpy lacks, is the upper half of a float32."""
    if kind == "bf16":
        return (np.frombuffer(raw, dtype="<u2").astype(np.uint32) << 16).view(np.float32)
    stored = np.frombuffer(raw, dtype={"f64": "<f8", "f32": "<f4", "f16": "<f2"}[kind])
    return stored.astype(np.float64 if kind == "f64" else np.float32)
