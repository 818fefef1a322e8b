"""One candidate through all suites of a run. Writes into the ledger."""

from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from backends.base import DTYPES, Session
from backends.errors import BackendError, InputError
from backends.registry import open_session, parse
from harness import envelope, opening, suite
from harness.honest import bands
from harness.ledger import Ledger, Spreads, info_facts, one_line, planned
from harness.measures.base import Context, Sample
from harness.suite import Case, Suite
from harness.together import side_by_side
from harness.truth import SPEED, measure_of, require, truth_of, units
from reports.record import Measurement, Observation, Subject


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
