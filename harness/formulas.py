"""What every named tensor is, in one line each: for sentences to porters and for the kit's README. Loads no torch."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any


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
def formulas(version: str = "7") -> Mapping[str, Formula]:
    """Short name ("att.w") -> its line, in the order of evaluation.

    Args:
        version: of RWKV; one that is not known has no formulas.
    """
    own = _read("formulas_versions.toml")
    if version == "7":
        return {name: Formula(**row) for name, row in _read("formulas.toml").items()}
    if version not in own:
        return {}
    lines: dict[str, Formula] = {}
    for other in (version, *own[version]["after"]):
        rows = formulas("7") if other == "7" else {n: Formula(*row) for n, row in own[other]["lines"].items()}
        lines = {**rows, **lines}
    return {name: lines[name] for name in own[version]["order"].split()}


def formula(short: str, version: str = "7") -> str:
    """What a tensor is made of; empty for an unknown name."""
    found = formulas(version).get(short)
    return found.formula if found else ""


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((files("harness") / name).read_text(encoding="utf-8"))
