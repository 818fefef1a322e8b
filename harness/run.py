"""run(job) -> Record: the one entry, for the command line, nox, a service or a cluster.

Order: the truth on every case, honest runs for every number format, then one candidate after the other.
Each case of each subject is a unit; what a unit found is kept at once, so that a run that dies keeps what it
measured and a later one goes on from there. Speed comes last, for those that passed logits.
"""

import hashlib
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from backends.base import Session
from backends.registry import open_session, parse
from backends.tokenizer import none_because
from harness import __version__, consult, facts, race, suite, use
from harness.candidates import candidate
from harness.honest import envelopes
from harness.job import Job
from harness.judge import EVENT, again, load
from harness.ledger import Ledger, info_facts, now, plain
from harness.shelf import shelf
from harness.truth import SPEED, reference_evidence, truths
from reports.record import Record, Subject
from reports.store import new_id

if TYPE_CHECKING:
    from backends.weights import Weights

Progress = Callable[[str], None]
Keep = Callable[[Record], None]


def run(
    job: Job,
    progress: Progress,
    keep: Keep,
    earlier: Record | None = None,
    command: str = "",
    shelf_in: Path | None = None,
) -> Record:
    """Measure everything a job asks for and judge it.

    Args:
        job: what to do.
        progress: told what is going on, one line at a time.
        keep: given the record now and then, and whenever the run ends, however it ends.
        earlier: an unfinished record of the same job; its numbers are taken over.
        command: what was typed, for the record.
        shelf_in: folder that keeps honest runs between runs; None keeps none.

    Returns:
        The judged record, complete.

    Raises:
        InputError: the checkpoint cannot be opened.
        BackendError: the reference cannot be opened or broke.
        KeyboardInterrupt: after what was measured has been kept.
    """
    from backends.checkpoint import open_checkpoint

    profile = load(job.profile)
    progress(f"opening {job.model}")
    with open_checkpoint(job.model) as weights:
        ledger = _start(job, weights, progress, keep, earlier, command)
        ledger.shelf = shelf(shelf_in, weights) if shelf_in else None
        status = "crashed"
        try:
            _measure_all(ledger)
            status = "complete"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            record = again(ledger.snapshot(status), profile)
            keep(record)
    return record


def job_key(job: Job) -> str:
    """Key of a job on this state of the checkpoint's files, under this version and state of the program."""
    return job.key(f"{__version__} {code_hash()} {_stamp(Path(job.model))}")


@cache
def code_hash() -> str:
    """Hash of the program's own files: a commit does not tell what has been changed since."""
    found = hashlib.sha256()
    for room in ("harness", "backends"):
        for file in sorted((Path(__file__).parents[1] / room).rglob("*")):
            if file.suffix in (".py", ".toml", ".c", ".h"):
                found.update(file.name.encode() + file.read_bytes())
    return found.hexdigest()


def _stamp(model: Path) -> list[tuple[str, int, int]]:
    """Size and time of change of a checkpoint's files; nothing for what is no path."""
    files = sorted(model.iterdir()) if model.is_dir() else [model]
    return [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]


def _start(
    job: Job, weights: "Weights", progress: Progress, keep: Keep, earlier: Record | None, command: str
) -> Ledger:
    from backends.tokenizer import for_model

    created, plan = now(), race.gate(job)
    record = Record(
        id=new_id(),
        created=created,
        command=command,
        job=job.plain(),
        job_key=job_key(job),
        model=plain(asdict(weights.facts)),
        environment=facts.environment(),
        suites=tuple(found.facts() for found in plan or map(suite.load, job.suites)),
    )
    ledger = Ledger(job, record, weights, for_model(weights.facts), progress, keep, plan=plan)
    ledger.notes += _model_notes(weights)
    if earlier is not None:
        ledger.record = replace(record, id=earlier.id, created=earlier.created)
        ledger.subjects |= {s.id: replace(s, error="") for s in earlier.subjects}
        ledger.measurements += [m for m in earlier.measurements if m.suite != SPEED]
        afresh = (SPEED, use.SUITE)
        ledger.observations += [o for o in earlier.observations if o.suite not in afresh and o.kind != EVENT]
        ledger.notes.append(f"resumed {created}: {len(ledger.done())} units were already measured")
    return ledger


def _model_notes(weights: "Weights") -> list[str]:
    if weights.facts.tokenizer:
        return []
    return [f"{none_because(weights.facts)}: prompts are fed as their bytes, taken modulo its size"]


def _measure_all(ledger: Ledger) -> None:
    with ExitStack() as stack:
        reference = parse(ledger.job.reference)
        ledger.progress(f"opening {reference.id}")
        truth_session = stack.enter_context(open_session(reference, ledger.weights, ledger.threads))
        ledger.subjects[reference.id] = Subject(reference.id, "reference", info_facts(truth_session.info))
        truths(ledger, truth_session)
        spreads = envelopes(ledger, truth_session)
        reference_evidence(ledger, truth_session)
        sessions: dict[str, Session] = {}
        for name in ledger.job.subjects:
            session = candidate(ledger, stack, name, truth_session, spreads)
            if session is not None and SPEED in ledger.job.suites:
                sessions[name] = session
        if ledger.job.diagnosis:
            consult.after(ledger, truth_session)
        if ledger.job.use:
            use.show(ledger)
        if SPEED in ledger.job.suites:
            race.speed(ledger, truth_session, sessions, spreads)
