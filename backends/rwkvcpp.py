"""rwkv.cpp's `.bin` files (FP32 and FP16): read under official names, in official orientation.

Little-endian: six int32 (magic, file version, vocabulary, width, layers, format), then until the end of the file one
record a tensor: int32 axes, name's length, format; the shape in reversed order; the name; the values, row-major. What
that converter changes per RWKV version is undone here (`_UNDO`), all of it bit for bit but the decays of RWKV-4 and 5,
which it stores as exp(-exp(x)) or -exp(x).
"""

import struct
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import BinaryIO

import torch

from backends.errors import InputError
from backends.pieces import mapped
from backends.weights import DTYPES, Tensor

MAGIC = 0x67676D66
VERSIONS = (100, 101)
REMARK = "decays recovered from their exponentials, to float32's rounding"

_FORMATS = {0: "f32", 1: "f16"}
_QUANTISED = {2: "Q4_0", 3: "Q4_1", 7: "Q5_0", 8: "Q5_1", 9: "Q8_0"}
_MIXES = "rwkvag"  # order of the six mixes that one tensor stacks
_LONGEST_NAME, _MOST_AXES = 512, 4

Undo = Callable[[torch.Tensor], torch.Tensor]


def is_one(path: Path) -> bool:
    """Whether a file begins as rwkv.cpp's files do."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC.to_bytes(4, "little")


def tensors(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file under official names, unread, and what is to be said about them.

    Raises:
        InputError: damaged, cut short, quantised, or of an unknown file version.
    """
    try:
        with path.open("rb") as file:
            found = dict(_records(path, file, path.stat().st_size))
    except (struct.error, UnicodeDecodeError, OverflowError) as error:
        raise InputError(f"{path} is a damaged rwkv.cpp file: {error}.") from error
    version = _version(found)
    official: dict[str, Tensor] = {}
    for name, tensor in found.items():
        official.update(_official(path, version, name, tensor))
    return official, REMARK if version in ("4", "5", "5.2") else ""


def _records(path: Path, file: BinaryIO, size: int) -> Iterator[tuple[str, Tensor]]:
    magic, version, *_ = struct.unpack("<6i", file.read(24))
    if magic != MAGIC or version not in VERSIONS:
        raise InputError(f"{path} is no rwkv.cpp file of version {' or '.join(map(str, VERSIONS))}.")
    while file.tell() < size:
        axes, length, kind = struct.unpack("<3i", file.read(12))
        if not 0 < axes <= _MOST_AXES or not 0 < length <= _LONGEST_NAME:
            raise InputError(f"{path} is a damaged rwkv.cpp file: a tensor of {axes} axes, a name of {length} bytes.")
        shape = struct.unpack(f"<{axes}i", file.read(4 * axes))[::-1]
        name = file.read(length).decode()
        if kind not in _FORMATS:
            what = _QUANTISED.get(kind, f"of an unknown format ({kind})")
            raise InputError(f"{path} is quantised: {name} is {what}; FP32 and FP16 files are read.")
        dtype, begin = _FORMATS[kind], file.tell()
        end = begin + prod(shape) * DTYPES[dtype].itemsize
        if min(shape) < 1 or end > size:
            raise InputError(f"{path} is cut short: {name} {shape} ends at byte {end}, the file at {size}.")
        yield name, Tensor(shape, dtype, partial(mapped, path, begin, shape, dtype))
        file.seek(end)


def _version(names: Mapping[str, Tensor]) -> str:
    """Which of the converter's habits apply."""
    if "blocks.0.att.x_rwkvag" in names:
        return "7"
    if "blocks.0.att.time_maa_x" in names:
        return "6"
    if "blocks.0.att.ln_x.weight" not in names:
        return "4"
    decay = names.get("blocks.0.att.time_decay")
    return "5.2" if decay is not None and len(decay.shape) > 1 and decay.shape[1] > 1 else "5"


def _official(path: Path, version: str, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    stem, _, last = name.rpartition(".")
    if last == "x_rwkvag":
        if tensor.shape[0] != len(_MIXES):
            raise InputError(f"{path}: {name} stacks six mixes, but has the shape {tensor.shape}.")
        for index, mix in enumerate(_MIXES):
            yield f"{stem}.x_{mix}", _changed(tensor, partial(torch.select, dim=0, index=index), tensor.shape[1:])
        return
    undo = _UNDO[version].get(last)
    if undo is None:
        yield name, tensor
    elif undo is _turned:
        yield name, _changed(tensor, undo, (*tensor.shape[:-2], tensor.shape[-1], tensor.shape[-2]))
    elif undo is _flat:
        yield name, _changed(tensor, undo, (prod(tensor.shape),))
    elif undo is _same:  # a bonus that is stored as it is used goes by that name
        yield f"{stem}.time_faaaa", tensor
    else:
        yield name, _changed(tensor, undo, tensor.shape)


def _changed(tensor: Tensor, undo: Undo, shape: tuple[int, ...]) -> Tensor:
    return Tensor(shape, tensor.dtype, lambda device: undo(tensor.read(device)))


def _turned(value: torch.Tensor) -> torch.Tensor:
    return value.transpose(-1, -2).contiguous()


def _flat(value: torch.Tensor) -> torch.Tensor:
    return value.reshape(-1)


def _same(value: torch.Tensor) -> torch.Tensor:
    return value


def _log_of_minus(value: torch.Tensor) -> torch.Tensor:
    return (-value.double()).log().to(value.dtype)


def _log_of_minus_log(value: torch.Tensor) -> torch.Tensor:
    return (-value.double().log()).log().to(value.dtype)


_UNDO: dict[str, dict[str, Undo]] = {
    "4": {"time_decay": _log_of_minus},
    "5": {"time_decay": _log_of_minus_log, "time_first": _same},
    "5.2": {"time_decay": _log_of_minus_log, "time_first": _same},
    "6": {
        **dict.fromkeys(("time_maa_w1", "time_maa_w2", "time_decay_w1", "time_decay_w2"), _turned),
        "time_decay": _flat,
    },
    "7": {f"{pair}{part}": _turned for pair in "wavg" for part in "12"},
}
"""RWKV version -> last part of a tensor's name -> what undoes the converter's change."""
