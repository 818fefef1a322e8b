"""The GGUF container, version 3: typed metadata, then tensors. Written streaming; only the header is read.

Layout, little endian: magic, version, two counts, the metadata as key, type, value, then every tensor's name,
dimensions (innermost first), type and offset; the tensors themselves begin at the next multiple of the alignment.
Source: docs/gguf.md of the ggml project.
"""

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from backends.errors import InputError

MAGIC, VERSION, ALIGNMENT = b"GGUF", 3, 32

_NAMES = """
F32 F16 Q4_0 Q4_1 - - Q5_0 Q5_1 Q8_0 Q8_1 Q2_K Q3_K Q4_K Q5_K Q6_K Q8_K IQ2_XXS IQ2_XS IQ3_XXS IQ1_S IQ4_NL IQ3_S IQ2_S
IQ4_XS I8 I16 I32 I64 F64 IQ1_M BF16 - - - TQ1_0 TQ2_0 - - - MXFP4
"""
TYPES = dict(enumerate(_NAMES.split()))
"""Number of a tensor's type in the file -> its name."""

NUMBERS = {name: number for number, name in TYPES.items()}

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
"""Number of a metadata type -> its struct format; 8 is a string, 9 an array."""

U32, I32, F32, BOOL, STRING, ARRAY = 4, 5, 6, 7, 8, 9

Value = bool | int | float | str | Sequence[bytes] | npt.NDArray[np.int32]
"""Metadata: a number becomes u32 or f32, an array of bytes an array of strings, an integer array one of i32."""


@dataclass(frozen=True)
class Entry:
    """One tensor to be written.

    Attributes:
        name: as the engine looks it up.
        shape: outermost first, as numpy counts; the file has it the other way round.
        type: name of its type, of `TYPES`.
        nbytes: length of what `read` gives.
        read: its bytes, little endian, in C order.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    nbytes: int
    read: Callable[[], memoryview]


@dataclass(frozen=True)
class Header:
    """What a file says before its tensors.

    Attributes:
        metadata: key -> value; arrays are lists.
        tensors: name -> (shape, outermost first; name of its type).
    """

    metadata: Mapping[str, Any]
    tensors: Mapping[str, tuple[tuple[int, ...], str]]

    def types(self) -> dict[str, int]:
        """Name of a type -> how many parameters are stored in it, the most first."""
        counted: dict[str, int] = {}
        for shape, kind in self.tensors.values():
            counted[kind] = counted.get(kind, 0) + int(np.prod(shape, dtype=np.int64))
        return dict(sorted(counted.items(), key=lambda row: -row[1]))


def write(path: Path, metadata: Mapping[str, Value], tensors: Iterable[Entry]) -> None:
    """Write a file, one tensor in memory at a time."""
    entries = list(tensors)
    head = MAGIC + struct.pack("<IQQ", VERSION, len(entries), len(metadata))
    head += b"".join(_string(key.encode()) + _value(value) for key, value in metadata.items())
    offset = 0
    for entry in entries:
        dimensions = struct.pack(f"<I{len(entry.shape)}Q", len(entry.shape), *reversed(entry.shape))
        head += _string(entry.name.encode()) + dimensions + struct.pack("<IQ", NUMBERS[entry.type], offset)
        offset += _padded(entry.nbytes)
    with path.open("wb") as file:
        file.write(head + bytes(_padded(len(head)) - len(head)))
        for entry in entries:
            raw = entry.read()
            assert raw.nbytes == entry.nbytes, entry.name
            file.write(raw)
            file.write(bytes(_padded(entry.nbytes) - entry.nbytes))


def read_header(path: Path) -> Header:
    """Metadata and tensor names of a file.

    Raises:
        InputError: missing, unreadable, cut, or no GGUF of a version that is known here.
    """
    try:
        with path.open("rb") as file:
            if file.read(4) != MAGIC:
                raise InputError(f"{path} is no GGUF file: it does not begin with 'GGUF'.")
            version, n_tensors, n_keys = _unpack(file, "IQQ")
            if version not in (2, 3):
                raise InputError(f"{path} is GGUF version {version}; versions 2 and 3 are read here.")
            metadata = {_read_string(file).decode(): _read_value(file, *_unpack(file, "I")) for _ in range(n_keys)}
            return Header(metadata, dict(_read_tensor(file) for _ in range(n_tensors)))
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from None
    except (struct.error, KeyError, UnicodeDecodeError, OverflowError, MemoryError):
        raise InputError(f"{path} is damaged or cut: its GGUF header cannot be read to the end.") from None


def _padded(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def _string(raw: bytes) -> bytes:
    return struct.pack("<Q", len(raw)) + raw


def _value(value: Value) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", BOOL, value)
    if isinstance(value, int):
        return struct.pack("<II", U32, value)
    if isinstance(value, float):
        return struct.pack("<If", F32, value)
    if isinstance(value, str):
        return struct.pack("<I", STRING) + _string(value.encode())
    if isinstance(value, np.ndarray):
        return struct.pack("<IIQ", ARRAY, I32, len(value)) + value.astype("<i4").tobytes()
    return struct.pack("<IIQ", ARRAY, STRING, len(value)) + b"".join(map(_string, value))


def _unpack(file: BinaryIO, form: str) -> tuple[Any, ...]:
    size = struct.calcsize(f"<{form}")
    return struct.unpack(f"<{form}", file.read(size))


def _read_string(file: BinaryIO) -> bytes:
    (size,) = _unpack(file, "Q")
    raw = file.read(size)
    if len(raw) != size:
        raise struct.error("cut")
    return raw


def _read_value(file: BinaryIO, kind: int) -> Any:
    if kind == STRING:
        return _read_string(file).decode("utf-8", "replace")
    if kind == ARRAY:
        inner, count = _unpack(file, "IQ")
        return [_read_value(file, inner) for _ in range(count)]
    return _unpack(file, SCALARS[kind])[0]


def _read_tensor(file: BinaryIO) -> tuple[str, tuple[tuple[int, ...], str]]:
    name = _read_string(file).decode()
    (count,) = _unpack(file, "I")
    shape = tuple(reversed(_unpack(file, f"{count}Q")))
    kind, _ = _unpack(file, "IQ")
    return name, (shape, TYPES.get(kind, f"type {kind}"))
