"""Fixtures of several files."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from backends import registry
from backends.base import Session
from backends.native import build
from backends.weights import Weights
from tests.backends.feeding import needs_compiler
from tests.backends.files import MODEL
from tests.backends.random_model import as_weights, random_rwkv7
from tests.backends.recordings import V


@pytest.fixture(scope="module")
def weights() -> Weights:
    """RWKV-7 as small as it gets."""
    return as_weights(random_rwkv7(C=32, N=16, L=2, V=V))


@pytest.fixture
def live(weights: Weights) -> Iterator[Session]:
    """A session on it, to be recorded."""
    with registry.open_session(registry.parse("torch-cpu-f32"), weights, 1) as session:
        yield session


@pytest.fixture
def pth(tmp_path: Path) -> Path:
    """MODEL as a .pth."""
    path = tmp_path / "model.pth"
    torch.save(MODEL, path)
    return path


@pytest.fixture
def st(tmp_path: Path) -> Path:
    """MODEL as safetensors."""
    path = tmp_path / "model.safetensors"
    save_file(MODEL, path)
    return path


@pytest.fixture(params=list(build.SETS))
def instructions(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every set of instructions that the C program is built for; skipped where this processor has it not."""
    needs_compiler()
    name: str = request.param
    if not build.processor_flags().issuperset(build.SETS[name]):
        pytest.skip(f"this processor has no {name}")
    monkeypatch.setenv("RWKV_NATIVE", name)
    return name
