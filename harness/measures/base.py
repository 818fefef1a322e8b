"""What every measure module offers, and the helpers that they share.

A module has three functions. `collect` runs a session and returns samples; `compare` turns a sample and
the truth's into numbers; `observe` turns them into evidence for tables and plots. Honest runs go through
the same three, many runs as the rows of one batch. A module may also offer `independent` (a truth that is
not the reference's), `band` (evidence over all honest runs), `bands` with `band_facts`, `arrays_of` and `bands_of`
(whatever else it keeps of honest runs, taken when a candidate asks for it), and `ALONE = True` (there is no truth:
a subject is compared with itself).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from backends.base import Array, Ids, ModelFacts, Session, Tokenizer, Want
from backends.errors import BackendError, InputError
from harness.suite import Case

Sample = dict[str, Any]
"""What one run of one case gave; keys are the measure's own business."""

Evidence = Iterator[tuple[str, dict[str, Any]]]
"""(kind, data) of observations."""

ROW_BYTES = 256 << 20
"""Logits of honest runs that may lie in memory at once."""


@dataclass(frozen=True)
class Number:
    """One measured number, before anybody knows whose.

    Attributes:
        name: as criteria spell it.
        value: NaN where something was not finite.
        unit: "logit", "nat", ...; empty for counts and shares.
        where: where it occurred.
    """

    name: str
    value: float
    unit: str = ""
    where: str = ""


@dataclass(frozen=True)
class Spread:
    """One number over the honest runs."""

    median: float
    largest: float


@dataclass(frozen=True)
class Context:
    """What a measure knows besides the session.

    Attributes:
        case: name, prompt and options.
        tokens: ids of the prompt, (T,), the same for every subject.
        model: sizes of the checkpoint.
        tokenizer: for showing ids as text; None where the vocabulary is unknown.
        seed: of everything random.
        honest: number -> its spread over honest runs in this subject's number format; empty without an envelope.
        truth_session: the reference, for measures that ask it about what the subject recorded.
        bands: for a measure with a function `bands`: names of the recorded tensors -> what it keeps of honest runs
            in the subject's number format.
    """

    case: Case
    tokens: Ids
    model: ModelFacts
    tokenizer: Tokenizer | None = None
    seed: int = 0
    honest: Mapping[str, Spread] = field(default_factory=dict)
    truth_session: Session | None = None
    bands: Callable[[tuple[str, ...]], Any] | None = None

    def largest(self, name: str) -> float:
        """The largest value of a number over the honest runs; 0 without an envelope."""
        return self.honest[name].largest if name in self.honest else 0.0

    def piece(self, token: int) -> str:
        """A token as people read it: Python's escapes, bytes outside UTF-8 in hexadecimal, no token by number."""
        if self.tokenizer is None:
            return f"#{token}"
        try:
            raw = self.tokenizer.decode_bytes([token])
        except InputError:  # checkpoints pad their vocabulary: 65536 rows for 65530 tokens
            return f"#{token}"
        try:
            text = raw.decode("utf-8")
        except UnicodeDecodeError:
            return raw.decode("latin-1").encode("unicode_escape").decode()
        return text if text.isprintable() else text.encode("unicode_escape").decode()

    def text(self, ids: Sequence[int]) -> str:
        """Several tokens as text; what is no UTF-8 shows as replacement characters, ids of no token by number."""
        if self.tokenizer is None:
            return " ".join(map(str, ids))
        try:
            return self.tokenizer.decode_bytes(list(ids)).decode("utf-8", "replace")
        except InputError:
            return " ".join(map(self.piece, ids))


class Measure(Protocol):
    """The shape of a module in this package."""

    def collect(self, session: Session, context: Context, truth: Sample | None, rows: int = 1) -> list[Sample]:
        """Run the case; `rows` > 1 asks for that many independent runs as rows of a batch."""

    def compare(self, got: Sample, truth: Sample, context: Context) -> list[Number]:
        """Numbers of one run against the truth."""

    def observe(self, got: Sample, truth: Sample, context: Context) -> Evidence:
        """Evidence for tables and plots."""


def all_logits(session: Session, tokens: Ids, rows: int = 1) -> Iterator[Array]:
    """Logits (T, V) after every token, one array a row; (1, V) from a session that only gives the last.

    Many rows are run in batches small enough for memory.
    """
    want = Want(logits="all" if "logits-all" in session.info.abilities else "last")
    step = max(1, ROW_BYTES // (4 * len(tokens) * session.info.model.vocab_size))
    for start in range(0, rows, step):
        batch = np.tile(tokens, (min(step, rows - start), 1))
        logits = session.forward(batch, want=want).logits
        expected = (len(batch), len(tokens) if want.logits == "all" else 1)
        if logits is None or logits.shape[:2] != expected:
            got = "none" if logits is None else f"logits of shape {logits.shape}"
            raise BackendError(f"asked for {want.logits} logits of (B, T) = {batch.shape}, got {got}")
        yield from logits


def parted(tokens: Ids, pieces: int) -> list[Ids]:
    """Tokens cut into at most `pieces` runs of nearly equal length, none empty."""
    return [part for part in np.array_split(tokens, min(pieces, len(tokens))) if len(part)]
