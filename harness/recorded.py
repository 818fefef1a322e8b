"""Records whole suites: everything that they and a diagnosis ask of a backend, kept with its answers."""

from collections import Counter
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.base import Session
from backends.errors import InputError
from backends.recorder import Recorder
from backends.registry import open_session, parse
from backends.tape import Tape
from harness import __version__, consult, kit
from harness.job import Job
from harness.judge import EVENT
from harness.ledger import Ledger, info_facts, now, plain
from harness.suite import Case, Suite
from harness.together import side_by_side
from harness.truth import measure_of, require, truth_of, truths, units
from reports.record import Record

if TYPE_CHECKING:
    from collections.abc import Callable

    from backends.weights import Weights


@dataclass(frozen=True)
class Made:
    """What a recording came to.

    Attributes:
        cases: how many were asked.
        outcomes: "unsupported" and "error" -> of how many cases.
        first: what the first of those came to, in words.
        calls: different ones.
        size: bytes of the folder.
    """

    cases: int
    outcomes: dict[str, int]
    first: str
    calls: int
    size: int


def record(job: Job, out: Path, progress: "Callable[[str], None]") -> Made:
    """Ask a backend what the job's suites ask, and what a diagnosis does; nothing is judged.

    Args:
        job: with one subject; without the suite speed.
        out: a new or empty folder, or an earlier recording, which is replaced when all is done.
        progress: told what is going on.

    Raises:
        InputError: the checkpoint cannot be opened, or the folder cannot be written.
        BackendError: the backend cannot be opened, or the reference broke.
    """
    from backends.checkpoint import open_checkpoint
    from backends.tokenizer import for_model

    kit.refuse_foreign(out)
    with open_checkpoint(job.model) as weights, ExitStack() as stack:
        blank = Record("", now())
        ledger = Ledger(job, blank, weights, for_model(weights.facts), progress, lambda _: None)
        truth = stack.enter_context(open_session(parse(job.reference), weights, ledger.threads))
        session = stack.enter_context(open_session(parse(job.subjects[0]), weights, ledger.threads))
        tape = Tape(stack.enter_context(kit.replacing(out)))
        facts = _facts(job, weights, session)
        cases = _suites(ledger, truth, Recorder(session, tape))
        if job.diagnosis and "replay" in truth.info.abilities:
            _diagnosis(ledger, truth, tape)
        if not tape.calls:
            raise InputError(f"nothing was recorded: {_first(ledger)}")
        size = tape.finish(facts)
    outcomes = Counter(seen.data["outcome"] for seen in ledger.observations if seen.kind == EVENT)
    return Made(cases, dict(outcomes), _first(ledger), len(tape.calls), size)


def _suites(ledger: Ledger, truth: Session, session: Session) -> int:
    """Every case, in the order of a run."""
    truths(ledger, truth)
    todo = list(units(ledger))
    side_by_side(session, [partial(_case, ledger, truth, found, case) for found, case in todo])
    return len(todo)


def _case(ledger: Ledger, truth: Session, found: Suite, case: Case, session: Session) -> None:
    name = ledger.job.subjects[0]
    ledger.progress(f"{found.name} {case.name}: {name}")
    with ledger.guarded((found.name, case.name, name)):
        context = replace(ledger.context(case), truth_session=truth)
        require(found, session)
        measure_of(found).collect(session, context, truth_of(ledger, truth, found, case))


def _diagnosis(ledger: Ledger, truth: Session, tape: Tape) -> None:
    """What an examination asks, on a session of its own as it has one."""
    name = ledger.job.subjects[0]
    ledger.progress(f"what a diagnosis asks: {name}")
    opened = open_session(parse(name), ledger.weights, ledger.threads)
    with Recorder(opened, tape) as session, np.errstate(all="ignore"):
        consult.clinic(ledger, truth).ask(session)


def _facts(job: Job, weights: "Weights", session: Session) -> dict[str, Any]:
    """What the recording is of."""
    from backends.fingerprint import fingerprint

    tokenizer = session.tokenizer
    facts: dict[str, Any] = {"name": tokenizer.name} if tokenizer else {}
    if tokenizer is not None and hasattr(tokenizer, "vocab_size"):
        facts["vocab_size"] = int(tokenizer.vocab_size)
    return {
        "created": now(),
        "program": f"rwkv-harness {__version__}",
        "subject": job.subjects[0],
        "suites": list(job.suites),
        "model": plain(asdict(weights.facts)),
        "fingerprint": fingerprint(weights),
        "info": info_facts(session.info),
        "tokenizer": facts or None,
        "sampling": session.sampling.semantics if session.sampling else None,
    }


def _first(ledger: Ledger) -> str:
    seen = next((seen for seen in ledger.observations if seen.kind == EVENT), None)
    return f"{seen.suite}, {seen.case}: {seen.data['detail']}" if seen else ""
