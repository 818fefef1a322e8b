"""What the official `rwkv` package says, in a process of its own: it reads its settings when it is imported."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import numpy as np
import torch

from backends.base import Array, Ids, Session, State
from tests.backends.feeding import F32_BAND, assert_within, fed, logits_of

OFFICIAL = """
import sys
import numpy as np
from rwkv.model import RWKV
ids = [int(i) for i in sys.argv[1].split(",")]
for path, each in zip(sys.argv[2::2], map(int, sys.argv[3::2])):
    model = RWKV(path, "cpu fp32")
    once, once_state = model.forward(ids, None, full_output=True)
    steps, state = [], None
    for i in ids:
        logits, state = model.forward([i], state)
        steps.append(logits.reshape(-1).clone())
    found = {"once": once.numpy(), "steps": np.stack(steps)}
    for name, parts in (("once", once_state), ("steps", state)):
        for i in range(each):
            found[f"{name}{i}"] = np.stack([part.float().numpy() for part in parts[i::each]])
    np.savez(path + ".npz", **found)
"""

SETTINGS = {"7": {"RWKV_V7_ON": "1"}, "7a": {"RWKV_V7_ON": "1", "RWKV_DE_VERSION": "1"}}
"""What the package has to be told before it is imported; it detects RWKV-4 to 6 by itself, and has no 7b."""


def official(tensors: dict[str, torch.Tensor], ids: Ids, folder: Path) -> dict[str, Array]:
    """What the package says of an RWKV-7; see `family`."""
    return family({"model": ("7", tensors)}, ids, folder)["model"]


def family(
    models: dict[str, tuple[str, dict[str, torch.Tensor]]], ids: Ids, folder: Path
) -> dict[str, dict[str, Array]]:
    """What the official package says, in a process of its own for each of its settings.

    Args:
        models: name -> version and official state dict; written to `folder`/name.pth.
        ids: (T,), fed from the zero state.
        folder: an empty one.

    Returns:
        By name, `once` and `steps`, logits (T, V) of both ways of feeding; `once0`, `steps0`, ... the parts of the
        state, each stacked over layers, in the package's order and layout.
    """
    asked: dict[str, list[str]] = {}
    for name, (version, tensors) in models.items():
        torch.save(tensors, folder / f"{name}.pth")
        settings = version if version in SETTINGS else ""
        asked.setdefault(settings, []).extend([str(folder / name), "5" if version == "4" else "3"])
    for settings, arguments in asked.items():
        _run(SETTINGS.get(settings, {}), [",".join(map(str, ids)), *arguments])
    return {name: _read(folder / f"{name}.npz") for name in models}


def assert_follows(
    session: Session, ids: Ids, found: Mapping[str, Array], parts: Callable[[State], Iterable[Array]]
) -> None:
    """Logits and state of both ways of feeding within the band of float32.

    Args:
        session: of the checkpoint that the package was given.
        ids: (T,), those that the package was fed.
        found: what it said, see `family`.
        parts: a state's parts in the package's order and layout.
    """
    for kind, sizes in (("once", [len(ids)]), ("steps", [1] * len(ids))):
        out = fed(session, ids, sizes)
        assert_within(logits_of(out)[0], found[kind], F32_BAND)
        for i, part in enumerate(parts(session.export_state(out.state))):
            assert_within(part, found[f"{kind}{i}"], F32_BAND)


def _run(settings: dict[str, str], arguments: list[str]) -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("RWKV_")}
    env |= {"RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0", "OMP_NUM_THREADS": "1", **settings}
    done = subprocess.run(
        [sys.executable, "-c", OFFICIAL, *arguments], env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr


def _read(path: Path) -> dict[str, Array]:
    with np.load(path) as found:
        return dict(found)
