"""What every named tensor is, in one line each: for sentences to porters and for the kit's README. Loads no torch."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class Formula:
    """One named tensor.

    Attributes:
        shape: of one token, in letters.
        formula: what it is made of.
    """

    shape: str
    formula: str


@cache
def formulas() -> Mapping[str, Formula]:
    """Short name ("att.w") -> its line, in the order of evaluation."""
    text = (files("harness") / "formulas.toml").read_text(encoding="utf-8")
    return {name: Formula(**row) for name, row in tomllib.loads(text).items()}


def formula(short: str) -> str:
    """What a tensor is made of; empty for an unknown name."""
    found = formulas().get(short)
    return found.formula if found else ""
