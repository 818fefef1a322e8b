"""One kit for all ports."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from harness import kit as kits


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return kits.make("conformance", tmp_path_factory.mktemp("kit") / "kit")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
