"""The named equations as backends: the float64 truth, the float32 reference, honest low precision."""

import os
import platform
from collections.abc import Collection, Mapping
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from backends.base import Array, Gap, Ids, Info, Output, Session, State, Want
from backends.errors import UsageError
from backends.reference import v7
from backends.reference.equations import Carry, Equation, Model, Rounding
from backends.reference.forms import varied
from backends.reference.misreadings import misreadings
from backends.reference.replay import gaps, replay
from backends.reference.rounding import honest
from backends.tokenizer import for_model
from backends.weights import DTYPES, Weights

VERSIONS: Mapping[str, ModuleType] = {"7": v7}
"""RWKV version -> the module with its equations."""

PARTS = {"att_shift": "att.ln1", "wkv": "att.state", "ffn_shift": "ffn.ln2"}
"""Component of the agreed state -> the tensor of each block that is carried to the next token."""

KEEP_SHARE = 0.35  # of the machine's memory may hold converted weights; beyond that blocks are read again each time


class EquationSession(Session):
    """A version's equations behind the contract.

    Args:
        weights: the checkpoint.
        backend: registry name, for `info`.
        dtype: short name of the format that the equations are evaluated in.
        threads: of torch; 0 leaves it as it is.
        rounding, weight_dtype, overrides: see `Model`.
        shown: number format that `info` states, where rounding makes it another than `dtype`.
    """

    def __init__(
        self,
        weights: Weights,
        backend: str,
        dtype: str,
        threads: int = 0,
        rounding: Rounding | None = None,
        weight_dtype: str = "",
        overrides: Mapping[str, Equation] | None = None,
        shown: str = "",
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        keep = weights.facts.parameters * DTYPES[dtype].itemsize < KEEP_SHARE * _memory()
        version = VERSIONS[weights.facts.version]
        self.model = Model(weights, version, dtype, overrides, rounding, weight_dtype, keep)
        self.tokenizer = for_model(weights.facts)
        streamed = () if keep else ("weights are read again block by block for every call: they do not fit in memory",)
        self.info = Info(
            backend=backend,
            model=weights.facts,
            device_name=platform.processor() or platform.machine(),
            dtype=shown or dtype,
            state_dtype=dtype,
            threads=torch.get_num_threads(),
            attention=f"named equations, sequential WKV-{weights.facts.version} recurrence",
            packages={"torch": torch.__version__},
            abilities=frozenset({"logits-all", "state", "trace", "batch", "generate", "tokenizer", "replay"}),
            notes=streamed,
        )

    @torch.no_grad()
    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        logits, carry, trace = self.model.run(torch.from_numpy(tokens), state, want.logits, want.trace)
        return Output(
            logits=logits.numpy() if logits is not None and want.fetch else None,
            state=carry if want.state else None,
            trace={name: value.numpy() for name, value in trace.items()},
        )

    @torch.no_grad()
    def replay(
        self,
        recorded: Mapping[str, Array],
        tokens: npt.ArrayLike,
        state: Any = None,
        only: Collection[str] | None = None,
    ) -> dict[str, Array]:
        """See `Session.replay`; evaluated in this session's number format."""
        found = replay(self.model, _tensors(recorded), torch.from_numpy(self._checked(tokens)), state, only)
        return {name: value.numpy() for name, value in found}

    def gaps(self, recorded: Collection[str]) -> dict[str, Gap]:
        """See `Session.gaps`."""
        return gaps(self.model, recorded)

    @torch.no_grad()
    def misread(self, recorded: Mapping[str, Array], tokens: npt.ArrayLike, name: str) -> dict[str, Array]:
        """See `Session.misread`."""
        found = misreadings(self.model, _tensors(recorded), torch.from_numpy(self._checked(tokens)), name)
        return {words: value.numpy() for words, value in found}

    def export_state(self, state: Carry) -> State:
        """The carry as arrays in the agreed layout (a copy)."""
        att_shift, wkv, ffn_shift = (self._stack(state, name) for name in PARTS.values())
        return State(att_shift, wkv, ffn_shift)

    def import_state(self, state: State) -> Carry:
        """The carry that continues from `state`."""
        tensors = {}
        for part, name in PARTS.items():
            for layer, value in enumerate(state.parts()[part]):
                tensors[f"blocks.{layer}.{name}"] = torch.from_numpy(np.array(value)).to(self.model.dtype)
        return Carry(tensors)

    def _stack(self, carry: Carry, name: str) -> np.ndarray[Any, Any]:
        layers = range(self.info.model.n_layer)
        return torch.stack([carry.tensors[f"blocks.{layer}.{name}"] for layer in layers]).numpy()


def _tensors(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


def open_reference(weights: Weights, *, device: str = "cpu", dtype: str = "f64", threads: int = 0) -> EquationSession:
    """The truth: every equation in float64."""
    del device  # the CPU only: float64 is slow or missing elsewhere
    return EquationSession(weights, "reference-f64", dtype, threads)


def open_honest(
    weights: Weights, *, device: str = "cpu", dtype: str = "bf16", threads: int = 0, argument: str = ""
) -> EquationSession:
    """An honest implementation in `dtype`, randomly rounded.

    Args:
        weights: the checkpoint.
        device: "cpu".
        threads: of torch; 0 leaves it as it is.
        dtype: the format whose rounding is applied.
        argument: seed of the rounding, an integer; rows of a batch are rounded independently, and written in one
            public form of the equations after another.
    """
    del device
    if argument and not argument.isdecimal():
        raise UsageError(f"honest:SEED takes an integer seed, got {argument!r}.")
    version = VERSIONS[weights.facts.version]
    seed = int(argument or 0)
    rounding = honest(dtype, seed, version.KEPT_F32)
    return EquationSession(weights, "honest", "f32", threads, rounding, dtype, varied(seed), shown=dtype)


def _memory() -> int:
    """Bytes of memory of this machine; 8 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 << 30
