"""run(job) -> Record: the one entry, for the command line, nox, a service or a cluster.

Order: the truth on every case, honest runs for every number format, then one candidate after the other.
Each case of each subject is a unit; what a unit found is kept at once, so that a run that dies keeps what it
measured and a later one goes on from there. Speed comes last, for those that passed logits.
"""

import importlib
import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from backends.base import Ids, Info, Session, Tokenizer
from backends.errors import BackendError, HarnessError, InputError, Unsupported
from backends.registry import open_session, parse
from harness import __version__, bench, envelope, facts, suite
from harness.job import Job
from harness.judge import EVENT, again, load
from harness.measures.base import Context, Measure, Sample, Spread
from harness.suite import Case, Suite
from reports.record import Measurement, Observation, Outcome, Record, Subject

if TYPE_CHECKING:
    from backends.weights import Weights

Progress = Callable[[str], None]
Keep = Callable[[Record], None]
Unit = tuple[str, str, str]
"""Suite, case, subject."""

KEEP_SECONDS = 2.0  # a record is written at most this often while a run goes on
SPEED = "speed"


@dataclass
class Run:
    """One run under way: what it has and what it found so far."""

    job: Job
    record: Record
    weights: "Weights"
    tokenizer: Tokenizer | None
    progress: Progress
    keep: Keep
    subjects: dict[str, Subject] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    truths: dict[tuple[str, str], Sample] = field(default_factory=dict)
    kept_at: float = 0.0

    def snapshot(self, status: str = "running") -> Record:
        """The record as of now."""
        return replace(
            self.record,
            status=status,
            finished="" if status == "running" else _now(),
            subjects=tuple(self.subjects.values()),
            measurements=tuple(self.measurements),
            observations=tuple(self.observations),
            notes=tuple(self.notes),
        )

    def done(self) -> set[Unit]:
        """Units that have numbers."""
        return {(m.suite, m.case, m.subject) for m in self.measurements}

    def save(self) -> None:
        """Keep what there is, unless that was done a moment ago."""
        if time.monotonic() - self.kept_at > KEEP_SECONDS:
            self.keep(self.snapshot())
            self.kept_at = time.monotonic()


def run(job: Job, progress: Progress, keep: Keep, earlier: Record | None = None, command: str = "") -> Record:
    """Measure everything a job asks for and judge it.

    Args:
        job: what to do.
        progress: told what is going on, one line at a time.
        keep: given the record now and then, and whenever the run ends, however it ends.
        earlier: an unfinished record of the same job; its numbers are taken over.
        command: what was typed, for the record.

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
        state = _start(job, weights, progress, keep, earlier, command)
        status = "crashed"
        try:
            _measure_all(state)
            status = "complete"
        except KeyboardInterrupt:
            status = "interrupted"
            raise
        finally:
            record = again(state.snapshot(status), profile)
            keep(record)
    return record


def job_key(job: Job) -> str:
    """Key of a job under this version of the program and this state of its code."""
    commit = facts.environment().get("commit", "")
    return job.key(f"{__version__} {commit}")


def _start(job: Job, weights: "Weights", progress: Progress, keep: Keep, earlier: Record | None, command: str) -> Run:
    from backends.tokenizer import for_model

    created = _now()
    record = Record(
        id=f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}"[:-3] + f"-{job.key()[:6]}",
        created=created,
        command=command,
        job=job.plain(),
        job_key=job_key(job),
        model=_plain(asdict(weights.facts)),
        environment=facts.environment(),
        suites=tuple(suite.load(name).facts() for name in job.suites),
    )
    state = Run(job, record, weights, for_model(weights.facts), progress, keep)
    state.notes += _model_notes(weights)
    if earlier is not None:
        state.record = replace(record, id=earlier.id, created=earlier.created)
        state.subjects |= {s.id: replace(s, error="") for s in earlier.subjects}
        state.measurements += [m for m in earlier.measurements if m.suite != SPEED]
        state.observations += [o for o in earlier.observations if o.suite != SPEED and o.kind != EVENT]
        state.notes.append(f"resumed {created}: {len(state.done())} units were already measured")
    return state


def _model_notes(weights: "Weights") -> list[str]:
    if weights.facts.tokenizer:
        return []
    return ["the vocabulary belongs to no known tokenizer: prompts are fed as their bytes, taken modulo its size"]


def _measure_all(state: Run) -> None:
    with ExitStack() as stack:
        reference = parse(state.job.reference)
        state.progress(f"opening {reference.id}")
        truth_session = stack.enter_context(open_session(reference, state.weights, state.job.threads))
        state.subjects[reference.id] = Subject(reference.id, "reference", _info(truth_session.info))
        spreads = _envelopes(state, truth_session)
        _reference_evidence(state, truth_session)
        sessions: dict[str, Session] = {}
        for name in state.job.subjects:
            session = _candidate(state, stack, name, truth_session, spreads)
            if session is not None and SPEED in state.job.suites:
                sessions[name] = session
        if SPEED in state.job.suites:
            _speed(state, truth_session, sessions, spreads)


def _units(job: Job) -> Iterator[tuple[Suite, Case]]:
    """Every case of every suite but speed, in order."""
    for name in job.suites:
        if name != SPEED:
            loaded = suite.load(name)
            yield from ((loaded, case) for case in loaded.cases)


def measure_of(found: Suite) -> Measure:
    """The measure module of a suite."""
    return cast(Measure, importlib.import_module(f"harness.measures.{found.measure}"))


def context_of(state: Run, case: Case, honest: dict[str, Spread] | None = None) -> Context:
    """The context of a case; the same tokens for every subject."""
    tokens = encode(case.text, state.tokenizer, state.weights.facts.vocab_size)
    return Context(case, tokens, state.weights.facts, state.tokenizer, state.job.seed, honest or {})


def encode(text: str, tokenizer: Tokenizer | None, vocab_size: int) -> Ids:
    """Ids of a text; its bytes modulo the vocabulary where no tokenizer is known."""
    ids = tokenizer.encode(text) if tokenizer is not None else [byte % vocab_size for byte in text.encode("utf-8")]
    return np.asarray(ids, dtype=np.int64)


def _truth(state: Run, session: Session, found: Suite, case: Case) -> Sample:
    """The reference's sample of a case, computed when first asked for; a second program's where a suite has one."""
    key = (found.name, case.name)
    if key not in state.truths:
        measure, context = measure_of(found), context_of(state, case)
        if hasattr(measure, "independent"):
            state.truths[key] = measure.independent(context)
        else:
            state.truths[key] = measure.collect(session, context, None)[0]
    return state.truths[key]


def _reference_evidence(state: Run, session: Session) -> None:
    """Tables that have a column for the reference need its evidence too."""
    kept = {(o.suite, o.case) for o in state.observations if o.subject == state.job.reference}
    for found, case in _units(state.job):
        if (
            (found.name, case.name) not in kept
            and not hasattr(measure_of(found), "independent")
            and found.name in ("logits", "generation")
        ):
            truth = _truth(state, session, found, case)
            for kind, data in measure_of(found).observe(truth, truth, context_of(state, case)):
                state.observations.append(Observation(found.name, case.name, state.job.reference, kind, data))


def _envelopes(state: Run, truth_session: Session) -> dict[Unit, dict[str, Spread]]:
    """Honest runs of every case in every number format that a candidate computes in."""
    formats = [f for f in dict.fromkeys(parse(name).dtype for name in state.job.subjects) if f in envelope.FORMATS]
    suites = {found.name for found, _ in _units(state.job) if found.envelope}
    if SPEED in state.job.suites:
        suites.add("logits")
    count = envelope.runs(state.job.honest_runs, state.weights.facts.parameters)
    spreads: dict[Unit, dict[str, Spread]] = {}
    for dtype in formats if suites else ():
        spec = parse(f"honest:{state.job.seed}@{dtype}")
        subject = envelope.honest_id(dtype)
        with open_session(spec, state.weights, state.job.threads) as session:
            state.subjects[subject] = Subject(subject, "honest", {**_info(session.info), "runs": count})
            for found, case in _honest_units(state.job, suites):
                spreads[found.name, case.name, subject] = _envelope(
                    state, truth_session, session, subject, found, case, count
                )
    return spreads


def _honest_units(job: Job, suites: set[str]) -> Iterator[tuple[Suite, Case]]:
    for name in sorted(suites):
        found = suite.load(name)
        cases = found.cases if name in job.suites else found.cases[:1]  # speed's gate needs one prompt
        yield from ((found, case) for case in cases)


def _envelope(
    state: Run, truth_session: Session, session: Session, subject: str, found: Suite, case: Case, count: int
) -> dict[str, Spread]:
    known = _known_spreads(state, found.name, case.name, subject)
    if known:
        return known
    state.progress(f"{found.name} {case.name}: {count} honest runs, {subject}")
    truth = _truth(state, truth_session, found, case)
    spreads, evidence = envelope.measure_envelope(measure_of(found), session, context_of(state, case), truth, count)
    if found.name in state.job.suites:
        where = f"largest of {count} runs"
        state.measurements += [
            Measurement(found.name, case.name, subject, name, spread.largest, where=where)
            for name, spread in spreads.items()
        ]
        state.observations += [Observation(found.name, case.name, subject, kind, data) for kind, data in evidence]
    state.save()
    return spreads


def _known_spreads(state: Run, found: str, case: str, subject: str) -> dict[str, Spread]:
    """Spreads that a resumed record already holds."""
    for o in state.observations:
        if (o.suite, o.case, o.subject, o.kind) == (found, case, subject, "envelope"):
            return {name: Spread(float(row["median"]), float(row["max"])) for name, row in o.data["measures"].items()}
    return {}


def _candidate(
    state: Run, stack: ExitStack, name: str, truth_session: Session, spreads: dict[Unit, dict[str, Spread]]
) -> Session | None:
    """Run one candidate through all suites; it stays open if its speed will be asked for."""
    done = state.done()
    todo = [(f, c) for f, c in _units(state.job) if (f.name, c.name, name) not in done]
    if not todo and SPEED not in state.job.suites:
        return None
    state.progress(f"opening {name}")
    try:
        session = open_session(parse(name), state.weights, state.job.threads)
    except InputError:
        raise
    except Exception as error:  # a backend may break in any way; the others go on
        state.subjects[name] = Subject(name, "candidate", _planned(name), error=_one_line(error))
        for found, case in _units(state.job):
            _event(state, (found.name, case.name, name), Outcome.ERROR, error)
        return None
    if SPEED in state.job.suites:
        stack.enter_context(session)
    try:
        state.subjects[name] = Subject(name, "candidate", _info(session.info))
        for found, case in todo:
            state.progress(f"{found.name} {case.name}: {name}")
            honest = spreads.get((found.name, case.name, envelope.honest_id(session.info.dtype)), {})
            with _guarded(state, (found.name, case.name, name)):
                _unit(
                    state,
                    session,
                    found,
                    context_of(state, case, honest),
                    _truth(state, truth_session, found, case),
                    name,
                )
            state.save()
    finally:
        if SPEED not in state.job.suites:
            session.close()
    return session


def _unit(state: Run, session: Session, found: Suite, context: Context, truth: Sample, name: str) -> None:
    """One case on one candidate."""
    missing = [ability for ability in found.needs if ability not in session.info.abilities]
    if missing:
        raise Unsupported(f"the suite needs {', '.join(missing)}, which this backend does not offer")
    measure = measure_of(found)
    sample = measure.collect(session, context, truth)[0]
    if found.name not in ("state", "consistency", "tokenization"):
        _check_shapes(sample, truth)
    numbers = measure.compare(sample, truth, context)
    evidence = list(measure.observe(sample, truth, context))
    where = (found.name, context.case.name, name)
    state.measurements += [Measurement(*where, n.name, n.value, n.unit, n.where) for n in numbers]
    state.observations += [Observation(*where, kind, data) for kind, data in evidence]


def _check_shapes(sample: Sample, truth: Sample) -> None:
    """A candidate's logits must have as many columns as the truth's; nothing may broadcast."""
    got, want = sample.get("logits"), truth.get("logits")
    if got is not None and want is not None and (got.ndim != 2 or got.shape[1] != want.shape[1]):
        raise BackendError(f"logits of shape {got.shape}, where the reference has {want.shape}")


@contextmanager
def _guarded(state: Run, unit: Unit) -> Iterator[None]:
    """Turn whatever breaks inside a unit into an outcome; the run goes on."""
    try:
        with np.errstate(all="ignore"):  # numbers that are not finite are judged, not warned about
            yield
    except Unsupported as error:
        _event(state, unit, Outcome.UNSUPPORTED, error)
    except Exception as error:  # a backend may break in any way
        _event(state, unit, Outcome.ERROR, error)


def _event(state: Run, unit: Unit, outcome: Outcome, error: Exception) -> None:
    data: dict[str, Any] = {"outcome": outcome.value, "detail": _one_line(error)}
    if outcome is Outcome.ERROR and not isinstance(error, HarnessError):
        data["trace"] = traceback.format_exc(limit=-6)
    state.observations.append(Observation(*unit, EVENT, data))


def _speed(
    state: Run, truth_session: Session, sessions: dict[str, Session], spreads: dict[Unit, dict[str, Spread]]
) -> None:
    """Interleaved timing of those subjects whose logits are right."""
    found = suite.load(SPEED)
    for case in found.cases:
        fit: dict[str, Session] = {}
        for name in state.job.subjects:
            unit = (SPEED, case.name, name)
            if name not in sessions:
                _event(state, unit, Outcome.ERROR, BackendError(state.subjects[name].error or "not opened"))
            elif not _passes_logits(state, truth_session, name, sessions[name], spreads):
                _event(
                    state,
                    unit,
                    Outcome.SKIPPED,
                    BackendError("no speed is stated for a subject whose logits are wrong"),
                )
            else:
                fit[name] = sessions[name]
        if fit:
            with _guarded(state, (SPEED, case.name, next(iter(fit)))):
                for row in bench.measure(fit, context_of(state, case), state.progress):
                    (state.measurements if isinstance(row, Measurement) else state.observations).append(row)  # type: ignore[arg-type]


def _passes_logits(
    state: Run, truth_session: Session, name: str, session: Session, spreads: dict[Unit, dict[str, Spread]]
) -> bool:
    """Whether a subject's logits pass the profile; measured on one prompt if the suite is not part of the job."""
    if "logits" in state.job.suites:
        verdicts = again(state.snapshot(), load(state.job.profile)).verdicts
        own = [v for v in verdicts if v.suite == "logits" and v.subject == name]
        return bool(own) and all(v.outcome is Outcome.PASS for v in own)
    found = suite.load("logits")
    case = found.cases[0]
    honest = spreads.get((found.name, case.name, envelope.honest_id(session.info.dtype)), {})
    context = context_of(state, case, honest)
    measure = measure_of(found)
    numbers = measure.compare(
        measure.collect(session, context, None)[0], _truth(state, truth_session, found, case), context
    )
    rms = next(number.value for number in numbers if number.name == "rms")
    return bool(rms <= 3 * context.largest("rms"))


def _info(info: Info) -> dict[str, Any]:
    data = asdict(info)
    data.pop("model")
    return _plain(data)


def _planned(name: str) -> dict[str, Any]:
    """What a subject that could not be opened would have been."""
    spec = parse(name)
    return {"backend": spec.backend, "device": spec.device, "dtype": spec.dtype}


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    """As JSON values; sets become sorted lists."""
    return cast(dict[str, Any], json.loads(json.dumps(data, default=sorted)))


def _one_line(error: Exception) -> str:
    """An error in one line; its class is named where the message alone would not tell."""
    text = " ".join(str(error).split())
    if isinstance(error, HarnessError):
        return text
    return f"{type(error).__name__}: {text}"[:500]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
