"""Converts again and again in processes of their own, for a test that kills them.

Run as a program: `killed.py FOLDER`. For each line `NAME FORMAT SEED` on stdin it forks a child that writes the model
of that seed to FOLDER/NAME, and tells the child's process id; after another line it tells how the child ended. Forking
spares each child the import of torch.
"""

import os
import sys
import time
from pathlib import Path

import torch

from backends import convert
from backends.checkpoint import assemble
from backends.readers import Source
from backends.sizes import Size
from backends.synthetic import of_sizes
from backends.weights import Tensor, Weights

PAUSE = 0.002
"""Seconds that reading a tensor takes longer, so that writing takes long enough to be hit."""


def model(seed: int, pause: float = 0.0) -> Weights:
    """A small RWKV-7 that is slow to read."""
    found = of_sizes(Size(2, 128, (16, 12, 8, 24)), seed, vocab=300)
    return assemble("m", Source({name: _slow(tensor, pause) for name, tensor in found.tensors.items()}))


def _slow(tensor: Tensor, pause: float) -> Tensor:
    def read(device: str) -> torch.Tensor:
        time.sleep(pause)
        return tensor.read(device)

    return Tensor(tensor.shape, tensor.dtype, read)


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for line in sys.stdin:
        name, to, seed = line.split()
        child = os.fork()
        if child == 0:
            convert.save(model(int(seed), PAUSE), folder / name, to)
            os._exit(0)
        print(child, flush=True)
        sys.stdin.readline()  # until then the id stays the child's, dead or alive
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
