"""`hf`: RWKV-7 in Hugging Face Transformers, by the pure PyTorch package `rwkv7-hf`. It converts the .pth by itself."""

from pathlib import Path

from backends.engines.files import WRITTEN, own_pth, provide_pth
from backends.engines.session import EngineSession, Setup
from backends.weights import Weights

HEAD = 64
"""Head size of every released RWKV-7; official code writes the group norm's epsilon as 64e-5, the package N * 1e-5."""


def open_hf(weights: Weights, *, device: str = "cpu", dtype: str = "f32", threads: int = 0) -> EngineSession:
    """The package on a checkpoint.

    Args:
        weights: an HF folder is opened as it is, an official .pth converted by the package's own converter; anything
            else is written as .pth first.
        device: "cpu", "cuda", "mps".
        dtype: of weights and activations; the state stays in f32.
        threads: of torch in the child process.

    Raises:
        BackendError: the package refuses it.
    """
    path = weights.path
    folder = path.resolve() if path is not None and path.is_dir() else None
    notes = [] if folder or own_pth(weights) else [WRITTEN]
    notes += [] if folder else ["converted by the package's own converter"]
    size = weights.facts.head_size
    notes += (
        [] if size == HEAD else [f"head size {size}: the package's group norm has epsilon {size}e-5, not {HEAD}e-5"]
    )

    def provide(weights: Weights, scratch: Path) -> Path:
        if folder is None:
            return provide_pth(weights, scratch)
        link = scratch / "model"
        link.symlink_to(folder)
        return link

    setup = Setup("hf", "hf", {"convert": folder is None}, provide, tuple(notes))
    return EngineSession(weights, setup, dtype, device, threads)
