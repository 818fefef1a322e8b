"""What the official `rwkv` package says, in a process of its own: it reads its settings when it is imported."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

from backends.base import Array, Ids

OFFICIAL = """
import sys
import numpy as np
from rwkv.model import RWKV
model, ids = RWKV(sys.argv[1], "cpu fp32"), [int(i) for i in sys.argv[2].split(",")]
once, once_state = model.forward(ids, None, full_output=True)
steps, state = [], None
for i in ids:
    logits, state = model.forward([i], state)
    steps.append(logits.reshape(-1).clone())
found = {"once": once.numpy(), "steps": np.stack(steps)}
for name, parts in (("once", once_state), ("steps", state)):
    for i in range(3):
        found[f"{name}{i}"] = np.stack([part.float().numpy() for part in parts[i::3]])
np.savez(sys.argv[3], **found)
"""


def official(tensors: dict[str, torch.Tensor], ids: Ids, folder: Path) -> dict[str, Array]:
    """What the official package says, in a process of its own: it reads its settings when it is imported."""
    torch.save(tensors, folder / "model.pth")
    arguments = [str(folder / "model"), ",".join(map(str, ids)), str(folder / "out.npz")]
    env = {**os.environ, "RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", OFFICIAL, *arguments], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    with np.load(folder / "out.npz") as found:
        return dict(found)
