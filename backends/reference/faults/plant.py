"""How a fault is planted: a decorator that files a spoiled equation under the fault's name."""

from collections.abc import Callable, Iterator, Mapping

from backends import fault_list
from backends.fault_list import Entry
from backends.reference.equations import Equation
from backends.reference.forms import FORMS

Planted = Mapping[str, Equation]
"""Pattern of full tensor names -> the equation to use instead."""

LATER = "blocks.[!0]*."
"""Every block but the first, whose value residual has an equation of its own."""

EQUATIONS: dict[tuple[str, str], dict[str, Equation]] = {}
"""Fault and RWKV version -> what it overrides."""

WIRINGS: dict[str, Callable[[], Planted]] = {}
"""Fault -> maker of its overrides, where they share something and every session needs its own."""


def pattern(tensor: str) -> str:
    """Full names of a tensor in all blocks: "att.w" -> "blocks.*.att.w", "head" -> "head"."""
    return f"blocks.*.{tensor}" if tensor.startswith(("att.", "ffn.", "qkv.")) else tensor


def plant(name: str, *patterns: str, versions: tuple[str, ...] = ()) -> Callable[[Equation], Equation]:
    """File the decorated equation under a fault.

    Args:
        name: a row of `backends.fault_list`.
        patterns: of full tensor names; none stands for the row's tensor in every block.
        versions: of RWKV whose equations take these parameters; none stands for the row's.
    """

    def file(equation: Equation) -> Equation:
        entry = _entry(name)
        where = patterns or (pattern(entry.tensor),)
        for version in versions or entry.versions:
            EQUATIONS.setdefault((name, version), {}).update(dict.fromkeys(where, equation))
        return equation

    return file


def wire(name: str) -> Callable[[Callable[[], Planted]], Callable[[], Planted]]:
    """File the decorated maker of overrides under a fault."""

    def file(maker: Callable[[], Planted]) -> Callable[[], Planted]:
        WIRINGS[name] = maker
        return maker

    return file


def overrides(name: str, version: str) -> Planted:
    """What a fault or an equivalent form overrides in a version; a fresh set where a session needs its own."""
    if name in FORMS:
        where, _, other = FORMS[name]
        return {where: other}
    return WIRINGS[name]() if name in WIRINGS else EQUATIONS.get((name, version), {})


def filed() -> Iterator[str]:
    """Names of all faults that have an equation."""
    yield from dict.fromkeys(name for name, _ in EQUATIONS)
    yield from WIRINGS
    yield from FORMS


def _entry(name: str) -> Entry:
    entry = fault_list.find(name)
    assert entry is not None, f"{name} has no row in backends/fault_list.py"
    return entry
