"""A session without a model, and short runs of the harness, for tests."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backends.base import ABILITIES, Array, Ids, Info, ModelFacts, Output, Session, State, Want
from backends.tokenizer import open_tokenizer
from harness import suite
from harness.job import make_job
from harness.measures.base import Context, Number, Spread
from harness.run import run
from harness.suite import Case
from reports.record import Record, Verdict

FACTS = ModelFacts(
    name="stub", version="7", evidence="made by a test", vocab_size=256, n_embd=4, n_layer=1, n_head=1,
    head_size=4, n_ffn=16, parameters=1000, tokenizer="bytes",
)  # fmt: skip

QUIET: Callable[[Any], None] = lambda _: None  # noqa: E731


class Stub(Session):
    """Logits that prefer the token after the last one; `step` is told of every forward."""

    def __init__(
        self, step: Callable[[Ids], None] = QUIET, abilities: tuple[str, ...] = ABILITIES, **facts: Any
    ) -> None:
        self.info = Info("stub", FACTS, abilities=frozenset(abilities), **facts)
        self.tokenizer = open_tokenizer("bytes")
        self.step = step

    def _forward(self, tokens: Ids, state: Any, want: Want) -> Output:
        self.step(tokens)
        logits = np.zeros((*tokens.shape, 256), dtype=np.float32)
        np.put_along_axis(logits, (tokens[..., None] + 1) % 256, 1.0, axis=-1)
        return Output(logits=logits[:, -1:] if want.logits == "last" else logits, state=0)

    def export_state(self, state: Any) -> State:
        return State(np.ones((1, 1, 4)), np.ones((1, 1, 1, 4, 4)), np.ones((1, 1, 4)))

    def import_state(self, state: State) -> Any:
        return 0


def context(ids: Array | list[int], honest: dict[str, float] | None = None, /, **options: Any) -> Context:
    """A context over bytes; `honest` is the largest of the honest runs by number."""
    spreads = {name: Spread(value, value) for name, value in (honest or {}).items()}
    case = Case("case", "fibonacci", options)
    return Context(case, np.asarray(ids, dtype=np.int64), FACTS, open_tokenizer("bytes"), honest=spreads)


def measured(
    *subjects: str, suites: tuple[str, ...], runs: int = 2, keep: Callable[[Record], None] = QUIET, **settings: Any
) -> Record:
    """One run on the designed checkpoint."""
    earlier = settings.pop("earlier", None)
    model = settings.pop("model", "conformance")
    job = make_job(model, subjects, suites, honest_runs=runs, **{"threads": 1, **settings})
    return run(job, QUIET, keep, earlier)


def outcomes(record: Record, subject: str = "", suite: str = "") -> dict[str, str]:
    """Criterion -> the worst outcome over the cases."""
    order = ("pass", "skipped", "unsupported", "fail", "error")
    chosen = [v for v in record.verdicts if subject in ("", v.subject) and suite in ("", v.suite)]
    worst: dict[str, str] = {}
    for v in sorted(chosen, key=lambda v: order.index(v.outcome.value)):
        worst[v.criterion] = v.outcome.value
    return worst


def verdict_of(record: Record, criterion: str, subject: str) -> Verdict:
    """The first verdict of a criterion on a subject."""
    return next(v for v in record.verdicts if (v.criterion, v.subject) == (criterion, subject))


def small_suites(patch: pytest.MonkeyPatch, most: int = 2) -> None:
    """Every suite with so many cases at most, on shorter texts; of sampling both kinds, distributions and prompts."""
    loaded = {name: suite.load(name) for name in suite.names()}
    chosen = {name: found.cases[:most] for name, found in loaded.items()}
    chosen["sampling"] = (loaded["sampling"].cases[0], loaded["sampling"].cases[-1])[:most]
    small = {name: replace(found, cases=tuple(map(_short, chosen[name]))) for name, found in loaded.items()}
    patch.setattr(suite, "load", small.__getitem__)


def _short(case: Case) -> Case:
    options = {"positions": [1, 16, 64], "chunks": [1, 16, 17], "tokens": 40}
    kept = {name: options.get(name, value) for name, value in case.options.items()}
    return replace(case, prompt="prose" if case.prompt == "long" else case.prompt, options=kept)


def numbers(found: list[Number]) -> dict[str, float]:
    return {number.name: number.value for number in found}


def where(found: list[Number], name: str) -> str:
    return next(number.where for number in found if number.name == name)


def evidence(found: Iterator[tuple[str, dict[str, Any]]]) -> dict[str, dict[str, Any]]:
    return dict(found)
