"""The checkpoint as every port gets it: one safetensors file with official names."""

import json
import struct
from pathlib import Path

from backends.convert import save
from backends.weights import Weights

NAME = "model.safetensors"
READABLE = {"F32", "BF16", "F16"}
"""Number formats that a port has to read."""


def provide(weights: Weights, folder: Path) -> Path:
    """Put the checkpoint into a folder: a link to the user's own file where it serves, else a file written now.

    Args:
        weights: the checkpoint.
        folder: an own one; the path in it needs no escapes, wherever the user's file lies.
    """
    path = folder / NAME
    if weights.path is not None and _serves(weights.path, weights):
        path.symlink_to(weights.path.resolve())
        return path
    wide = any(tensor.dtype == "f64" for tensor in weights.tensors.values())
    return save(weights, path, "safetensors", "f32" if wide else "")


def _serves(path: Path, weights: Weights) -> bool:
    """Whether a file is safetensors with official names in readable number formats."""
    if path.suffix.lower() != ".safetensors" or not path.is_file():
        return False
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return set(weights) <= set(header) and {row["dtype"] for row in header.values()} <= READABLE
