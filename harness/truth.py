"""What a run measures: its cases, and the reference's answer to each. Writes into the ledger."""

import importlib
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import cast

from backends.base import Session
from backends.errors import Unsupported
from harness import suite
from harness.ledger import BrokenReferenceError, Ledger, one_line
from harness.measures.base import Measure, Sample
from harness.suite import Case, Suite
from harness.together import side_by_side
from reports.record import Observation

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
