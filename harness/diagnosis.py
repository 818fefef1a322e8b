"""What was found out about a candidate, and how it is said: where it goes wrong, and what to do."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from backends.fault_list import FAULTS
from harness.formats import SIGNIFICAND
from harness.formulas import formula
from harness.replay import Out
from harness.suspects import HINT, Lineup, Suspect, summaries

SHOWN = 5
"""Suspects that a record keeps."""

MOST = 4
"""Names of tensors that a sentence lists."""

STATE = "att.state"

TINY = 1e-300


@dataclass(frozen=True)
class Diagnosis:
    """What was found out about one candidate.

    Attributes:
        dtype: the candidate's number format.
        first: the first tensor that is wrong by itself, from a trace; None without one, or where all are right.
        gap: tensors that were not recorded and lie between `first` and its recorded inputs.
        cause: names of the known mistakes that explain it; empty if none does.
        by: how the cause was found: "replay" or "logits".
        fit: error left at `first` with the cause planted, in honest bands; None where it was found by logits.
        lineup: suspects by logits; None where logits are not known.
        hints: what the first tensor looks like.
        lacking: tensors that were not recorded and would sharpen the answer.
        traced: how many tensors were replayed; None without a trace.
        untested: how many tensors nobody could test.
        held: low-precision format in which the WKV state is held, told by its entries; empty for float32.
        replayed: False where `first` is only the first one away from its expected value.
        problem: why less is known than could be, in words.
        version: of RWKV, which decides what the equations are.
    """

    dtype: str
    first: Out | None = None
    gap: tuple[str, ...] = ()
    cause: tuple[str, ...] = ()
    by: str = ""
    fit: float | None = None
    lineup: Lineup | None = None
    hints: tuple[str, ...] = ()
    lacking: tuple[str, ...] = ()
    traced: int | None = None
    untested: int = 0
    replayed: bool = True
    held: str = ""
    problem: str = ""
    version: str = "7"

    @property
    def tensor(self) -> str:
        """Short name of the tensor to look at; empty if nobody knows."""
        if self.first is not None:
            return self.first.short
        if self.cause:
            return FAULTS[self.cause[0]].tensor
        return STATE if self.held else ""

    @property
    def astray(self) -> bool:
        """Whether anything is wrong."""
        return bool(self.held) or self.first is not None or (self.lineup is not None and self.lineup.astray)

    @property
    def next_best(self) -> tuple[str, float] | None:
        """The nearest rival of the best suspect by logits, and how many times farther it is."""
        line = self.lineup
        if line is None or line.best is None:
            return None
        mine = next((s for s in line.suspects if s.names == self.cause), line.best)
        rival = next((s for s in line.suspects if not set(s.names) & set(mine.names)), None)
        return (_joined(rival), rival.distance / max(mine.distance, line.floor, TINY)) if rival else None

    def data(self) -> dict[str, Any]:
        """As the observation of a record."""
        first, rival = self.first, self.next_best
        return {
            "tensor": self.tensor,
            "layer": first.layer if first else None,
            "token": first.token if first else None,
            "ratio": first.ratio if first else None,
            "cause": "+".join(self.cause),
            "summary": summaries(self.cause),
            "next": {"cause": rival[0], "times": rival[1]} if rival else None,
            "explained": bool(self.cause),
            "by": self.by,
            "sentences": sentences(self),
            "hints": list(self.hints),
            "lacking": list(self.lacking),
            "dtype": self.dtype,
            "held": self.held,
            **_lined_up(self.lineup),
        }


def _lined_up(line: Lineup | None) -> dict[str, Any]:
    if line is None:
        return {}
    suspects = [{"cause": _joined(s), "distance": s.distance} for s in line.suspects[:SHOWN]]
    numbers = {"truth_distance": line.truth, "floor": line.floor, "nearer": line.nearer, "at_floor": line.at_floor}
    return numbers | {"suspects": suspects}


def _joined(suspect: Suspect) -> str:
    return "+".join(suspect.names)


def sentences(found: Diagnosis) -> list[str]:
    """Two sentences that a porter can act on: where it goes wrong, and what to do."""
    return [where(found), what(found)]


def where(found: Diagnosis) -> str:
    """Which tensor, layer and token; or how far the logits are off."""
    if found.first is not None:
        return _place(found, found.first)
    if found.held:
        return f"The WKV state is held in {found.held}: every entry of it lies on that format's grid."
    line = found.lineup
    if line is None:
        return _without_logits(found)
    if not line.astray:
        return f"The logits are as near to the truth as honest {found.dtype} rounding; there is nothing to explain."
    traced = f"All {found.traced} recorded tensors follow from what they read, but the" if found.traced else "The"
    if not np.isfinite(line.truth):
        return f"{traced} logits are not finite from the first token on."
    times = line.truth / max(line.floor, TINY)
    return f"{traced} logits are {times:.3g} times as far from the truth as honest {found.dtype} ones."


def _place(found: Diagnosis, first: Out) -> str:
    layer = "" if first.layer is None else f"layer {first.layer}, "
    kind = "wrong by itself" if found.replayed else "away from its expected value"
    said = f"{layer}token {first.token}: `{first.short}` is the first recorded tensor that is {kind}"
    said = said[0].upper() + said[1:]
    if found.gap:
        lies = "lies" if len(found.gap) == 1 else "lie"
        said += f" ({listed(found.gap)} {lies} between it and what was recorded, and may be it too)"
    if not np.isfinite(first.ratio):
        return f"{said}: it is not finite although its inputs are."
    times = f"{first.ratio:.3g} times that of honest {found.dtype} rounding"
    given = "given the inputs that were recorded, its" if found.replayed else "its"
    return f"{said}: {given} error is {times}."


def _without_logits(found: Diagnosis) -> str:
    if found.traced:
        return f"All {found.traced} recorded tensors follow from what they read, within honest {found.dtype} rounding."
    return f"Nothing could be examined: {found.problem or 'there are neither logits nor named tensors'}."


def what(found: Diagnosis) -> str:
    """The known mistake and the equation to compare with; or what would tell more."""
    if not found.astray:
        return f"{found.untested} tensors were not tested: record {listed(found.lacking)}." if found.lacking else ""
    line = formula(found.tensor, found.version)
    right = f"; compare with {found.tensor} = {line}" if line else ""
    if found.held and found.tensor == STATE:
        bits = SIGNIFICAND[found.held]
        names = "".join(f"Known mistake `{name}`: {FAULTS[name].summary}; " for name in found.cause)
        said = f"{names}its entries have {bits} significant bits, where float32 has {SIGNIFICAND['f32']}"
        return f"{said[0].upper()}{said[1:]}; keep it in float32{right}."
    if not found.replayed:
        return f"What it reads was as expected, where it was recorded{right}."
    if not found.cause:
        return f"None of the known mistakes explains it{_nearest(found)}{_looks_like(found)}{right}{_more(found)}."
    names = " + ".join(f"`{name}`" for name in found.cause)
    return f"Known mistake {names}: {summaries(found.cause)}; {_evidence(found)}{right}."


def _nearest(found: Diagnosis) -> str:
    """The best suspect, where it is clearly nearer than the truth."""
    line = found.lineup
    if line is None or line.best is None or line.nearer < HINT:
        return ""
    return f"; the nearest is `{_joined(line.best)}`, which comes {line.nearer:.3g} times nearer than the truth"


def _looks_like(found: Diagnosis) -> str:
    return f", but: {found.hints[0].rstrip('.')}" if found.hints else ""


def _more(found: Diagnosis) -> str:
    """What to record next."""
    if found.first is not None or found.traced:
        return f"; record {listed(found.lacking)} too" if found.lacking else ""
    return "; record named tensors: a trace tells which one is wrong"


def _evidence(found: Diagnosis) -> str:
    line, rival = found.lineup, found.next_best
    if found.by == "replay":
        return f"planted, it gives that tensor to within {found.fit:.2g} times honest rounding"
    assert line is not None
    floor = "the logits are explained down to the rounding floor"
    rest = floor if line.at_floor else f"the logits come {line.nearer:.3g} times nearer than the truth's"
    other = f"; the next best, `{rival[0]}`, is {rival[1]:.3g} times farther" if rival else ""
    return f"with it planted {rest}{other}"


def listed(names: tuple[str, ...]) -> str:
    """Some names, and how many more."""
    rest = f" and {len(names) - MOST} more" if len(names) > MOST else ""
    return ", ".join(names[:MOST]) + rest
