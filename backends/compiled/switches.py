"""What can be switched in torch-compile: by the environment, or behind the backend's name."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Self

from backends.errors import UsageError

VARIABLES = {
    "triton": ("RWKV_TRITON", {"1": "cuda", "0": "", "interpret": "interpret"}),
    "graph": ("RWKV_CUDA_GRAPH", {"1": "yes", "0": ""}),
    "embedding": ("RWKV_EMBEDDING", {"device": "", "host": "yes"}),
    "sparse": ("RWKV_SPARSE_FFN", {"1": "yes", "0": ""}),
}
"""Switch -> its variable, and what its values mean."""


@dataclass(frozen=True)
class Switches:
    """How a session computes; all but `sparse` on CUDA alone.

    Attributes:
        triton: where the kernels in Triton run: "cuda"; "interpret", on a CPU too, by Triton's interpreter, for tests;
            "" nowhere.
        graph: whether a decode step is replayed as one CUDA graph.
        embedding: whether the embedding table stays in the host's memory.
        sparse: whether weights of the channel mix that meet zeros are left out.
    """

    triton: str = "cuda"
    graph: bool = True
    embedding: bool = False
    sparse: bool = True

    @classmethod
    def of(cls, argument: str = "", environment: Mapping[str, str] = os.environ) -> Self:
        """From the environment, then from what stands behind "torch-compile:", as in "graph=0,embedding=host".

        Raises:
            UsageError: an unknown switch or value.
        """
        found = cls()
        for name, (variable, values) in VARIABLES.items():
            if variable in environment:
                found = found._with(name, variable, environment[variable], values)
        own = [name for name in VARIABLES if name != "triton"]  # compiled layers ask for that one by themselves
        for part in filter(None, argument.split(",")):
            name, _, value = part.partition("=")
            if name not in own:
                raise UsageError(f"torch-compile has no switch {name!r}; it has {', '.join(own)}.")
            found = found._with(name, name, value, VARIABLES[name][1])
        return found

    def _with(self, name: str, written: str, value: str, values: Mapping[str, str]) -> Self:
        if value not in values:
            raise UsageError(f"{written}={value} is not known; it takes {', '.join(values)}.")
        means: dict[str, Any] = {name: values[value] if name == "triton" else bool(values[value])}
        return replace(self, **means)
