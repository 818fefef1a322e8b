"""Diagnosis where it is asked for: of backends by name, and of the candidates that a run has failed."""

from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

from backends.base import Ids, Session, Tokenizer
from backends.errors import InputError, UsageError
from backends.registry import find, open_session, parse
from harness import suite
from harness.diagnose import EDGE, PROMPT, TOKENS, Clinic
from harness.diagnosis import Diagnosis
from harness.envelope import SMALL, runs
from harness.job import REFERENCE
from harness.judge import again, load
from harness.ledger import ONE_THREAD, Ledger, encode, one_line
from reports.record import Observation, Outcome

KIND, CASE = "diagnosis", "diagnosis"

NUMERIC = ("layers", "logits", "distribution", "stepwise", "consistency", "generation", "state")
"""Suites whose failures a diagnosis may explain, the one it is filed under first."""


def consult(
    model: str,
    backends: Iterable[str],
    device: str = "",
    dtype: str = "",
    *,
    threads: int = 0,
    logits_only: bool = False,
    progress: Callable[[str], object] = str,
) -> dict[str, Diagnosis]:
    """Diagnose backends on a checkpoint.

    Args:
        model: any checkpoint.
        backends: as written.
        device: for those that leave it open.
        dtype: likewise.
        threads: of every session; 0 takes one for a tiny model.
        logits_only: leave traces aside, as if the backends had none.
        progress: told what is going on.

    Returns:
        Subject id -> what was found.

    Raises:
        UsageError: an unknown backend, or one that cannot run here.
        InputError: the checkpoint cannot be opened.
        BackendError: a backend broke.
    """
    from backends.checkpoint import open_checkpoint
    from backends.tokenizer import for_model

    specs = [parse(text, device, dtype) for text in backends]
    for spec in specs:
        if reason := find(spec.backend).available():
            raise UsageError(f"{spec.id} cannot run here: {reason}. `python -m harness backends` lists what can.")
    found = {}
    with ExitStack() as stack:
        weights = stack.enter_context(open_checkpoint(model))
        count = threads or int(weights.facts.parameters < ONE_THREAD)
        truth = stack.enter_context(open_session(parse(REFERENCE), weights, count))
        tokenizer = for_model(weights.facts)
        tokens = _prompt(tokenizer, weights.facts.vocab_size)
        examiner = Clinic(
            lambda name: open_session(parse(name), weights, count),
            truth,
            tokens,
            EDGE,
            runs(0, weights.facts.parameters),
            tokenizer,
        )
        for spec in specs:
            progress(f"diagnosing {spec.id}")
            with open_session(spec, weights, count) as session:
                found[spec.id] = examiner.examine(_without_trace(session) if logits_only else session, thorough=True)
    return found


def _prompt(tokenizer: Tokenizer | None, vocab_size: int) -> Ids:
    return np.resize(encode(suite.prompts()[PROMPT].text, tokenizer, vocab_size), TOKENS)


def _without_trace(session: Session) -> Session:
    session.info = replace(session.info, abilities=session.info.abilities - {"trace"})
    return session


def clinic(ledger: Ledger, truth: Session) -> Clinic:
    """What examines the candidates of a run."""
    weights = ledger.weights
    return Clinic(
        lambda name: open_session(parse(name), weights, ledger.threads),
        truth,
        _prompt(ledger.tokenizer, weights.facts.vocab_size),
        EDGE,
        runs(ledger.job.honest_runs, weights.facts.parameters),
        ledger.tokenizer,
    )


def after(ledger: Ledger, truth: Session) -> None:
    """Diagnose every candidate that failed where its numbers were judged; kept as an observation.

    Known mistakes are run only on checkpoints small enough; what breaks a diagnosis breaks no run.
    """
    if "replay" not in truth.info.abilities:
        return
    failed = _failed(ledger)
    known = {o.subject for o in ledger.observations if o.kind == KIND}
    weights, examiner = ledger.weights, clinic(ledger, truth)
    for name, where in failed.items():
        if name not in known:
            ledger.progress(f"diagnosing {name}")
            try:
                with open_session(parse(name), weights, ledger.threads) as session, np.errstate(all="ignore"):
                    found = examiner.examine(session, faults=weights.facts.parameters <= SMALL)
                ledger.observations.append(Observation(where, CASE, name, KIND, found.data()))
            except InputError:
                raise
            except Exception as error:  # a broken candidate was judged already
                ledger.notes.append(f"{name} could not be diagnosed: {one_line(error)}")


def _failed(ledger: Ledger) -> dict[str, str]:
    """Candidate -> the suite that its diagnosis is filed under."""
    verdicts = again(ledger.snapshot(), load(ledger.job.profile)).verdicts
    bad = {(v.subject, v.suite) for v in verdicts if v.outcome is Outcome.FAIL}
    names = [name for name in ledger.job.subjects if any((name, found) in bad for found in NUMERIC)]
    return {name: next(found for found in NUMERIC if (name, found) in bad) for name in names}
