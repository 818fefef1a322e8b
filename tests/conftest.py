"""Where there is no GPU, kernels in Triton are interpreted: decided before anything imports it."""

import importlib.util
import os

from backends import registry

if registry._cuda_missing() and importlib.util.find_spec("triton") is not None:
    os.environ.setdefault("TRITON_INTERPRET", "1")
