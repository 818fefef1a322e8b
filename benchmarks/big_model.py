"""A model that does not fit: writes it, passes prompts through it layer by layer, and says what memory that took.

    python benchmarks/big_model.py FOLDER [--size rwkv7-13.3b] [--dtype f64] [--prompts 4] [--tokens 8]

Each stage is a process of its own; its memory is the largest resident set that the kernel saw (`ru_maxrss`), pages of
the mapped checkpoint included. The checkpoint has the shapes of that size; to be written soon, its blocks repeat
those of layer 1. FOLDER needs room for it in bf16 (26.5 GB for 13.3b); one that is there already is used.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

if TYPE_CHECKING:
    from backends.weights import Weights


def main() -> None:
    """Both stages, a line each."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folder", type=Path)
    p.add_argument("--size", default="rwkv7-13.3b")
    p.add_argument("--dtype", default="f64", choices=("f64", "f32"))
    p.add_argument("--prompts", type=int, default=4)
    p.add_argument("--tokens", type=int, default=8)
    p.add_argument("--stage", choices=("write", "walk"), help=argparse.SUPPRESS)
    options = p.parse_args()
    path = options.folder.resolve() / f"{options.size}.safetensors"
    if options.stage == "write":
        write(path, options.size)
    elif options.stage == "walk":
        walk(path, options.dtype, options.prompts, options.tokens)
    else:
        for stage in ("write", "walk") if not path.exists() else ("walk",):
            _measured(stage)


def write(path: Path, size: str) -> None:
    """Convert the generated model and prove it."""
    from backends.convert import save
    from backends.proof import prove

    weights = repeated(size)
    save(weights, path, "safetensors", check=lambda part: print(*prove(weights, part, "").sentences(), sep="; "))


def repeated(size: str) -> "Weights":
    """A synthetic model whose blocks are those of layer 1; embedding and head repeat a sixteenth of their rows."""
    import torch

    from backends.checkpoint import assemble
    from backends.readers import Source
    from backends.synthetic import source
    from backends.weights import Tensor

    drawn = source(size).tensors

    @cache
    def once(name: str) -> torch.Tensor:
        tensor = drawn[name].read("cpu")
        return tensor[: len(tensor) // 16].repeat(16, 1) if name in ("emb.weight", "head.weight") else tensor

    def read(name: str) -> Tensor:
        original = re.sub(r"^blocks\.\d+\.(?!ln0)", "blocks.1.", name)
        return Tensor(drawn[name].shape, drawn[name].dtype, lambda device: once(original).to(device))

    return assemble(f"{size}, repeated", Source({name: read(name) for name in drawn}))


def walk(path: Path, dtype: str, prompts: int, length: int) -> None:
    """All prompts through one layer before the next is read."""
    import numpy as np

    from backends.base import Want
    from backends.checkpoint import open_checkpoint
    from backends.registry import open_session, parse

    backend = {"f64": "reference-f64", "f32": "torch-cpu-f32"}[dtype]
    with open_checkpoint(str(path)) as weights, open_session(parse(backend), weights, 0) as session:
        print(f"{weights.facts.parameters:,} parameters; streamed: {session.streams}")
        ids = [np.arange(1 + 97 * n, 1 + 97 * n + length) % weights.facts.vocab_size for n in range(prompts)]
        outputs = session.forward_together([(each, None, Want(logits="all", state=True)) for each in ids])
        logits = np.stack([output.logits for output in outputs if output.logits is not None])
        assert np.isfinite(logits).all()
        print(f"logits {logits.shape} in {backend}, standard deviation {logits.std():.3f}")


def _measured(stage: str) -> None:
    began = time.monotonic()
    process = subprocess.Popen([sys.executable, *sys.argv, "--stage", stage])
    _, status, usage = os.wait4(process.pid, 0)
    seconds, peak = time.monotonic() - began, usage.ru_maxrss * 1024 / 1e9
    print(f"{stage}: {seconds:.0f} s, {usage.ru_utime + usage.ru_stime:.0f} s of CPU, peak resident {peak:.2f} GB")
    if status:
        raise SystemExit(os.waitstatus_to_exitcode(status))


if __name__ == "__main__":
    main()
