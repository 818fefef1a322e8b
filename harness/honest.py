"""The honest runs of a run: how far every case may land in every number format. Writes into the ledger."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from backends.base import Session
from backends.errors import Unsupported
from backends.registry import open_session, parse
from harness import envelope, suite
from harness.ahead import ahead
from harness.facts import usable_cores
from harness.ledger import Ledger, Spreads, info_facts
from harness.measures.base import Context, Sample, Spread
from harness.shelf import Found
from harness.suite import Case, Suite
from harness.together import side_by_side
from harness.truth import SPEED, measure_of, truth_of, units
from reports.record import Measurement, Observation, Subject


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
