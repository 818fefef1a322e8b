"""What engines open: the user's own official .pth, or one that is written for them."""

from pathlib import Path

from backends.convert import save
from backends.weights import Weights

WRITTEN = "the .pth was written by this project from its own reading of the checkpoint"


def own_pth(weights: Weights) -> Path | None:
    """The user's own official .pth, if that is what was opened."""
    path = weights.path
    return path.resolve() if path is not None and path.suffix.lower() == ".pth" and path.is_file() else None


def provide_pth(weights: Weights, folder: Path) -> Path:
    """A .pth in a folder: a link to the user's own, else one that is written now."""
    path, own = folder / "model.pth", own_pth(weights)
    if own is None:
        return save(weights, path, "pth")
    path.symlink_to(own)
    return path
