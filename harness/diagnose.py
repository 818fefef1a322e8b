"""Finds out what is wrong with a candidate: which tensor, where, and which known mistake explains it.

From a trace: replay names the first tensor that its own equation does not explain, and the same replay with a
known mistake planted tells which one does. From logits alone: every known mistake is run on the same tokens.
"""

from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np

from backends.base import Array, Ids, Session, State, Tokenizer, Want
from backends.errors import HarnessError, Unsupported
from backends.fault_list import CARRY, EQUATION, FAULTS
from harness import replay
from harness.diagnosis import STATE, Diagnosis
from harness.formats import held_in
from harness.measures import layers
from harness.measures.base import Context, Sample
from harness.replay import LIMIT, Out
from harness.suite import Case
from harness.suspects import Feed, Open, Suspects

TOKENS, EDGE = 80, 40
"""Tokens of the prompt that are fed, and how many of them in the first of two calls; as in suite `layers`."""

PROMPT = "long"

CARRIED = {"att_shift": "att.ln1", "wkv": STATE, "ffn_shift": "ffn.ln2"}
"""Component of the agreed state -> the recorded tensor of each block that holds it."""

RUNS = 16
"""Honest runs that bands are taken from."""


@dataclass
class Clinic:
    """A checkpoint, its truth and everything that is computed once for all candidates.

    Attributes:
        opened: opens honest runs and faults on the checkpoint.
        truth: the reference's session.
        tokens: (T,), the prompt.
        edge: tokens of the first of two calls; 0 for one.
        runs: honest runs that bands are taken from.
        tokenizer: for showing tokens.
    """

    opened: Open
    truth: Session
    tokens: Ids
    edge: int = EDGE
    runs: int = RUNS
    tokenizer: Tokenizer | None = None
    _bands: dict[tuple[str, tuple[str, ...]], layers.Bands] = field(default_factory=dict)
    _suspects: dict[tuple[int, int], Suspects] = field(default_factory=dict)

    def examine(
        self, subject: Session, *, faults: bool = True, thorough: bool = False, recorded: bool = False
    ) -> Diagnosis:
        """Find out what is wrong with a candidate.

        Args:
            subject: its session.
            faults: run the known mistakes on the prompt where logits are to be explained; a run of the model each.
            thorough: also combine the nearest mistakes in pairs.
            recorded: it answers whole what was fed in two calls.
        """
        found = Diagnosis(subject.info.dtype, version=self.truth.info.model.version)
        if "trace" in subject.info.abilities:
            found = self._by_trace(subject, found)
        found = self._by_logits(subject, found, thorough, recorded) if faults else found
        return self._by_format(subject, found) if "state" in subject.info.abilities else found

    def ask(self, subject: Session) -> None:
        """Ask a subject everything that `examine` asks it and look at no answer: a recorder listens."""
        able = subject.info.abilities
        for asked, ability in ((self._trace_of, "trace"), (self._logits_of, ""), (self._wkv_of, "state")):
            if not ability or ability in able:
                with suppress(HarnessError):  # it is part of the recording
                    asked(subject)

    def _trace_of(self, subject: Session) -> Sample:
        return layers.collect(subject, self._context(subject.info.dtype), self._traced)[0]

    def _logits_of(self, subject: Session, recorded: bool = False) -> tuple[Suspects, Array]:
        """Those who are run on the same tokens, and the subject's logits."""
        rows = 2 if "batch" in subject.info.abilities else 1
        edge = self.edge if recorded or "state" in subject.info.abilities else 0
        batch = np.stack([np.roll(self.tokens, rows - 1 - row) for row in range(rows)])  # ours is the last row
        feed = Feed(batch, edge)
        known = self._suspects.setdefault((rows, edge), Suspects(self.opened, self.truth, feed))
        return known, Feed(batch, 0 if recorded else edge).logits(subject)

    def _wkv_of(self, subject: Session) -> Array:
        handle = subject.forward(self.tokens, want=Want(logits="none", state=True)).state
        return subject.export_state(handle).wkv

    def _by_format(self, subject: Session, found: Diagnosis) -> Diagnosis:
        """A WKV state on the grid of a low-precision format says so itself, where nothing else is wrong before it."""
        try:
            held = held_in(self._wkv_of(subject))
        except HarnessError:  # a recording answers only what was asked then
            return found
        own = found.first is None or found.first.short == STATE
        if not held or not own:
            return replace(found, held=held)
        cause = found.cause or tuple(name for name in (f"state-{held}",) if name in FAULTS)
        return replace(found, held=held, cause=cause, by=found.by or "format")

    def _by_logits(self, subject: Session, found: Diagnosis, thorough: bool, recorded: bool) -> Diagnosis:
        try:
            known, logits = self._logits_of(subject, recorded)
        except HarnessError as error:
            return replace(found, problem=found.problem or str(error))
        line = known.line_up(logits, found.dtype, thorough=thorough, cause=found.cause)
        found = replace(found, lineup=line)
        if line.best and line.explained and _agree(found, line.best.names, line.at_floor):
            return replace(found, cause=line.best.names, by="logits", fit=None)
        return found

    def _by_trace(self, subject: Session, found: Diagnosis) -> Diagnosis:
        context = self._context(subject.info.dtype)
        try:
            got = self._trace_of(subject)
            told = dict(layers.observe(got, self._traced, context))["layers"]
        except Unsupported as error:
            return replace(found, problem=str(error))
        untested = len(told["untested"])
        found = replace(
            found,
            hints=tuple(told["hints"]),
            lacking=tuple(told["lacking"]),
            traced=len(told["tensors"]) - untested,
            untested=untested,
        )
        return self._named(got, context, told["first"], found) if told["first"] else found

    def _named(self, got: Sample, context: Context, first: Mapping[str, Any], found: Diagnosis) -> Diagnosis:
        """A diagnosis that knows the first wrong tensor, and the mistake that explains it if there is one."""
        out = Out(first["tensor"], first["token"], first["ratio"], first["worst"])
        found = replace(found, first=out, gap=tuple(first["spanned"]))
        fits = self._replayed(got, context, found)
        best = min(fits, key=fits.__getitem__, default="")
        return replace(found, cause=(best,), by="replay", fit=fits[best]) if best and fits[best] <= LIMIT else found

    @cached_property
    def _traced(self) -> Sample:
        return layers.collect(self.truth, self._context("f32"), None)[0]

    def _context(self, dtype: str) -> Context:
        case = Case("diagnosis", PROMPT, {"tokens": len(self.tokens), "edge": self.edge or len(self.tokens)})
        context = Context(case, self.tokens, self.truth.info.model, self.tokenizer, truth_session=self.truth)
        return replace(context, bands=lambda names: self._band(context, "f32" if dtype == "f64" else dtype, names))

    def _band(self, context: Context, dtype: str, names: tuple[str, ...]) -> layers.Bands:
        if (dtype, names) not in self._bands:
            with closing(self.opened(f"honest:0@{dtype}")) as session:
                self._bands[dtype, names] = layers.bands(session, context, self._traced, names, self.runs)
        return self._bands[dtype, names]

    def _replayed(self, got: Sample, context: Context, found: Diagnosis) -> dict[str, float]:
        """Known mistakes in the first wrong tensor -> error that is left with the mistake planted, in honest bands."""
        assert found.first is not None
        assert context.bands is not None
        tensor, trace = found.first.tensor, got["trace"]
        spots = {found.first.short, *(name.split(".", 2)[-1] for name in found.gap)}
        recorded = {name: value[None] for name, value in trace.items()}
        honest = {tensor: context.bands(tuple(trace)).contributed[tensor]}
        fits = {}
        at_edge = found.first.token == self.edge
        for name, entry in FAULTS.items():
            want = None
            if entry.tensor in spots and entry.kind == EQUATION:
                want = self._planted(name, recorded, tensor)
            elif entry.tensor in spots and entry.kind == CARRY and at_edge:
                want = self._handed_over(name, trace, tensor)
            if want is not None:
                left = replay.ratios({tensor: replay.error(*_where_finite(trace[tensor], want))}, honest)[tensor]
                fits[name] = float(left.max())
        return fits

    def _planted(self, fault: str, recorded: Mapping[str, Array], tensor: str) -> Array | None:
        """What a mistake makes of the recorded inputs; None where it cannot be replayed.

        The tensor is replayed in all layers, for some mistakes lie between them.
        """
        alike = [name for name in recorded if name.partition(".att.")[2] == tensor.partition(".att.")[2]]
        try:
            with closing(self.opened(f"fault:{fault}@f32")) as session:
                planted: Array = session.replay(recorded, self.tokens, only={*alike, tensor})[tensor][0]
        except (HarnessError, LookupError):
            return None
        return planted

    def _handed_over(self, fault: str, trace: Mapping[str, Array], tensor: str) -> Array | None:
        """What a mistake between the two calls makes of a tensor; None where the recording does not tell."""
        n_layer = self.truth.info.model.n_layer
        carried = {}
        for part, name in CARRIED.items():
            rows = [trace.get(f"blocks.{layer}.{name}") for layer in range(n_layer)]
            if any(row is None for row in rows):
                return None
            carried[part] = np.stack([row[None, self.edge - 1] for row in rows if row is not None])
        later = {name: value[None, self.edge :] for name, value in trace.items()}
        try:
            with closing(self.opened(f"fault:{fault}@f32")) as session:
                before = session.import_state(State(carried["att_shift"], carried["wkv"], carried["ffn_shift"]))
                planted = session.replay(later, self.tokens[self.edge :], before, only={tensor})[tensor][0]
        except (HarnessError, LookupError):
            return None
        return np.concatenate([trace[tensor][: self.edge], planted])


def _agree(found: Diagnosis, names: tuple[str, ...], at_floor: bool) -> bool:
    """Whether a cause by logits goes with what replay found, which is the sharper one where it can see a mistake."""
    if found.first is None or found.cause or at_floor:
        return set(found.cause) <= set(names)
    return any(FAULTS[name].tensor == found.first.short and FAULTS[name].kind != EQUATION for name in names)


def _where_finite(got: Array, want: Array) -> tuple[Array, Array]:
    """Both with zeros where neither is finite: a mistake that divides by zero is met again where it does so."""
    with np.errstate(all="ignore"):
        broken = ~np.isfinite(got) & ~np.isfinite(want)
    return np.where(broken, 0, got), np.where(broken, 0, want)
