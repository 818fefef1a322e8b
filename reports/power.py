"""The power of the gate: how many known mistakes it would have caught, and whom it accuses wrongly."""

from collections.abc import Mapping
from typing import Any

from reports import views
from reports.document import Block, Blocks, Cell, Fold, say, table
from reports.record import Record
from reports.text import MISSING, Span, code, listed, number_of, plural, rich, times

MOST = 12
"""Names that a sentence holds."""


def _found(record: Record) -> dict[str, Any] | None:
    seen = views.evidence(record, "power")
    return seen[-1].data if seen else None


def line(record: Record) -> str:
    """The power in one line; empty where it was not measured."""
    found = _found(record)
    if found is None:
        return ""
    killed = [f"{row['killed']} of {row['faults']} at {dtype}" for dtype, row in found["dtypes"].items()]
    innocent = found["equivalents"] + found["honest_runs"]
    alarms = plural(found["false_alarms"], "false alarm")
    return f"planted faults killed: {', '.join(killed)}; {alarms} in {innocent} equivalents and honest runs"


def power(record: Record) -> Blocks:
    """What the profile catches on this checkpoint; absent where nobody measured it."""
    found = _found(record)
    if found is None:
        return ()
    blocks: list[Block] = [say(*_opening(found)), _rates(found), *_remarks(found)]
    return (*blocks, *(_kills(found, dtype) for dtype in found["rows"]))


def _opening(found: Mapping[str, Any]) -> list[str | Span]:
    suites = listed([str(name) for name in found["suites"]])
    return [
        "Known porting mistakes were planted into the equations, and each was judged as any subject is, on a ",
        f"selection of the suites {suites}. A fault is killed if a criterion of the profile fails. An equivalent form ",
        "or an honest run that fails is a false alarm: where those are many, kills mean little.",
    ]


def _rates(found: Mapping[str, Any]) -> Block:
    """The profiles side by side."""
    rows: list[list[Cell]] = []
    for profile, by_dtype in {found["profile"]: found["dtypes"], **found["beside"]}.items():
        for dtype, row in by_dtype.items():
            innocent = row["equivalents"] + row["honest_runs"]
            alarms = Span(f"{row['false_alarms']} of {innocent}", "fail" if row["false_alarms"] else "pass")
            named = f"{row['localised']} of {row['replayed']}" if row["replayed"] else MISSING
            rows.append([code(profile), dtype.upper(), f"{row['killed']} of {row['faults']}", alarms, named])
    columns = ["Profile", "Dtype", "Faults killed", "False alarms", "First tensor out of band names the fault"]
    return table(columns, rows, "Power of the profiles", "llrrr")


def _remarks(found: Mapping[str, Any]) -> list[Block]:
    """Who survived, who was accused wrongly, what cannot be seen here at all."""
    said = (
        ("Survivors: ", found["survivors"]),
        ("False alarms: ", found["alarms"]),
        ("Cannot matter on this checkpoint, by float64, and not counted: ", found["cannot_matter"]),
    )
    return [say(Span(words, "strong"), listed(names, MOST), ".") for words, names in said if names]


def _kills(found: Mapping[str, Any], dtype: str) -> Block:
    """Every fault of a number format, the least clearly killed first."""
    faults = [row for row in found["rows"][dtype] if row["role"] == "fault"]
    faults.sort(key=lambda row: _margin(row, found["profile"]))
    rows = [_kill(row, found) for row in faults]
    columns = ["Fault", "What it is", "Tensor", "Killed by", "Margin", "First out of band"]
    return Fold(
        rich(f"Kill table at {dtype}: {plural(len(rows), 'fault')}"),
        (table(columns, rows, f"Faults at {dtype}", "llllrl"),),
    )


def _margin(row: Mapping[str, Any], profile: str) -> float:
    """Survivors first; what failed by no ratio last."""
    ratios = list(row["failed"][profile].values())
    return (number_of(ratios[0]) or float("inf")) if ratios else 0.0


def _kill(row: Mapping[str, Any], found: Mapping[str, Any]) -> list[Cell]:
    by = row["failed"][found["profile"]]
    ratio = number_of(next(iter(by.values()), None))
    more = f" and {len(by) - 1} more" if len(by) > 1 else ""
    killed: Cell = rich(code(next(iter(by))), more) if by else Span("survives", "fail")
    if row["name"] in found["cannot_matter"]:
        killed = "cannot matter here"
    return [
        code(row["name"]),
        str(found["summaries"].get(row["name"], "")),
        code(row["tensor"]),
        killed,
        MISSING if ratio is None else times(ratio),
        code(row["first"]) if row["first"] else MISSING,
    ]
