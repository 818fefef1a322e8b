"""Where the kernels in Triton are tested: on a GPU if there is one, else by Triton's interpreter on the CPU.

Triton decides at its first import whether kernels are interpreted; tests/conftest.py comes before that.
"""

import importlib.util
import warnings
from collections.abc import Iterator

import numpy as np
import pytest

from backends import registry

NO_GPU = registry.find("torch-cuda-bf16").available()
DEVICE = "cpu" if NO_GPU else "cuda"
INSTALLED = importlib.util.find_spec("triton") is not None


def reason() -> str:
    """Why they cannot be tested here, in words; empty if they can."""
    if not INSTALLED:
        return "the Python package 'triton' is not installed (it comes with torch's builds for CUDA)"
    if not NO_GPU:
        return ""
    from triton import __version__, language, runtime

    if isinstance(language.cumsum, runtime.JITFunction):
        return f"the interpreter of triton {__version__} was not switched on before its first import"
    old = tuple(map(int, __version__.split(".")[:2])) < (3, 7)
    if old and tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
        return f"the interpreter of triton {__version__} does not run with numpy {np.__version__}, 2.3 is the last"
    return ""


@pytest.fixture(autouse=True)
def triton_runs(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Triton's kernels on every device; skipped, in words, where they cannot run."""
    if why := reason():
        pytest.skip(why)
    monkeypatch.setenv("RWKV_TRITON", "interpret")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Conversion of an array with ndim > 0")  # triton 3.6 with numpy
        yield
