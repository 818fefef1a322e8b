"""A look at use beside the judged run: what every candidate writes and predicts on a trained checkpoint.

A designed checkpoint shows semantics; nobody would read what it writes. Nothing here is judged: `validate --model demo`
does that. It is shown, so that a reader sees language and not only numbers.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from backends.base import Session, Tokenizer, Want
from backends.registry import open_session, parse
from harness.ledger import Ledger, encode, one_line
from harness.metrics import distribution_numbers
from harness.suite import prompts
from reports.record import Observation

if TYPE_CHECKING:
    from backends.weights import Weights

SUITE, CASE, KIND = "use", "append", "use"
PROMPT = '    def append(self, item):\n        """Append an item to the list."""\n        '
LENGTH = 96
"""Tokens that each subject continues the prompt by, greedily."""

TEXT = "code"
"""The prompt of the suites whose bytes every subject predicts."""


def show(ledger: Ledger) -> None:
    """Every candidate that could be opened on the job's `use` checkpoint, beside the reference."""
    from backends.checkpoint import open_checkpoint
    from backends.tokenizer import for_model

    job = ledger.job
    with open_checkpoint(job.use) as weights:
        tokenizer = for_model(weights.facts)
        subjects = [name for name in job.subjects if not ledger.subjects[name].error]
        truth: _Seen | None = None
        for name in (job.reference, *subjects):
            ledger.progress(f"{job.use}: {name}")
            try:
                with np.errstate(all="ignore"), open_session(parse(name), weights, ledger.threads) as session:
                    seen = _Seen(session, weights, tokenizer)
                truth = truth or seen
                data = seen.beside(truth)
            except Exception as error:  # a backend may break in any way; what was judged stays
                data = {"error": one_line(error)}
            ledger.observations.append(Observation(SUITE, CASE, name, KIND, {"model": job.use, **data}))


class _Seen:
    """What one session writes, and predicts of a text."""

    def __init__(self, session: Session, weights: "Weights", tokenizer: Tokenizer | None) -> None:
        size, text = weights.facts.vocab_size, prompts()[TEXT].text
        start = encode(PROMPT, tokenizer, size).tolist()
        self.ids = [int(step[0]) for step in session.generate(start, max_new_tokens=LENGTH)]
        self.written = tokenizer.decode_bytes(self.ids).decode("utf-8", "replace") if tokenizer else ""
        self.text, self.bytes = encode(text, tokenizer, size), len(text.encode())
        logits = session.forward(self.text[:-1], want=Want("all")).logits
        assert logits is not None
        self.logits = logits[0]

    def beside(self, truth: "_Seen") -> dict[str, Any]:
        """Its numbers, and how they stand to the reference's."""
        pairs = zip(self.ids, truth.ids, strict=False)
        same = next((at for at, (mine, other) in enumerate(pairs) if mine != other), min(len(self.ids), len(truth.ids)))
        numbers = distribution_numbers(self.logits, truth.logits, self.text[1:])
        return {
            "prompt": PROMPT,
            "written": self.written,
            "same": same,
            "tokens": len(truth.ids),
            "bits_per_byte": math.log2(numbers["ppl"]) * (len(self.text) - 1) / self.bytes,
            "bytes": self.bytes,
            "kl": numbers["kl_mean"],
        }
