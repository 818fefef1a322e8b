"""The stages of a run: the truth, honest runs, candidates. Each writes into the ledger."""

import importlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple, cast

import numpy as np

from backends.base import DTYPES, Session
from backends.errors import BackendError, InputError, Unsupported
from backends.registry import open_session, parse
from harness import envelope, opening, suite
from harness.ahead import ahead
from harness.facts import usable_cores
from harness.ledger import BrokenReferenceError, Ledger, Spreads, info_facts, one_line, planned
from harness.measures.base import Context, Measure, Sample, Spread
from harness.shelf import Found
from harness.suite import Case, Suite
from harness.together import side_by_side
from reports.record import Measurement, Observation, Subject

SPEED = "speed"

COLUMNED = ("logits", "generation")
"""Suites whose tables have a column for the reference."""


def units(ledger: Ledger) -> Iterator[tuple[Suite, Case]]:
    """Every case of every suite but speed, in order."""
    for found in ledger.plan or map(suite.load, ledger.job.suites):
        if found.name != SPEED:
            yield from ((found, case) for case in found.cases)


def measure_of(found: Suite) -> Measure:
    """The measure module of a suite."""
    return cast(Measure, importlib.import_module(f"harness.measures.{found.measure}"))


def truth_of(ledger: Ledger, session: Session, found: Suite, case: Case) -> Sample:
    """The reference's sample of a case, computed when first asked for; a second program's where a suite has one.

    Raises:
        Unsupported: the reference has not what the suite needs.
        BrokenReferenceError: it broke.
    """
    key = (found.name, case.name)
    if key not in ledger.truths:
        ledger.truths[key] = _truth(ledger, session, found, case)
    return ledger.truths[key]


def _truth(ledger: Ledger, session: Session, found: Suite, case: Case) -> Sample:
    measure, context = measure_of(found), ledger.context(case)
    if hasattr(measure, "independent"):
        sample: Sample = measure.independent(context)
        return sample
    if getattr(measure, "ALONE", False):
        return {}
    require(found, session, f"the reference {ledger.job.reference}")
    try:
        return measure.collect(session, context, None)[0]
    except Exception as error:  # a backend may break in any way
        name = ledger.job.reference
        raise BrokenReferenceError(
            f"the reference {name} broke on {found.name}, {case.name}: {one_line(error)}"
        ) from error


def truths(ledger: Ledger, session: Session) -> None:
    """All truths that will be asked for, at once, where the reference reads its weights again for every call."""
    if not session.streams:
        return
    done, columns = ledger.done(), {(o.suite, o.case) for o in ledger.observations if o.subject == ledger.job.reference}
    wanted = [
        (found, case)
        for found, case in units(ledger)
        if any((found.name, case.name, name) not in done for name in ledger.job.subjects)
        or (found.name in COLUMNED and (found.name, case.name) not in columns)
    ]
    ledger.progress(f"{ledger.job.reference}: {len(wanted)} cases, layer by layer")
    side_by_side(session, [partial(_early, ledger, found, case) for found, case in wanted])


def _early(ledger: Ledger, found: Suite, case: Case, session: Session) -> None:
    with suppress(Unsupported):  # said where somebody needs it
        truth_of(ledger, session, found, case)


def require(found: Suite, session: Session, who: str = "this backend") -> None:
    """Raise Unsupported where a session has not all that a suite needs."""
    missing = [ability for ability in found.needs if ability not in session.info.abilities]
    if missing:
        raise Unsupported(f"the suite needs {', '.join(missing)}, which {who} does not offer")


def reference_evidence(ledger: Ledger, session: Session) -> None:
    """Tables that have a column for the reference need its evidence too."""
    kept = {(o.suite, o.case) for o in ledger.observations if o.subject == ledger.job.reference}
    for found, case in units(ledger):
        if found.name in COLUMNED and (found.name, case.name) not in kept:
            truth = truth_of(ledger, session, found, case)
            for kind, data in measure_of(found).observe(truth, truth, ledger.context(case)):
                ledger.observations.append(Observation(found.name, case.name, ledger.job.reference, kind, data))


def envelopes(ledger: Ledger, truth_session: Session) -> Spreads:
    """Honest runs of every case in every number format that a candidate computes in."""
    asked = dict.fromkeys(envelope.honest_format(parse(name).dtype) for name in ledger.job.subjects)
    formats = [dtype for dtype in asked if dtype in envelope.FORMATS]
    suites = {found.name for found, _ in units(ledger) if found.envelope}
    if SPEED in ledger.job.suites:
        suites.add("logits")
    spreads: Spreads = {}
    with ExitStack() as stack:
        asked_of = {envelope.honest_id(dtype): _Asked(dtype, []) for dtype in (formats if suites else ())}
        for subject, asking in asked_of.items():
            for found, case in _honest_units(ledger, suites):
                known = _known_spreads(ledger, found.name, case.name, subject)
                spreads[found.name, case.name, subject] = known
                if not known:
                    asking.units.append((found, case))
            ledger.subjects.setdefault(subject, Subject(subject, "honest", {}))  # in this order
        for subject, runs in _started(ledger, truth_session, asked_of, stack):
            for (found, case), measured in zip(asked_of[subject].units, runs, strict=True):
                spreads[found.name, case.name, subject] = _entered(ledger, subject, found, case, measured)
    return spreads


class _Asked(NamedTuple):
    """Honest runs in one number format of the cases that still need them."""

    dtype: str
    units: list[tuple[Suite, Case]]


def _started(
    ledger: Ledger, truth_session: Session, asked_of: Mapping[str, _Asked], stack: ExitStack
) -> Iterator[tuple[str, Iterator[Found | None]]]:
    """Number format by number format; all at once, a thread each, on a model so small that sessions take one thread."""
    runs = [(subject, _honest_runs(ledger, truth_session, subject, asking)) for subject, asking in asked_of.items()]
    if ledger.job.threads or ledger.threads != 1 or usable_cores() < 2:
        yield from runs
        return
    for asking in asked_of.values():  # the reference is asked by this thread only
        for found, case in asking.units:
            _truth_or_none(ledger, truth_session, found, case)
    yield from [(subject, stack.enter_context(ahead(found))) for subject, found in runs]


def _honest_runs(ledger: Ledger, truth_session: Session, subject: str, asking: _Asked) -> Iterator[Found | None]:
    """Case by case; None where the reference has not what the suite needs."""
    count = envelope.runs(ledger.job.honest_runs, ledger.weights.facts.parameters)
    with open_session(parse(f"honest:{ledger.job.seed}@{asking.dtype}"), ledger.weights, ledger.threads) as session:
        ledger.subjects[subject] = Subject(subject, "honest", {**info_facts(session.info), "runs": count})
        works = [partial(_envelope, ledger, truth_session, subject, *unit, count) for unit in asking.units]
        yield from side_by_side(session, works) if session.streams else (work(session) for work in works)


def _honest_units(ledger: Ledger, suites: set[str]) -> Iterator[tuple[Suite, Case]]:
    planned = {found.name: found for found, _ in units(ledger)}
    for name in sorted(suites):
        found = planned.get(name) or suite.load(name)
        cases = found.cases if name in planned else found.cases[:1]  # speed's gate needs one prompt
        yield from ((found, case) for case in cases)


def _envelope(
    ledger: Ledger, truth_session: Session, subject: str, found: Suite, case: Case, count: int, session: Session
) -> Found | None:
    truth = _truth_or_none(ledger, truth_session, found, case)
    return None if truth is None else _shelved(ledger, found, ledger.context(case), subject, count, session, truth)


def _truth_or_none(ledger: Ledger, session: Session, found: Suite, case: Case) -> Sample | None:
    try:
        return truth_of(ledger, session, found, case)
    except Unsupported:  # said where a candidate meets it
        return None


def _entered(ledger: Ledger, subject: str, found: Suite, case: Case, measured: Found | None) -> dict[str, Spread]:
    """Keep an envelope in the ledger."""
    if measured is None:
        return {}
    spreads, evidence = measured
    if found.name in ledger.job.suites:
        runs = ledger.subjects[subject].info["runs"]
        ledger.measurements += [
            Measurement(found.name, case.name, subject, name, spread.largest, where=f"largest of {runs} runs")
            for name, spread in spreads.items()
        ]
        ledger.observations += [Observation(found.name, case.name, subject, kind, data) for kind, data in evidence]
    ledger.save()
    return spreads


def _shelved(
    ledger: Ledger, found: Suite, context: Context, subject: str, count: int, session: Session, truth: Sample
) -> Found:
    """An envelope from the shelf, or measured and put there."""
    shelf = ledger.shelf
    key = shelf.key(what="spreads", **_deciding(ledger, found, context, subject, count)) if shelf else ""
    known = shelf.spreads(key) if shelf else None
    if known:
        return known
    ledger.progress(f"{found.name} {context.case.name}: {count} honest runs, {subject}")
    with np.errstate(all="ignore"):  # honest runs may overflow too; their spread is infinite then
        measured = envelope.measure_envelope(measure_of(found), session, context, truth, count)
    if shelf:
        shelf.keep_spreads(key, measured)
    return measured


def _deciding(ledger: Ledger, found: Suite, context: Context, subject: str, count: int) -> dict[str, Any]:
    """Everything besides checkpoint and program that decides what honest runs of a case come to."""
    return {
        "suite": [found.name, found.version, context.case.name, context.case.options],
        "tokens": context.tokens,
        "subject": subject,
        "runs": [count, ledger.job.seed, ledger.threads, ledger.job.reference],
    }


def _known_spreads(ledger: Ledger, found: str, case: str, subject: str) -> dict[str, Spread]:
    """Spreads that a resumed record already holds."""
    for o in ledger.observations:
        if (o.suite, o.case, o.subject, o.kind) == (found, case, subject, "envelope"):
            return {name: Spread(float(row["median"]), float(row["max"])) for name, row in o.data["measures"].items()}
    return {}


def candidate(ledger: Ledger, stack: ExitStack, name: str, truth_session: Session, spreads: Spreads) -> Session | None:
    """Run one candidate through all suites; it stays open if its speed will be asked for."""
    done = ledger.done()
    todo = [(f, c) for f, c in units(ledger) if (f.name, c.name, name) not in done]
    if not todo and SPEED not in ledger.job.suites:
        return None
    ledger.progress(f"opening {name}")
    try:
        session = _opened(ledger, name)
        if session.info.dtype not in DTYPES:  # no criterion would look at it
            session.close()
            raise BackendError(f"{name} states dtype {session.info.dtype!r}; known: {', '.join(DTYPES)}")
    except InputError:
        raise
    except Exception as error:  # a backend may break in any way; the others go on
        ledger.subjects[name] = Subject(name, "candidate", planned(name), error=one_line(error))
        for found, case in todo:
            ledger.failed((found.name, case.name, name), error)
        return None
    if SPEED in ledger.job.suites:
        stack.enter_context(session)
    try:
        ledger.subjects[name] = Subject(name, "candidate", info_facts(session.info))
        side_by_side(session, [partial(_case, ledger, truth_session, spreads, name, f, c) for f, c in todo])
    finally:
        if SPEED not in ledger.job.suites:
            session.close()
    return session if SPEED in ledger.job.suites else None  # whose memory the next one may need


def _opened(ledger: Ledger, name: str) -> Session:
    """A candidate's session; by the clock where speed is asked for."""
    if SPEED not in ledger.job.suites:
        return open_session(parse(name), ledger.weights, ledger.threads)
    tokens = ledger.context(suite.load(SPEED).cases[0]).tokens
    session, ledger.openings[name] = opening.opened(name, ledger.weights, ledger.threads, tokens)
    return session


def _case(
    ledger: Ledger, truth_session: Session, spreads: Spreads, name: str, found: Suite, case: Case, session: Session
) -> None:
    """One case of one candidate, whatever comes of it."""
    ledger.progress(f"{found.name} {case.name}: {name}")
    with ledger.guarded((found.name, case.name, name)):
        context = _context(ledger, truth_session, found, case, session.info.dtype, spreads)
        _unit(ledger, session, found, context, truth_of(ledger, truth_session, found, case), name)
    ledger.save()


def _context(ledger: Ledger, truth_session: Session, found: Suite, case: Case, dtype: str, spreads: Spreads) -> Context:
    """What a measure is told besides the candidate's session."""
    context = ledger.context(case, spreads.get((found.name, case.name, envelope.honest_id(dtype)), {}))
    context = replace(context, truth_session=truth_session)
    if not hasattr(measure_of(found), "bands"):
        return context
    return replace(context, bands=partial(bands, ledger, found, context, envelope.honest_format(dtype)))


def bands(ledger: Ledger, found: Suite, context: Context, dtype: str, names: tuple[str, ...]) -> Any:
    """What a measure keeps of honest runs beyond single numbers; taken when first asked for.

    Args:
        ledger: of the run.
        found: the suite.
        context: of the case, with the reference's session.
        dtype: number format of the honest runs.
        names: which tensors are recorded.
    """
    key = (found.name, context.case.name, dtype, names)
    if key not in ledger.bands:
        assert context.truth_session is not None
        measure: Any = measure_of(found)
        truth = truth_of(ledger, context.truth_session, found, context.case)
        count = envelope.runs(ledger.job.honest_runs, ledger.weights.facts.parameters)
        with open_session(parse(f"honest:{ledger.job.seed}@{dtype}"), ledger.weights, ledger.threads) as session:
            ledger.bands[key] = _shelved_bands(ledger, found, context, session, truth, names, count)
            subject = Subject(envelope.honest_id(dtype), "honest", {**info_facts(session.info), "runs": count})
        ledger.subjects.setdefault(subject.id, subject)
        unit = (found.name, context.case.name, subject.id)
        if not any((o.suite, o.case, o.subject, o.kind) == (*unit, "bands") for o in ledger.observations):
            ledger.observations.append(Observation(*unit, "bands", measure.band_facts(ledger.bands[key])))
    return ledger.bands[key]


def _shelved_bands(
    ledger: Ledger,
    found: Suite,
    context: Context,
    session: Session,
    truth: Sample,
    names: tuple[str, ...],
    count: int,
) -> Any:
    """What a measure keeps of honest runs, from the shelf, or taken and put there."""
    measure: Any = measure_of(found)
    shelf, subject = ledger.shelf, envelope.honest_id(session.info.dtype)
    facts = _deciding(ledger, found, context, subject, count)
    key = shelf.key(what="bands", names=list(names), **facts) if shelf else ""
    known = shelf.arrays(key) if shelf else None
    if known:
        return measure.bands_of(known)
    ledger.progress(f"{found.name} {context.case.name}: honest runs, {session.info.dtype}")
    taken = measure.bands(session, context, truth, names, count)
    if shelf:
        shelf.keep_arrays(key, measure.arrays_of(taken))
    return taken


def _unit(ledger: Ledger, session: Session, found: Suite, context: Context, truth: Sample, name: str) -> None:
    """One case on one candidate."""
    require(found, session)
    measure = measure_of(found)
    sample = measure.collect(session, context, truth)[0]
    _check_shapes(sample, truth)
    numbers = measure.compare(sample, truth, context)
    evidence = list(measure.observe(sample, truth, context))
    where = (found.name, context.case.name, name)
    ledger.measurements += [Measurement(*where, n.name, n.value, n.unit, n.where) for n in numbers]
    ledger.observations += [Observation(*where, kind, data) for kind, data in evidence]


def _check_shapes(sample: Sample, truth: Sample) -> None:
    """A candidate's logits must have as many columns as the truth's; nothing may broadcast."""
    got, want = sample.get("logits"), truth.get("logits")
    if got is not None and want is not None and (got.ndim != 2 or got.shape[1] != want.shape[1]):
        raise BackendError(f"logits of shape {got.shape}, where the reference has {want.shape}")
