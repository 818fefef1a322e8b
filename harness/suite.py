"""Suites as data: cases, needs and what is measured, from `suites/*.toml`. An unknown key is an error."""

import tomllib
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any

from backends.base import ABILITIES
from backends.errors import HarnessError, unknown

DEFAULT = (
    "tokenization",
    "logits",
    "distribution",
    "stepwise",
    "consistency",
    "generation",
    "state",
    "layers",
    "speed",
)
"""Suites of a plain `validate`, in the order of the document."""


@dataclass(frozen=True)
class Prompt:
    """A named text.

    Attributes:
        text: the text itself.
        world: its ids under the World tokenizer, where somebody independent has published them.
    """

    text: str
    world: tuple[int, ...] = ()


@dataclass(frozen=True)
class Case:
    """One thing to run.

    Attributes:
        name: unique in its suite.
        prompt: name of a text in prompts.toml; the case's own name if left out.
        options: what the suite's measure reads besides ("new_tokens", "splits", ...).
    """

    name: str
    prompt: str
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """The prompt's text."""
        return prompts()[self.prompt].text


@dataclass(frozen=True)
class Suite:
    """One question that is put to every subject.

    Attributes:
        name: as in `--suite`.
        version: raised when cases or measures change so that old numbers no longer compare.
        question: what the suite asks, in words.
        needs: abilities without which a subject is *unsupported*.
        measure: module of harness.measures that collects and compares.
        envelope: whether honest runs are measured too, so that limits can hang on them.
        options: every case starts from these.
    """

    name: str
    version: int
    question: str
    measure: str
    cases: tuple[Case, ...]
    needs: tuple[str, ...] = ()
    envelope: bool = False

    def facts(self) -> dict[str, Any]:
        """What a record keeps of it."""
        cases = [{"name": case.name, "prompt": case.text, **case.options} for case in self.cases]
        return {"name": self.name, "version": self.version, "question": self.question, "cases": cases}


@cache
def prompts() -> dict[str, Prompt]:
    """Every prompt in the package, by name."""
    table = tomllib.loads((files("harness") / "prompts.toml").read_text(encoding="utf-8"))
    return {name: Prompt(row["text"], tuple(row.get("world", ()))) for name, row in table.items()}


@cache
def names() -> tuple[str, ...]:
    """Every suite in the package; those of DEFAULT first and in its order."""
    found = sorted(item.name.removesuffix(".toml") for item in (files("harness") / "suites").iterdir())
    return (*(name for name in DEFAULT if name in found), *(name for name in found if name not in DEFAULT))


@cache
def load(name: str) -> Suite:
    """Read one suite.

    Raises:
        UsageError: no suite of that name.
        HarnessError: the file has a key that nothing reads.
    """
    if name not in names():
        raise unknown("suite", name, names())
    return parse((files("harness") / "suites" / f"{name}.toml").read_text(encoding="utf-8"), name)


def parse(text: str, name: str) -> Suite:
    """A suite from its TOML text; see `load`."""
    data = tomllib.loads(text)
    common = data.pop("options", {})
    allowed = {"version", "question", "needs", "measure", "envelope", "cases"}
    surplus = set(data) - allowed
    if surplus:
        raise HarnessError(
            f"suite {name}: unknown key {', '.join(sorted(surplus))}; known: {', '.join(sorted(allowed))}."
        )
    if not {"version", "question", "cases"} <= set(data):
        raise HarnessError(f"suite {name}: version, question and cases are needed.")
    rows = data.pop("cases")
    cases = tuple(_case(name, row if isinstance(row, dict) else {"name": row}, common) for row in rows)
    if len({case.name for case in cases}) != len(cases):
        raise HarnessError(f"suite {name}: two cases have one name; a record could not tell them apart.")
    needs = tuple(data.pop("needs", ()))
    if set(needs) - set(ABILITIES):
        raise HarnessError(f"suite {name} needs {', '.join(sorted(set(needs) - set(ABILITIES)))}, which is no ability.")
    return Suite(name=name, cases=cases, needs=needs, **{"measure": name, **data})


def _case(suite: str, row: dict[str, Any], common: dict[str, Any]) -> Case:
    options = {**common, **row}
    name = options.pop("name")
    prompt = options.pop("prompt", name)
    if prompt not in prompts():
        raise HarnessError(f"suite {suite}, case {name}: {unknown('prompt', prompt, prompts())}")
    return Case(name, prompt, options)
