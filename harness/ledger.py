"""The ledger of a run: what it works with and everything it found so far, kept as it grows."""

import json
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from backends.base import Ids, Info, Tokenizer
from backends.errors import BackendError, HarnessError, Unsupported
from backends.registry import parse
from harness.job import Job
from harness.judge import EVENT
from harness.measures.base import Context, Sample, Spread
from harness.suite import Case, Suite
from reports.record import Measurement, Observation, Outcome, Record, Subject

if TYPE_CHECKING:
    from backends.weights import Weights
    from harness.shelf import Shelf

Unit = tuple[str, str, str]
"""Suite, case, subject."""

Spreads = dict[Unit, dict[str, Spread]]
"""Case of a suite, honest subject -> number -> spread over the honest runs."""

ONE_THREAD = (
    5_000_000  # parameters; measured on the designed checkpoint: two threads are slower, on a busy machine by 4x
)
KEEP_SECONDS = 2.0  # a record is written at most this often while a run goes on


class BrokenReferenceError(BackendError):
    """The reference broke: nobody can be measured, and no candidate is to blame."""


@dataclass
class Ledger:
    """One run under way: what it has and what it found so far.

    `plan` holds suites with a selection of their cases; empty is the job's suites, whole. `shelf` keeps honest runs
    between runs; None keeps nothing. `openings` holds what opening a candidate cost, where speed is asked for.
    """

    job: Job
    record: Record
    weights: "Weights"
    tokenizer: Tokenizer | None
    progress: Callable[[str], None]
    keep: Callable[[Record], None]
    subjects: dict[str, Subject] = field(default_factory=dict)
    measurements: list[Measurement] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    truths: dict[tuple[str, str], Sample] = field(default_factory=dict)
    bands: dict[tuple[str, str, str, tuple[str, ...]], Any] = field(default_factory=dict)
    openings: dict[str, dict[str, Any]] = field(default_factory=dict)
    plan: tuple[Suite, ...] = ()
    kept_at: float = 0.0
    shelf: "Shelf | None" = None

    @property
    def threads(self) -> int:
        """Threads of every session: as asked; one where a model is so small that threads only wait for each other."""
        return self.job.threads or int(self.weights.facts.parameters < ONE_THREAD)

    def snapshot(self, status: str = "running") -> Record:
        """The record as of now."""
        return replace(
            self.record,
            status=status,
            finished="" if status == "running" else now(),
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

    def context(self, case: Case, honest: dict[str, Spread] | None = None) -> Context:
        """The context of a case; the same tokens for every subject."""
        facts = self.weights.facts
        tokens = encode(case.text, self.tokenizer, facts.vocab_size)
        return Context(case, tokens, facts, self.tokenizer, self.job.seed, honest or {})

    def event(self, unit: Unit, outcome: Outcome, error: Exception) -> None:
        """Keep why a unit has no numbers."""
        data: dict[str, Any] = {"outcome": outcome.value, "detail": one_line(error)}
        if outcome is Outcome.ERROR and not isinstance(error, HarnessError):
            data["trace"] = "".join(traceback.format_exception(error, limit=-6))
        self.observations.append(Observation(*unit, EVENT, data))

    @contextmanager
    def guarded(self, unit: Unit) -> Iterator[None]:
        """Turn whatever a subject breaks inside a unit into an outcome; the run goes on."""
        try:
            with np.errstate(all="ignore"):  # numbers that are not finite are judged, not warned about
                yield
        except BrokenReferenceError:
            raise
        except Exception as error:  # a backend may break in any way
            self.failed(unit, error)

    def failed(self, unit: Unit, error: Exception) -> None:
        """Keep what a subject's error came to."""
        self.event(unit, Outcome.UNSUPPORTED if isinstance(error, Unsupported) else Outcome.ERROR, error)


def encode(text: str, tokenizer: Tokenizer | None, vocab_size: int) -> Ids:
    """Ids of a text; its bytes modulo the vocabulary where no tokenizer is known."""
    ids = tokenizer.encode(text) if tokenizer is not None else [byte % vocab_size for byte in text.encode("utf-8")]
    return np.asarray(ids, dtype=np.int64)


def info_facts(info: Info) -> dict[str, Any]:
    """A session's facts for the record; the model stands there once."""
    data = asdict(info)
    data.pop("model")
    return plain(data)


def planned(name: str) -> dict[str, Any]:
    """What a subject that could not be opened would have been."""
    spec = parse(name)
    return {"backend": spec.backend, "device": spec.device, "dtype": spec.dtype}


def plain(data: dict[str, Any]) -> dict[str, Any]:
    """As JSON values; sets become sorted lists."""
    return cast(dict[str, Any], json.loads(json.dumps(data, default=sorted)))


def one_line(error: Exception) -> str:
    """An error in one line; its class is named where the message alone would not tell."""
    text = " ".join(str(error).split())
    if isinstance(error, HarnessError):
        return text
    return f"{type(error).__name__}: {text}"[:500]


def now() -> str:
    """This moment in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")
