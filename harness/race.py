"""The stage speed of a run: who may be timed, against which limits, and what came of it."""

from collections.abc import Iterable
from dataclasses import replace

from backends import probe
from backends.base import Session
from backends.errors import BackendError, Unsupported
from harness import bench, envelope, opening, suite
from harness.job import Job
from harness.judge import again, load
from harness.ledger import Ledger, Spreads
from harness.limits import Limits, work_of
from harness.suite import Case, Suite
from harness.truth import SPEED, measure_of, require, truth_of
from reports.record import Measurement, Observation, Outcome

GATE = 2
"""Prompts whose logits a bench judges; honest runs of all would take longer than the timing, on a large model."""


def gate(job: Job) -> tuple[Suite, ...]:
    """The suites of a bench as it runs them; empty for any other job, whose suites are run as they are."""
    if not job.speed:
        return ()
    return tuple(_narrowed(found, job) for found in map(suite.load, job.suites))


def _narrowed(found: Suite, job: Job) -> Suite:
    if found.name == SPEED:
        return replace(found, cases=tuple(replace(c, options=c.options | job.speed) for c in found.cases))
    return replace(found, cases=found.cases[:GATE])


def speed(ledger: Ledger, truth_session: Session, sessions: dict[str, Session], spreads: Spreads) -> None:
    """Interleaved timing of those subjects whose logits are right."""
    found = next((one for one in ledger.plan if one.name == SPEED), suite.load(SPEED))
    for case in found.cases:
        fit: dict[str, Session] = {}
        for name in ledger.job.subjects:
            unit = (SPEED, case.name, name)
            with ledger.guarded(unit):
                if name not in sessions:
                    raise BackendError(ledger.subjects[name].error or "not opened")
                require(found, sessions[name])
                if not sessions[name].timed:
                    raise Unsupported("speed was not recorded: time the backend itself, where it runs")
                if _passes_logits(ledger, truth_session, name, sessions[name], spreads):
                    fit[name] = sessions[name]
                else:
                    wrong = BackendError("no speed is stated for a subject whose logits are wrong")
                    ledger.event(unit, Outcome.SKIPPED, wrong)
        _race(ledger, fit, case)


def _race(ledger: Ledger, fit: dict[str, Session], case: Case) -> None:
    """Time the subjects against each other. Rows are kept as they come: what breaks later takes none of them away."""
    fit = dict(fit)

    def broken(error: bench.BrokenSubjectError) -> None:
        ledger.failed((SPEED, case.name, error.subject), error.cause)

    for name, session in tuple(fit.items()):
        try:
            with bench.blaming(name):
                found = list(opening.rows(case.name, name, session, ledger.openings.get(name, {})))
        except bench.BrokenSubjectError as error:
            broken(error)
            del fit[name]
        else:
            _keep(ledger, found)
    if fit:
        _keep(ledger, bench.measure(fit, ledger.context(case), ledger.progress, _limits(ledger), broken))


def _keep(ledger: Ledger, rows: Iterable[Measurement | Observation]) -> None:
    for row in rows:
        if isinstance(row, Measurement):
            ledger.measurements.append(row)
        else:
            ledger.observations.append(row)
        ledger.save()


def _limits(ledger: Ledger) -> Limits:
    shapes = {name: tensor.shape for name, tensor in ledger.weights.tensors.items()}
    return Limits(work_of(shapes, ledger.weights.facts), probe.cache_bytes(), probe.open_probe)


def _passes_logits(ledger: Ledger, truth_session: Session, name: str, session: Session, spreads: Spreads) -> bool:
    """Whether a subject's logits pass the profile; measured on one prompt if the suite is not part of the job."""
    if "logits" in ledger.job.suites:
        verdicts = again(ledger.snapshot(), load(ledger.job.profile)).verdicts
        own = [v for v in verdicts if v.suite == "logits" and v.subject == name]
        return bool(own) and all(v.outcome is Outcome.PASS for v in own)
    found = suite.load("logits")
    case = found.cases[0]
    honest = spreads.get((found.name, case.name, envelope.honest_id(session.info.dtype)), {})
    context = ledger.context(case, honest)
    measure = measure_of(found)
    numbers = measure.compare(
        measure.collect(session, context, None)[0], truth_of(ledger, truth_session, found, case), context
    )
    rms = next(number.value for number in numbers if number.name == "rms")
    return bool(rms <= 3 * context.largest("rms"))
