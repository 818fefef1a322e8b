"""Files too large to be mapped whole: every tensor is mapped by itself, when it is read.

torch and safetensors map a file privately and writably, which Linux refuses for more than the machine's memory even
though nothing is ever written. These are the ways around: same files, same tensors, one mapping a read.
"""

import json
import warnings
from collections.abc import Iterator, Mapping
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch

from backends.errors import InputError
from backends.weights import DTYPES, SHORT, Tensor

SAFETENSORS = {"F64": "f64", "F32": "f32", "BF16": "bf16", "F16": "f16"}
"""Number formats as safetensors spells them."""


def refused(error: Exception) -> bool:
    """Whether an error says that the system would not map a file."""
    return "unable to mmap" in str(error)


def mapped(path: Path, begin: int, shape: tuple[int, ...], dtype: str, device: str = "cpu") -> torch.Tensor:
    """A tensor of a file, without reading it yet.

    Args:
        path: the file.
        begin: where the tensor's bytes begin, row-major and little-endian.
        shape: of the tensor.
        dtype: short name of the number format.
        device: elsewhere than on the "cpu" it is copied.
    """
    kind = DTYPES[dtype]
    count = prod(shape) * kind.itemsize
    if not count:
        return torch.empty(shape, dtype=kind, device=device)
    found = torch.from_numpy(np.memmap(path, np.uint8, "c", begin, (count,)))  # "c": torch wants a writable array
    if found.data_ptr() % kind.itemsize:
        found = found.clone()
    return found.view(kind).reshape(shape).to(device)


def safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, unread.

    Raises:
        ValueError: the header does not describe the file.
        InputError: a tensor in another number format.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > size - 8:
            raise ValueError("its header is longer than the file")
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return dict(_placed(path, header, 8 + length, size))


def _placed(path: Path, header: Mapping[str, Any], start: int, size: int) -> Iterator[tuple[str, Tensor]]:
    for name, row in header.items():
        if row["dtype"] not in SAFETENSORS:
            raise InputError(f"tensor {name!r} in {path} is {row['dtype']}; {', '.join(SAFETENSORS)} are read.")
        dtype, shape = SAFETENSORS[row["dtype"]], tuple(row["shape"])
        begin, end = row["data_offsets"]
        if end - begin != prod(shape) * DTYPES[dtype].itemsize or begin < 0 or start + end > size:
            raise ValueError(f"the place of {name} does not fit its shape or the file")
        yield name, Tensor(shape, dtype, partial(mapped, path, start + begin, shape, dtype))


def pth(path: Path) -> Any:
    """What a `.pth` holds, its tensors as `Tensor`s, unread; the pickle passes torch's restricted unpickler.

    Raises:
        Exception: as `torch.load`.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = torch.load(path, map_location="meta", weights_only=True)
    if not isinstance(loaded, dict):
        return loaded
    return {name: _piece(path, value) if isinstance(value, torch.Tensor) else value for name, value in loaded.items()}


def _piece(path: Path, tensor: torch.Tensor) -> Tensor | torch.Tensor:
    """A tensor without data as one that knows its place; as it is, where it cannot be read from there."""
    start = getattr(tensor.untyped_storage(), "_checkpoint_offset", None)
    if start is None or tensor.dtype not in SHORT or not tensor.is_contiguous():
        return tensor
    begin = start + tensor.storage_offset() * tensor.element_size()
    shape, dtype = tuple(tensor.shape), SHORT[tensor.dtype]
    return Tensor(shape, dtype, partial(mapped, path, begin, shape, dtype))
