"""Fixtures of several rooms; and where there is no GPU, kernels in Triton are interpreted."""

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from backends import registry

# Decided before anything imports it.
if registry._cuda_missing() and importlib.util.find_spec("triton") is not None:
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Torch on one thread, as a run on a small model has it."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A kit of the designed checkpoint."""
    from harness import kit as kits

    return kits.make("conformance", tmp_path_factory.mktemp("kit") / "kit")
