"""The named equations behind the contract, and the float64 truth."""

import os
import platform
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from backends.base import Array, Call, Gap, Ids, Info, Output, Session, State, Want
from backends.reference import v4, v5, v6, v7, v7a, v7b
from backends.reference.equations import Carry, Equation, Model, Rounding, Version, Walk
from backends.reference.misreadings import misreadings
from backends.reference.replay import gaps, replay
from backends.reference.state import exported, imported
from backends.tokenizer import for_model
from backends.weights import DTYPES, Weights

VERSIONS: Mapping[str, Version] = {
    "4": v4.VERSION,
    "5.0": v5.VERSION_50,
    "5.1": v5.VERSION,
    "5.2": v5.VERSION,
    "6": v6.VERSION,
    "7": v7.VERSION,
    "7a": v7a.VERSION,
    "7b": v7b.VERSION,
}
"""RWKV version -> its equations."""

KEEP_SHARE = 0.35  # of the machine's memory may hold converted weights; beyond that blocks are read again each time


class EquationSession(Session):
    """A version's equations behind the contract.

    Args:
        weights: the checkpoint.
        backend: registry name, for `info`.
        dtype: short name of the format that the equations are evaluated in.
        threads: of torch; 0 leaves it as it is.
        rounding, weight_dtype, overrides, arranged: see `Model`.
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
        arranged: Mapping[Equation, Equation] | None = None,
    ) -> None:
        if threads:
            torch.set_num_threads(threads)
        keep = weights.facts.parameters * DTYPES[dtype].itemsize < KEEP_SHARE * _memory()
        version = VERSIONS[weights.facts.version]
        self.model = Model(weights, version, dtype, overrides, rounding, weight_dtype, keep, arranged)
        self.tokenizer = for_model(weights.facts)
        self.streams = not keep
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
        return self._together([(tokens, state, want)])[0]

    @torch.no_grad()
    def forward_together(self, calls: Sequence[Call]) -> list[Output]:
        """See `Session.forward_together`: all calls pass a sub-layer before the next one is read."""
        return self._together([self._admitted(*call) for call in calls])

    def _together(self, calls: Sequence[tuple[Ids, Any, Want]]) -> list[Output]:
        walks = [Walk(torch.from_numpy(ids), state or Carry(), want.trace, want.logits) for ids, state, want in calls]
        self.model.advance(walks)
        return [_output(walk, want) for walk, (_, _, want) in zip(walks, calls, strict=True)]

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
        return exported(self.model.version, state, self.info.model)

    def import_state(self, state: State) -> Carry:
        """The carry that continues from `state`; its shapes are checked first."""
        return imported(self.model.version, state, self.info.model, self.model.dtype)


def _output(walk: Walk, want: Want) -> Output:
    return Output(
        logits=walk.head.numpy() if walk.head is not None and want.fetch else None,
        state=Carry(walk.after) if want.state else None,
        trace={name: value.numpy() for name, value in walk.trace.items()},
    )


def _tensors(arrays: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in arrays.items()}


def open_reference(weights: Weights, *, device: str = "cpu", dtype: str = "f64", threads: int = 0) -> EquationSession:
    """The truth: every equation in float64."""
    del device  # the CPU only: float64 is slow or missing elsewhere
    return EquationSession(weights, "reference-f64", dtype, threads)


def _memory() -> int:
    """Bytes of memory of this machine; 8 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return 8 << 30
