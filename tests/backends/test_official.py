"""Every backend against the official package on a random official `.pth`: logits and state, both ways of feeding."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from backends import registry
from backends.base import Array, Ids
from backends.checkpoint import open_checkpoint
from tests.backends.feeding import ids_for
from tests.backends.official import assert_follows, official
from tests.backends.random_model import random_rwkv7

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("rwkv") is None, reason="the official package 'rwkv' is not installed"
)

IDS: Ids = ids_for(80, 997, seed=5)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("official")


@pytest.fixture(scope="module")
def found(folder: Path) -> dict[str, Array]:
    """n_embd 256, 4 layers, written as an official .pth and read back by the package itself."""
    return official(random_rwkv7(), IDS, folder)


@pytest.mark.parametrize("backend", ["reference-f64", "torch-cpu-f32", "torch-compile"])
def test_logits_and_state_one_shot_and_token_by_token(
    backend: str, found: dict[str, Array], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    with (
        open_checkpoint(str(folder / "model.pth")) as weights,
        registry.open_session(registry.parse(backend), weights, threads=1) as session,
    ):
        assert weights.facts.n_embd == 256
        assert weights.facts.n_layer == 4
        assert_follows(session, IDS, found, lambda state: [part[:, 0] for part in state.parts().values()])


def test_the_two_sides_are_not_the_same_program(found: dict[str, Array]) -> None:
    """A band of zero would mean that something was compared with itself."""
    assert np.abs(found["once"] - found["steps"]).max() > 0
    assert torch.from_numpy(found["once"]).isfinite().all()
