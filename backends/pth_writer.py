"""Official `.pth` files, written one tensor at a time.

The format of `torch.save` since 1.6: a zip archive without compression that holds a pickle of the state dict, in which
tensors stand for `data/0`, `data/1`, ..., and these, raw. Every record's data begins at a multiple of 64 bytes, so that
`torch.load(..., weights_only=True, mmap=True)` opens what is written without reading it.
"""

import io
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import _utils as torch_utils

from backends.weights import DTYPES, Tensor

ALIGNMENT = 64
"""Bytes at whose multiples torch puts the data of a record."""

_ROOT = "archive"
_STORAGES = {
    "f64": torch.DoubleStorage,
    "f32": torch.FloatStorage,
    "bf16": torch.BFloat16Storage,
    "f16": torch.HalfStorage,
}
_PIECE = 16 << 20  # bytes handed to the file at a time
_MOMENT = (1980, 1, 1, 0, 0, 0)  # as torch writes it: the same tensors give the same file


def write(path: Path, tensors: Mapping[str, Tensor], wrote: Callable[[int], None] = lambda _: None) -> None:
    """Write a state dict.

    Args:
        path: the file; replaced where it exists.
        tensors: name -> tensor; each is read when it is its turn.
        wrote: told the bytes of each tensor that has been written.
    """
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        _record(archive, "data.pkl", _pickled(tensors))
        _record(archive, ".format_version", b"1")
        _record(archive, ".storage_alignment", str(ALIGNMENT).encode())
        _record(archive, "byteorder", b"little")
        for index, tensor in enumerate(tensors.values()):
            with _opened(archive, f"data/{index}") as file:
                for piece in raw(tensor):
                    file.write(piece)
            wrote(size(tensor))
        _record(archive, "version", b"3\n")


def raw(tensor: Tensor) -> Iterator[memoryview]:
    """The bytes of a tensor, row-major and little-endian, in pieces."""
    data = tensor.read("cpu").contiguous().reshape(-1).view(torch.uint8).numpy().data
    for begin in range(0, len(data), _PIECE):
        yield data[begin : begin + _PIECE]


def size(tensor: Tensor) -> int:
    """Bytes of a tensor."""
    return torch.Size(tensor.shape).numel() * DTYPES[tensor.dtype].itemsize


@dataclass(frozen=True)
class _Stand:
    """What stands in the pickle for one tensor: the key of its record and how it is laid out there."""

    key: str
    tensor: Tensor

    def rebuilt(self) -> tuple[Any, ...]:
        strides = torch.empty(self.tensor.shape, device="meta").stride()
        hooks: OrderedDict[str, Any] = OrderedDict()
        return (_Storage(self.key, self.tensor), 0, tuple(self.tensor.shape), strides, False, hooks)


@dataclass(frozen=True)
class _Storage:
    key: str
    tensor: Tensor


class _Pickler(pickle.Pickler):
    """Writes stands as torch writes tensors."""

    def persistent_id(self, obj: object) -> tuple[Any, ...] | None:
        """The name of a record, for what stands for one."""
        if not isinstance(obj, _Storage):
            return None
        count = torch.Size(obj.tensor.shape).numel()
        return ("storage", _STORAGES[obj.tensor.dtype], obj.key, "cpu", count)

    def reducer_override(self, obj: object) -> Any:
        """The call that rebuilds a tensor."""
        return (torch_utils._rebuild_tensor_v2, obj.rebuilt()) if isinstance(obj, _Stand) else NotImplemented


def _pickled(tensors: Mapping[str, Tensor]) -> bytes:
    buffer = io.BytesIO()
    stands = {name: _Stand(str(index), tensor) for index, (name, tensor) in enumerate(tensors.items())}
    _Pickler(buffer, protocol=2).dump(stands)
    return buffer.getvalue()


def _record(archive: zipfile.ZipFile, name: str, data: bytes) -> None:
    with _opened(archive, name) as file:
        file.write(data)


def _opened(archive: zipfile.ZipFile, name: str) -> Any:
    """A new record whose data will be aligned: a field of the zip header is padded, as torch does it."""
    info = zipfile.ZipInfo(f"{_ROOT}/{name}", _MOMENT)
    fixed, zip64, field = 30, 20, 4  # bytes of the local header, of its 64-bit sizes, of the padding's own header
    start = archive.fp.tell() + fixed + len(info.filename) + zip64 + field if archive.fp else 0
    padding = -start % ALIGNMENT
    info.extra = struct.pack("<2sH", b"FB", padding) + b"Z" * padding
    return archive.open(info, "w", force_zip64=True)
