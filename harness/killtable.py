"""Kill tables: who was caught by which criterion, in one number format; how they add up, and where they are kept."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from backends.fault_list import FAULTS
from harness.run import code_hash
from reports.store import write_atomically

FAULT, EQUIVALENT, HONEST = "fault", "equivalent", "honest"
"""Roles of those that are tried."""

NO_EFFECT = 1e-10
"""A fault that moves nothing by more, in float64 and relative, cannot matter on a checkpoint."""

FOLDER = "cache"
"""Folder inside --out."""

ADDED = ("faults", "killed", "equivalents", "honest_runs", "false_alarms", "replayed", "localised")
"""Numbers of a summary that add up over number formats."""

SURVIVES = "SURVIVES"

Failed = Mapping[str, Mapping[str, float | None]]
"""Profile -> criterion that failed, the farthest first -> measured over allowed; None where that is no number."""


@dataclass(frozen=True)
class Row:
    """What became of somebody who was tried.

    Attributes:
        name: of the fault or equivalent, or "seed 7".
        role: one of FAULT, EQUIVALENT, HONEST.
        tensor: short name of what the fault spoils.
        failed: the criteria of every profile that failed.
        first: first tensor that replay found out of its band; empty if none.
        named: whether that is the spoiled tensor or the first that reads it; None where replay found nothing.
        broke: why a case has no numbers; empty if all have.
        seconds: that it took.
        effect: of a survivor in float64, relative; None where nobody looked.
    """

    name: str
    role: str
    tensor: str
    failed: Failed
    first: str = ""
    named: bool | None = None
    broke: str = ""
    seconds: float = 0.0
    effect: float | None = None

    @property
    def matters(self) -> bool:
        """Whether it could be seen at all."""
        return self.effect is None or self.effect > NO_EFFECT

    def caught(self, profile: str) -> bool:
        """Whether a criterion of the profile failed, or an innocent broke."""
        return bool(self.failed[profile]) or (bool(self.broke) and self.role != FAULT)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        failed = {p: {criterion: _spelt(ratio) for criterion, ratio in by.items()} for p, by in self.failed.items()}
        return {**asdict(self), "failed": failed, "seconds": round(self.seconds, 3), "effect": _spelt(self.effect)}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> "Row":
        """Inverse of `plain`."""
        failed = {p: {criterion: _number(ratio) for criterion, ratio in by.items()} for p, by in data["failed"].items()}
        return cls(**{**data, "failed": failed, "effect": _number(data["effect"])})


def _spelt(value: float | None) -> float | str | None:
    """Four digits; JSON has no infinity."""
    if value is None or math.isfinite(value):
        return None if value is None else float(f"{value:.4g}")
    return str(value)


def _number(value: float | str | None) -> float | None:
    return None if value is None else float(value)


@dataclass(frozen=True)
class Table:
    """Everybody who was tried in one number format.

    Attributes:
        model: as `--model` was given.
        dtype: the number format.
        suites: what they were put to.
        rows: faults, equivalents, honest runs.
        seconds: its share of the time that passed.
    """

    model: str
    dtype: str
    suites: tuple[str, ...]
    rows: tuple[Row, ...]
    seconds: float

    def of(self, role: str) -> list[Row]:
        """The rows of a role; of the faults those that can matter."""
        return [row for row in self.rows if row.role == role and row.matters]

    def summary(self, profile: str) -> dict[str, Any]:
        """Rates of a profile, as plain data; docs/power.md says what each is."""
        faults, innocent = self.of(FAULT), [*self.of(EQUIVALENT), *self.of(HONEST)]
        alarms = [row.name for row in innocent if row.caught(profile)]
        return {
            "faults": len(faults),
            "killed": sum(row.caught(profile) for row in faults),
            "survivors": [row.name for row in faults if not row.caught(profile)],
            "cannot_matter": [row.name for row in self.rows if not row.matters],
            "equivalents": len(self.of(EQUIVALENT)),
            "honest_runs": len(self.of(HONEST)),
            "false_alarms": len(alarms),
            "alarms": alarms,
            "replayed": sum(row.named is not None for row in faults),
            "localised": sum(row.named is True for row in faults),
            "seconds": round(self.seconds, 1),
        }

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return {**asdict(self), "rows": [row.plain() for row in self.rows]}

    @classmethod
    def from_plain(cls, data: Mapping[str, Any]) -> "Table":
        """Inverse of `plain`."""
        rows = tuple(Row.from_plain(row) for row in data["rows"])
        return cls(data["model"], data["dtype"], tuple(data["suites"]), rows, data["seconds"])


def evidence(tables: Sequence[Table], profiles: Sequence[str]) -> dict[str, Any]:
    """Tables as one object: what `--json` prints and a report draws.

    Args:
        tables: one a number format, at least one.
        profiles: whose rates; the first gives the totals.
    """
    by_dtype = {table.dtype: table.summary(profiles[0]) for table in tables}
    totals: dict[str, Any] = {name: sum(row[name] for row in by_dtype.values()) for name in ADDED}
    for name in ("survivors", "alarms"):
        totals[name] = [f"{item}@{dtype}" for dtype, row in by_dtype.items() for item in row[name]]
    totals["cannot_matter"] = sorted({name for row in by_dtype.values() for name in row["cannot_matter"]})
    summaries = {row.name: row.summary for row in FAULTS.values()}
    tried = {row.name for table in tables for row in table.rows if row.role == FAULT}
    return {
        "model": tables[0].model,
        "profile": profiles[0],
        "suites": list(tables[0].suites),
        **totals,
        "seconds": round(sum(table.seconds for table in tables), 1),
        "dtypes": by_dtype,
        "beside": {profile: {t.dtype: t.summary(profile) for t in tables} for profile in profiles[1:]},
        "summaries": {name: words for name, words in summaries.items() if name in tried},
        "rows": {table.dtype: [row.plain() for row in table.rows] for table in tables},
    }


def exit_code(found: Mapping[str, Any]) -> int:
    """0 if nothing survives and nobody is accused wrongly, 5 if no fault was tried, else 1."""
    if not found["faults"]:
        return 5
    return int(bool(found["survivors"]) or bool(found["false_alarms"]))


def key(model: str, dtype: str, profile: str) -> str:
    """Key of a table: the checkpoint's content, profile, number format, and the program itself."""
    found = hashlib.sha256(f"{code_hash()} {dtype} {profile} ".encode())
    path = Path(model).expanduser()
    if path.exists():
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            if file.is_file():
                with file.open("rb") as opened:
                    found.update(hashlib.file_digest(opened, "sha256").digest())
    else:
        found.update(model.encode())  # made by code, which is in the key, or the name of something on a hub
    return found.hexdigest()[:16]


def _file(folder: Path, model: str, dtype: str, profile: str) -> Path:
    return folder / FOLDER / f"power-{key(model, dtype, profile)}.json"


def keep(folder: Path, table: Table, profile: str) -> Path:
    """Write a table into the cache inside `folder`."""
    path = _file(folder, table.model, table.dtype, profile)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(table.plain(), indent=1) + "\n")
    return path


def kept(folder: Path, model: str, dtype: str, profile: str) -> Table | None:
    """The table of the same checkpoint, profile, format and program, if there is one that can be read."""
    if not any((folder / FOLDER).glob("power-*.json")):  # hashing a checkpoint takes time
        return None
    try:
        return Table.from_plain(json.loads(_file(folder, model, dtype, profile).read_text(encoding="utf-8")))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def lines(found: Mapping[str, Any]) -> Iterator[str]:
    """What the terminal shows of `evidence`: a kill table a number format, survivors first, then the rates."""
    others = list(found["beside"])
    for dtype, rows in found["rows"].items():
        faults = sorted((row for row in rows if row["role"] == FAULT), key=partial(_margin, found["profile"]))
        cells = [["fault", "tensor", "killed by", "margin", "first out of band", *others]]
        cells += [_cells(row, found, others) for row in faults]
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        yield f"{found['model']}, {dtype}, profile {found['profile']}"
        yield from ("  " + "  ".join(map(str.ljust, row, widths)).rstrip() for row in cells)
    yield from _rates(found)


def _margin(profile: str, row: Mapping[str, Any]) -> float:
    """By how much a fault failed; survivors sort first, what has no number last."""
    ratios = list(row["failed"][profile].values())
    return math.inf if ratios and ratios[0] is None else float(ratios[0]) if ratios else 0.0


def _cells(row: Mapping[str, Any], found: Mapping[str, Any], others: Sequence[str]) -> list[str]:
    """One fault: by what it was killed and how many more, by how much, and what replay found first."""
    by = row["failed"][found["profile"]]
    more = f" +{len(by) - 1}" if len(by) > 1 else ""
    killed = f"{next(iter(by))}{more}" if by else SURVIVES
    if row["name"] in found["cannot_matter"]:
        killed = "cannot matter here"
    ratio = next(iter(by.values()), None)
    first = row["first"] + (" (another)" if row["named"] is False else "")
    beside = ["killed" if row["failed"][profile] else "-" for profile in others]
    return [
        row["name"],
        row["tensor"],
        killed,
        "-" if ratio is None else f"{float(ratio):.3g} x",
        first or "-",
        *beside,
    ]


def _rates(found: Mapping[str, Any]) -> Iterator[str]:
    """The profiles side by side, and everybody who needs a second look."""
    for profile, by_dtype in {found["profile"]: found["dtypes"], **found["beside"]}.items():
        for dtype, row in by_dtype.items():
            innocent = row["equivalents"] + row["honest_runs"]
            told = f"killed {row['killed']} of {row['faults']}, {row['false_alarms']} false alarms of {innocent}"
            named = f", first tensor out named {row['localised']} of {row['replayed']}" if row["replayed"] else ""
            yield f"{profile} {dtype}: {told}{named}"
    for name in found["survivors"]:
        yield f"survives {name}: {found['summaries'][name.rpartition('@')[0]]}"
    for name in found["alarms"]:
        yield f"false alarm {name}: {_accused(found, *name.rsplit('@', 1))}"
    if found["cannot_matter"]:
        yield f"cannot matter on {found['model']}, by float64: {', '.join(found['cannot_matter'])}"


def _accused(found: Mapping[str, Any], name: str, dtype: str) -> str:
    """By which criteria, or how it broke."""
    row = next(row for row in found["rows"][dtype] if row["name"] == name and row["role"] != FAULT)
    by = row["failed"][found["profile"]]
    told = [name if ratio is None else f"{name} at {float(ratio):.3g} x" for name, ratio in by.items()]
    return ", ".join(told) or str(row["broke"])
