"""Trials: many subjects on one checkpoint through the stages of any run, spread over processes.

A trial is a run of `validate` with one candidate and the selection of cases in power.toml. The truth is computed
once in each process, the honest runs of a number format once for all of them.
"""

import os
import signal
import threading
import time
import tomllib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache, partial
from importlib.resources import files
from multiprocessing import active_children, get_context, parent_process
from typing import Any, TypeVar

import numpy as np

from backends.base import Output, Session, Want
from backends.errors import BackendError, HarnessError
from backends.fault_list import BATCH, CARRY, EQUATION
from backends.registry import open_session, parse
from harness import suite
from harness.candidates import candidate
from harness.honest import bands, envelopes
from harness.job import REFERENCE, Job
from harness.ledger import Ledger, Spreads, info_facts, plain
from harness.replay import Out
from harness.suite import Suite
from harness.truth import measure_of, truth_of, units
from reports.record import Measurement, Record, Subject

KINDS = (EQUATION, BATCH, CARRY)
"""Kinds of faults that every suite of the selection is run for, unless it names others."""

KEPT = ("event", "layers")
"""Observations that a trial hands back; the rest are for reports."""

T = TypeVar("T")
A = TypeVar("A")


@cache
def selection(kind: str = "") -> tuple[Suite, ...]:
    """The suites, with a few of their cases, that subjects are put to.

    Args:
        kind: of a planted fault; empty selects everything.

    Raises:
        HarnessError: power.toml names a case that the suite has not.
    """
    rows = tomllib.loads((files("harness") / "power.toml").read_text(encoding="utf-8"))["select"]
    return tuple(_selected(row) for row in rows if not kind or kind in row.get("kinds", KINDS))


def _selected(row: dict[str, Any]) -> Suite:
    whole = suite.load(row["suite"])
    known = {case.name: case for case in whole.cases}
    missing = [name for name in row["cases"] if name not in known]
    if missing:
        raise HarnessError(f"power.toml: suite {whole.name} has no case {', '.join(missing)}.")
    cases = (known[name] for name in row["cases"])
    return replace(whole, cases=tuple(replace(c, options={**c.options, **row.get("options", {})}) for c in cases))


@dataclass(frozen=True)
class Trial:
    """What one subject came to.

    Attributes:
        subject: its id.
        record: its numbers and those of the honest runs, not judged.
        named: short names of the tensors whose finding names the fault: the spoiled one, and the first that reads it.
        seconds: that it took.
    """

    subject: str
    record: Record
    named: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Honest:
    """What honest runs of a number format came to; goes from process to process.

    Attributes:
        spreads: of every number.
        subjects, measurements: as a record keeps them.
        bands: as a ledger keeps them.
    """

    spreads: Spreads
    subjects: tuple[Subject, ...]
    measurements: tuple[Measurement, ...]
    bands: dict[tuple[str, str, str, tuple[str, ...]], Any]


class Rig:
    """A checkpoint with its truth, on which trials are made. A context manager.

    Args:
        model: any checkpoint.
        threads: of every session; 0 lets the size of the model decide.

    Raises:
        InputError: the checkpoint cannot be opened.
        BackendError: the reference cannot serve it.
    """

    def __init__(self, model: str, threads: int = 0) -> None:
        from backends.checkpoint import open_checkpoint
        from backends.tokenizer import for_model

        self.stack = ExitStack()
        weights = self.stack.enter_context(open_checkpoint(model))
        record = Record(id="", created="", model=plain(asdict(weights.facts)))
        job = Job(model, (), suites=tuple(found.name for found in selection()), threads=threads)
        self.ledger = Ledger(job, record, weights, for_model(weights.facts), _quiet, _quiet)
        self.truth = self.stack.enter_context(open_session(parse(REFERENCE), weights, self.ledger.threads))
        self.readers: dict[str, tuple[str, ...]] = {}

    def __enter__(self) -> "Rig":
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def trial(self, honest: Honest, subject: str, kind: str = "", tensor: str = "") -> Trial:
        """Put one subject to the selection of a kind.

        Args:
            honest: runs in the subject's number format.
            subject: as `--backend` takes it.
            kind: of the planted fault; empty for equivalents and honest runs.
            tensor: short name of the tensor that it spoils.
        """
        began = time.perf_counter()
        ledger = self._sub(subject, selection(kind))
        ledger.bands |= honest.bands
        candidate(ledger, self.stack, subject, self.truth, honest.spreads)
        found = ledger.snapshot("complete")
        record = replace(
            found,
            subjects=(*found.subjects, *(s for s in honest.subjects if s.id not in ledger.subjects)),
            measurements=(*found.measurements, *honest.measurements),
            observations=tuple(o for o in found.observations if o.kind in KEPT and o.subject == subject),
        )
        return Trial(subject, record, self._naming(tensor), time.perf_counter() - began)

    def honest(self, dtype: str) -> Honest:
        """The honest runs of a number format on everything that is selected."""
        ledger = self._sub(parse(f"honest@{dtype}").id, selection())
        spreads = envelopes(ledger, self.truth)
        for found, case in units(ledger):
            if hasattr(measure_of(found), "bands"):
                context = replace(ledger.context(case), truth_session=self.truth)
                names = truth_of(ledger, self.truth, found, case)["trace"]
                bands(ledger, found, context, dtype, tuple(names))
        own = {key: value for key, value in ledger.bands.items() if key[2] == dtype}
        return Honest(spreads, tuple(ledger.subjects.values()), tuple(ledger.measurements), own)

    def _sub(self, subject: str, plan: tuple[Suite, ...]) -> Ledger:
        """An empty ledger that shares truths and bands."""
        record = replace(self.ledger.record, suites=tuple(found.facts() for found in plan))
        job = replace(self.ledger.job, subjects=(subject,))
        reference = Subject(REFERENCE, "reference", info_facts(self.truth.info))
        return replace(
            self.ledger,
            job=job,
            record=record,
            plan=plan,
            subjects={REFERENCE: reference},
            measurements=[],
            observations=[],
        )

    def _naming(self, tensor: str) -> tuple[str, ...]:
        """The tensor's short name, and those of the first that read it, block by block."""
        truth = self.ledger.truths.get(("layers", "long"))
        if not tensor or truth is None:
            return ()
        if tensor not in self.readers:
            names = list(truth["trace"])
            spoiled = [name for name in names if short(name) == tensor]
            readers = [self._first_reader(name, names) for name in spoiled]
            self.readers[tensor] = tuple(dict.fromkeys([tensor, *filter(None, readers)]))
        return self.readers[tensor]

    def _first_reader(self, name: str, names: Sequence[str]) -> str:
        """Short name of the first tensor whose replay lacks `name` when all the others are recorded."""
        gaps = self.truth.gaps([other for other in names if other != name])
        return next((short(reader) for reader, gap in gaps.items() if name in (*gap.spanned, *gap.lacking)), "")

    def effect(self, fault: str) -> float:
        """How far a fault moves logits and state in float64, relative to their largest entry; 0 is no effect.

        Fed as two rows in two calls, so that mistakes at the edge of a call or between rows show too.
        """
        case = next(case for found in selection() for case in found.cases if found.name == "layers")
        context = self.ledger.context(case)
        tokens = context.tokens[: case.options["tokens"]]
        batch = np.stack([tokens, np.roll(tokens, 1)])
        with open_session(parse(f"fault:{fault}@f64"), self.ledger.weights, self.ledger.threads) as session:
            return _distance(_fed(session, batch), _fed(self.truth, batch))


def _quiet(_: object) -> None:
    """Nobody is told: the parent process tells."""


def short(name: str) -> str:
    """A tensor's name without its block."""
    return Out(name, 0, 0.0, 0.0).short


def _fed(session: Session, batch: np.ndarray[Any, Any]) -> list[np.ndarray[Any, Any]]:
    """Logits and state of a batch in two calls."""
    want = Want(logits="all", state=True)
    out, parts = Output(), []
    for part in np.array_split(batch, 2, axis=1):
        out = session.forward(part, out.state, want)
        assert out.logits is not None
        parts.append(out.logits)
    return [np.concatenate(parts, axis=1), *session.export_state(out.state).parts().values()]


def _distance(got: Sequence[np.ndarray[Any, Any]], want: Sequence[np.ndarray[Any, Any]]) -> float:
    """Largest difference relative to the largest entry of each array; infinity where something is not finite."""
    with np.errstate(all="ignore"):
        each = [float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-300)) for a, b in zip(got, want, strict=True)]
    return max(value if np.isfinite(value) else float("inf") for value in each)


Call = Callable[[Callable[["Rig", A], T], Iterable[A]], Iterator[T]]
"""Applies a function of a rig and one argument to many arguments, in order."""


@contextmanager
def crew(model: str, processes: int, threads: int = 0) -> Iterator[Call[Any, Any]]:
    """Processes that each hold a rig; with one, this process itself.

    Args:
        model: any checkpoint.
        processes: how many.
        threads: of every session.

    Yields:
        A function that works through arguments and gives the results back in their order.

    Raises:
        BackendError: a process died.
    """
    if processes == 1:
        with Rig(model, threads) as rig:
            yield lambda work, arguments: (work(rig, argument) for argument in arguments)
        return
    others = set(active_children())
    pool = ProcessPoolExecutor(processes, get_context("spawn"), _begin)
    try:
        yield lambda work, arguments: pool.map(partial(_in_process, model, threads, work), arguments)
    except BrokenProcessPool:
        raise BackendError("a process died, perhaps for lack of memory; --processes 1 needs the least.") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in set(active_children()) - others:
            child.terminate()


def _begin() -> None:
    """What a process of the crew does first: leave interrupts to its parent, and end when that one ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it and ends its children
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=_end_with, args=(parent,), daemon=True).start()


def _end_with(parent: Any) -> None:
    parent.join()  # returns too when it was killed
    os._exit(1)


@cache
def _rig(model: str, threads: int) -> Rig:
    """The rig of this process, opened when first needed and held until the process ends."""
    return Rig(model, threads)


def _in_process(model: str, threads: int, work: Callable[[Rig, A], T], argument: A) -> T:
    return work(_rig(model, threads), argument)
