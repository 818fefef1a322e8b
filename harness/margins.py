"""How clearly every planted fault is seen on a checkpoint: `python -m harness.margins [--model M] [--dtype D]`.

For each fault and number format: the first tensor that replay finds out of its honest band, how far it is out, and how
far the logits alone are from the truth, in units of honest rounding. This table is what shapes the designed
checkpoint; whether a profile catches a fault is the business of `python -m harness power`.
"""
# ruff: noqa: T201 - a program that prints

import argparse
import math
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from backends import checkpoint, fault_list
from backends.base import Array, Ids, Session, Want
from backends.errors import HarnessError
from backends.fault_list import BATCH, SAMPLER, TOKENIZER, Entry
from backends.registry import open_session, parse
from backends.tokenizer import for_model
from harness import replay
from harness.formats import held_in
from harness.ledger import encode
from harness.suite import prompts

if TYPE_CHECKING:
    from backends.weights import Weights

TOKENS, EDGE = 80, 40
"""Tokens that are fed, and where the first of two calls ends."""

RUNS, FRESH = 16, 20
"""Honest runs that make the band, and others that must stay inside."""

Run = tuple[dict[str, replay.Error], float]
"""Contributed errors by tensor, and the error of the logits (RMS)."""


@dataclass(frozen=True)
class Margin:
    """How clearly something is seen.

    Attributes:
        entry: the fault or equivalent.
        first: the first tensor out of its band; None where all are inside.
        farthest: the largest contributed error of any tensor, in units of its band.
        logits: error of the logits in units of the largest honest one.
        held: the low-precision format that holds every entry of the exported WKV state, where there is one: a state
            held in the format of the activations errs by no more than they do, but tells itself by its entries.
    """

    entry: Entry
    first: replay.Out | None
    farthest: float
    logits: float
    held: str = ""

    @property
    def seen(self) -> bool:
        """Whether replay or the entries of the state tell."""
        return self.first is not None or self.held != ""

    @property
    def named(self) -> bool:
        """Whether the first tensor out is the one that the fault spoils."""
        return self.seen and (self.first.short if self.first else "att.state") == self.entry.tensor

    @property
    def by_logits(self) -> bool:
        """Whether the logits alone show it."""
        return not self.logits <= replay.LIMIT


class Bench:
    """A checkpoint, its truth and its honest band in one number format.

    Args:
        weights: the checkpoint, opened.
        dtype: "f32", "bf16" or "f16".
        runs: honest runs that make the band.
    """

    def __init__(self, weights: "Weights", dtype: str, runs: int = RUNS) -> None:
        self.weights, self.dtype = weights, dtype
        facts = weights.facts
        self.tokens = encode(prompts()["long"].text, for_model(facts), facts.vocab_size)[:TOKENS]
        self.truth = open_session(parse("reference-f64"), weights, threads=1)
        self.logits = _fed(self.truth, self.tokens[None])[0]["head"][0]
        honest = self.honest(0, runs)
        self.band = replay.band(errors for errors, _ in honest)
        self.floor = max(logits for _, logits in honest)

    def honest(self, seed: int, runs: int) -> list[Run]:
        """Honest runs, as rows of one batch."""
        return self._measured(f"honest:{seed}", np.tile(self.tokens, (runs, 1)))

    def margin(self, entry: Entry) -> Margin:
        """How clearly a fault is seen; one that needs several rows is looked at in the last of two."""
        rows = [np.roll(self.tokens, 1), self.tokens] if entry.kind == BATCH else [self.tokens]
        errors, logits = self._measured(f"fault:{entry.name}", np.stack(rows))[-1]
        found = replay.ratios(errors, self.band)
        first = next(iter(replay.out_of_band(list(errors), found)), None)
        return Margin(entry, first, _top(found), logits / self.floor, self._held)

    def alarms(self, runs: int = FRESH) -> list[float]:
        """The largest ratio of each of several fresh honest runs."""
        return [_top(replay.ratios(errors, self.band)) for errors, _ in self.honest(1, runs)]

    def _measured(self, subject: str, batch: Ids) -> list[Run]:
        with open_session(parse(f"{subject}@{self.dtype}"), self.weights, threads=1) as session:
            trace, states = _fed(session, batch)
            self._held = next(filter(None, (held_in(session.export_state(state).wkv) for state in states)), "")
        expected = self.truth.replay(trace, batch)
        return [
            (replay.errors(_row(trace, i), _row(expected, i)), _rms(trace["head"][i], self.logits))
            for i in range(len(batch))
        ]


def measurable(version: str = "7") -> list[Entry]:
    """Faults and equivalents that act on numbers; those of tokenizer and sampler leave every tensor as it is."""
    return [row for row in fault_list.applying(version).values() if row.kind not in (TOKENIZER, SAMPLER)]


def _fed(session: Session, batch: Ids) -> tuple[dict[str, Array], tuple[Any, Any]]:
    """Every tensor (B, T, ...) of a batch that is fed in two calls, and the states behind both."""
    want = Want(logits="all", state=True, trace=("*",))
    one = session.forward(batch[:, :EDGE], want=want)
    two = session.forward(batch[:, EDGE:], one.state, want)
    trace = {name: np.concatenate([value, two.trace[name]], axis=1) for name, value in one.trace.items()}
    return trace, (one.state, two.state)


def _row(tensors: Mapping[str, Array], number: int) -> dict[str, Array]:
    return {name: value[number] for name, value in tensors.items()}


def _rms(got: Array, want: Array) -> float:
    with np.errstate(all="ignore"):
        rms = float(np.sqrt(np.square(got.astype(np.float64) - want).mean()))
    return rms if math.isfinite(rms) else math.inf


def _top(ratios: Mapping[str, Array]) -> float:
    return max(float(ratio.max()) for ratio in ratios.values())


def lines(margins: Sequence[Margin], alarms: Sequence[float], dtype: str) -> Iterator[str]:
    """The table of one number format, the least clear first, and what it adds up to."""
    yield f"{'fault':<22} {'spoils':<11} {'first out':<11} {'token':>5} {'there':>9} {'farthest':>9} {'logits':>9}"
    for margin in sorted(margins, key=lambda m: (m.entry.equivalent, m.farthest)):
        first = margin.first
        place = (first.short, str(first.token), f"{first.worst:.3g}") if first else (margin.held or "-", "", "")
        yield (
            f"{margin.entry.name:<22} {margin.entry.tensor:<11} {place[0]:<11} {place[1]:>5} {place[2]:>9} "
            f"{margin.farthest:>9.3g} {margin.logits:>9.3g}{'  equivalent' if margin.entry.equivalent else ''}"
        )
    faults = [margin for margin in margins if not margin.entry.equivalent]
    raised = [margin for margin in margins if margin.entry.equivalent and margin.seen]
    yield (
        f"{dtype}: {sum(m.seen for m in faults)} of {len(faults)} faults seen by replay at "
        f"{replay.LIMIT:g} x the honest band or by the state's entries, {sum(m.named for m in faults)} named; "
        f"{sum(m.by_logits for m in faults)} seen by logits alone"
    )
    yield (
        f"{dtype}: {len(raised)} alarms on {len(margins) - len(faults)} equivalents, "
        f"{sum(not top <= replay.LIMIT for top in alarms)} on {len(alarms)} fresh honest runs, "
        f"the farthest at {max(alarms):.2f} x"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the tables; 0 when every fault is seen and nothing honest raises an alarm, else 1."""
    parser = argparse.ArgumentParser("python -m harness.margins", description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="conformance", help="a checkpoint (default: conformance)")
    parser.add_argument(
        "--dtype", action="append", choices=("f32", "bf16", "f16"), help="repeatable; default: f32, bf16"
    )
    asked = parser.parse_args(arguments)
    sound = True
    with checkpoint.open_checkpoint(asked.model) as weights:
        for dtype in asked.dtype or ("f32", "bf16"):
            started = time.perf_counter()
            bench = Bench(weights, dtype)
            margins, alarms = [bench.margin(entry) for entry in measurable(weights.facts.version)], bench.alarms()
            print(*lines(margins, alarms, dtype), sep="\n")
            print(f"{dtype}: {time.perf_counter() - started:.0f} s\n")
            sound &= all(m.seen != m.entry.equivalent for m in margins) and max(alarms) <= replay.LIMIT
    return int(not sound)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
