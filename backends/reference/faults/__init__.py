"""Planted faults: known porting mistakes that can be computed with, and what they are measured against.

`backends.fault_list` says what each is; the modules here hold one small function for each. Adding one is
a row there and a function here.
"""

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy.typing as npt

from backends import fault_list
from backends.base import Array, Ids, Output, Sampler, Tokenizer, Want, greedy
from backends.errors import UsageError
from backends.fault_list import PAIRS, Entry
from backends.reference.equations import Equation
from backends.reference.faults import deep, diagonal, memory, mix, stream  # noqa: F401 - importing files their equations
from backends.reference.faults.feeding import HANDOVERS, REQUESTS, TOKENIZERS, Handover, Request, hand_over
from backends.reference.faults.plant import overrides
from backends.reference.rounding import honest
from backends.reference.session import VERSIONS, EquationSession
from backends.weights import Weights

__all__ = ["EQUIVALENTS", "FAULTS", "PAIRS", "Fault", "FaultSession", "open_fault"]


@dataclass(frozen=True)
class Fault:
    """A row of the catalogue with its code.

    Attributes:
        entry: the row.
        handover: what it does to a state that is passed in, or None.
        tokenizer: the tokenizer it makes of a sound one, or None.
        request: what it makes of a request to generate, or None.
    """

    entry: Entry
    handover: Handover | None = None
    tokenizer: Callable[[Tokenizer], Tokenizer] | None = None
    request: Callable[[Request], Request] | None = None

    @property
    def name(self) -> str:
        """What `fault:NAME` takes."""
        return self.entry.name

    @property
    def tensor(self) -> str:
        """Short name of the first tensor that is wrong."""
        return self.entry.tensor

    def overrides(self, version: str = "7") -> Mapping[str, Equation]:
        """Pattern of full tensor names -> the equation to use instead; made afresh where sessions must not share."""
        return overrides(self.name, version)


def _with_code(rows: Mapping[str, Entry]) -> dict[str, Fault]:
    return {n: Fault(row, HANDOVERS.get(n), TOKENIZERS.get(n), REQUESTS.get(n)) for n, row in rows.items()}


FAULTS = _with_code(fault_list.FAULTS)
"""Every mistake by name."""

EQUIVALENTS = _with_code(fault_list.EQUIVALENTS)
"""Every other way to write the same function, by name."""


class FaultSession(EquationSession):
    """The equations with mistakes planted: in f32 and f64 as they are, in bf16 and f16 with honest random rounding.

    Args:
        weights: the checkpoint.
        faults: what is planted.
        dtype: "f32", "bf16", "f16"; "f64" shows whether a mistake can matter on a checkpoint at all.
        threads: of torch; 0 leaves it as it is.
        seed: of the rounding.
    """

    def __init__(
        self, weights: Weights, faults: Sequence[Fault], dtype: str = "f32", threads: int = 0, seed: int = 0
    ) -> None:
        kept = VERSIONS[weights.facts.version].kept_f32
        rounding = None if dtype in ("f32", "f64") else honest(dtype, seed, kept)
        evaluated = "f64" if dtype == "f64" else "f32"
        version = weights.facts.version
        planted = {pattern: equation for fault in faults for pattern, equation in fault.overrides(version).items()}
        super().__init__(weights, "fault", evaluated, threads, rounding, dtype, planted, shown=dtype)
        self.faults = tuple(faults)
        notes = tuple(f"planted: {fault.entry.summary}" for fault in faults)
        abilities = self.info.abilities - {"replay"}  # nobody asks a faulty program what is right
        self.info = replace(self.info, abilities=abilities, notes=(*notes, *self.info.notes))
        for fault in faults:
            if fault.tokenizer and self.tokenizer:
                self.tokenizer = fault.tokenizer(self.tokenizer)

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        if state is not None:
            state = hand_over(state, [fault.name for fault in self.faults])
        return super()._forward(tokens, state, want)

    def replay(
        self,
        recorded: Mapping[str, Array],
        tokens: npt.ArrayLike,
        state: Any = None,
        only: Collection[str] | None = None,
    ) -> dict[str, Array]:
        """See `Session.replay`; a state passes through what was planted."""
        handed = state if state is None else hand_over(state, [fault.name for fault in self.faults])
        return super().replay(recorded, tokens, handed, only)

    def generate(
        self, tokens: npt.ArrayLike, sampler: Sampler | None = None, max_new_tokens: int = 1, stop: Sequence[int] = ()
    ) -> Iterator[Ids]:
        """See `Session.generate`; the request passes through what was planted."""
        asked = Request(self._checked(tokens), sampler or greedy, max_new_tokens)
        for fault in self.faults:
            asked = fault.request(asked) if fault.request else asked
        return super().generate(asked.tokens, asked.sampler, asked.count, stop)


def open_fault(
    weights: Weights, *, device: str = "cpu", dtype: str = "f32", threads: int = 0, argument: str = ""
) -> FaultSession:
    """A port with known mistakes.

    Args:
        weights: the checkpoint.
        device: "cpu".
        dtype: "f32" and "f64" evaluate without random rounding; "bf16" and "f16" round as `honest` does.
        threads: of torch; 0 leaves it as it is.
        argument: `NAME[+NAME...][?seed=N]`, names of faults or equivalents.

    Raises:
        UsageError: no name, an unknown one, or a seed that is no integer.
    """
    del device
    written = re.fullmatch(r"([^?]*)(?:\?seed=(\d+))?", argument)
    if written is None or not written[1]:
        raise UsageError(f"backend fault takes NAME[+NAME...][?seed=N], got {argument!r}.")
    rows = [fault_list.pick(name, weights.facts.version).name for name in written[1].split("+")]
    planted = [(FAULTS | EQUIVALENTS)[name] for name in rows]
    return FaultSession(weights, planted, dtype, threads, int(written[2] or 0))
