"""From a finished training to the file that the harness opens as `demo`."""

import hashlib
import platform
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from backends.checkpoint import assemble
from backends.convert import official_tensors, replacing, write_safetensors
from backends.errors import InputError
from backends.readers import in_memory

FILE = Path(__file__).with_name("demo.safetensors")

SHA256 = "6c3696422985a99d0eb3ca5a99da1e0696b7870dfcf1b278a9ae7db691f686f1"
"""Of `FILE`; what else stands under that name is refused."""

LICENCE = "trained on the Python standard library (Python Software Foundation License)"


def rounded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The weights as the file holds them: in bfloat16, given back in float32."""
    return {name: tensor.detach().to(torch.bfloat16).float() for name, tensor in weights.items()}


def write(weights: Mapping[str, Tensor], facts: Mapping[str, str], path: Path = FILE) -> str:
    """Write the weights in bfloat16 under official names and in official shapes; the whole file or none.

    Args:
        weights: official name -> tensor.
        facts: what the file says about itself, beside the Python version and the licence of the corpus.
        path: the file.

    Returns:
        Its sha256.
    """
    told = {"python": platform.python_version(), "licence": LICENCE, **facts}
    source = in_memory({name: tensor.detach() for name, tensor in weights.items()})
    with assemble("demo", source) as opened, replacing(path) as part:
        write_safetensors(part, official_tensors(opened, "bf16"), told)
    return sha256(path)


def checked(path: Path = FILE) -> Path:
    """The file, if it is the one that this package was made with.

    Raises:
        InputError: it is missing, or another.
    """
    if not path.is_file():
        raise InputError(
            f"{path.name} is missing from this installation; install again, or train it: python -m backends.demo."
        )
    if sha256(path) != SHA256:
        raise InputError(f"{path.name} is not the file that this package came with; open another by its path.")
    return path


def sha256(path: Path) -> str:
    """The file's hash in hex."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
