"""RWKV-4 to 6 and 7a against the official package on random official files: logits and state, both ways of feeding."""

import importlib.util
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from backends import registry
from backends.base import Array, Ids, State
from backends.checkpoint import open_checkpoint
from tests.backends.feeding import ids_for
from tests.backends.official import assert_follows, family
from tests.backends.random_family import Shape, random_model

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("rwkv") is None, reason="the official package 'rwkv' is not installed"
)

SHAPE = Shape(C=128, N=32, L=3, V=300)
IDS: Ids = ids_for(48, SHAPE.V, seed=5)
NAMES = ("4", "5.0", "5.1", "5.2", "6", "6-tuned", "7a")
"""Version, and what is special about the checkpoint."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("family")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, dict[str, Array]]:
    """What the package says of every version, read back from the files by the package itself."""
    models = {name: (name.partition("-")[0], random_model(name.partition("-")[0], SHAPE)) for name in NAMES}
    draw = torch.Generator().manual_seed(9)
    state = (SHAPE.C // SHAPE.N, SHAPE.N, SHAPE.N)
    for layer in range(SHAPE.L):
        models["6-tuned"][1][f"blocks.{layer}.att.time_state"] = torch.randn(*state, generator=draw)
    return family(models, IDS, folder)


@pytest.mark.parametrize("backend", ["reference-f64", "torch-cpu-f32"])
@pytest.mark.parametrize("name", NAMES)
def test_logits_and_state_one_shot_and_token_by_token(
    name: str, backend: str, folder: Path, found: dict[str, dict[str, Array]]
) -> None:
    version = name.partition("-")[0]
    with (
        open_checkpoint(str(folder / f"{name}.pth")) as weights,
        registry.open_session(registry.parse(backend), weights, threads=1) as session,
    ):
        assert weights.facts.version == version
        assert_follows(session, IDS, found[name], partial(theirs, version))


def theirs(version: str, state: State) -> list[Array]:
    """The parts in the package's order and layout: it has S[k, v] in v5 and v6, S[v, k] in v7."""
    first, last = state.att_shift[:, 0], state.ffn_shift[:, 0]
    if version == "4":
        return [first, *np.moveaxis(state.extra["memory"][:, 0], 1, 0), last]
    wkv = state.wkv[:, 0]
    return [first, wkv if version.startswith("7") else wkv.swapaxes(-1, -2), last]
