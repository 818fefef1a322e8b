"""Power: which known mistakes a profile catches on a checkpoint, and whom it accuses wrongly.

Every planted fault, every equivalent and many honest runs go through a selection of the suites and are judged as
any subject is. A fault is *killed* if a criterion fails; an equivalent or an honest run that fails is a *false
alarm*. What cannot matter on a checkpoint (heads mixed up where there is one) is set aside, by float64.
"""

import os
import shlex
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from backends.errors import UsageError
from backends.fault_list import FAULTS, SAMPLER, TOKENIZER, Entry, applying, pick
from backends.registry import parse
from harness import envelope
from harness.job import Job
from harness.judge import judge, load
from harness.killtable import EQUIVALENT, FAULT, HONEST, Row, Table, evidence, keep, kept
from harness.trials import Call, Honest, Rig, Trial, crew, selection, short
from reports.power import line
from reports.record import Observation, Outcome, Record
from reports.views import excess

DTYPES = ("f32", "bf16")
"""Number formats of a plain run."""

BESIDE = ("strict", "seed")
"""Profiles that are always shown; all judge the same numbers."""

SEEDS = 20
"""Honest runs in every number format; seed 0 is the envelope's own."""

MOST = 8
"""Processes of a plain run; each holds the checkpoint."""


@dataclass(frozen=True)
class Suspect:
    """Somebody to try.

    Attributes:
        name: of the fault or equivalent, or "seed 7".
        role: FAULT, EQUIVALENT or HONEST.
        backend: as `--backend` takes it.
        kind: of the planted fault; empty for the others, who go through everything.
        tensor: short name of what the fault spoils.
    """

    name: str
    role: str
    backend: str
    kind: str = ""
    tensor: str = ""


def suspects(dtype: str, seeds: int = SEEDS, only: Sequence[str] = (), version: str = "7") -> list[Suspect]:
    """Who is tried in a number format.

    Args:
        dtype: "f32", "bf16" or "f16".
        seeds: how many honest runs.
        only: names of faults and equivalents; empty is all.
        version: of RWKV, which decides what mistakes there are.

    Raises:
        UsageError: a name that the catalogue does not have, or a format without honest runs.
    """
    if dtype not in envelope.FORMATS:
        raise UsageError(f"power has no number format {dtype!r}; known: {', '.join(envelope.FORMATS)}.")
    asked = {pick(name, version).name for name in only}
    planted = [_planted(row, dtype) for row in applying(version).values() if not only or row.name in asked]
    honest = [parse(f"honest:{seed}@{dtype}").id for seed in range(1, seeds + 1)]
    return [*planted, *(Suspect(f"seed {n}", HONEST, backend) for n, backend in enumerate(honest, 1))]


def _planted(entry: Entry, dtype: str) -> Suspect:
    backend = parse(f"fault:{entry.name}@{dtype}").id
    if entry.equivalent:
        return Suspect(entry.name, EQUIVALENT, backend, "", entry.tensor)
    return Suspect(entry.name, FAULT, backend, entry.kind, entry.tensor)


def judged(suspect: Suspect, trial: Trial, profiles: Sequence[str]) -> Row:
    """What each profile says about a trial."""
    failed = {profile: dict(_failed(trial.record, profile)) for profile in profiles}
    seen = trial.record.observations
    broke = [o.data["detail"] for o in seen if o.kind == "event" and o.data["outcome"] == Outcome.ERROR.value]
    found = [o.data["first"]["tensor"] for o in seen if o.kind == "layers" and o.data["first"]]
    named = short(found[0]) in trial.named if found and suspect.role == FAULT else None
    first = found[0] if found else ""
    return Row(
        suspect.name, suspect.role, suspect.tensor, failed, first, named, "".join(broke[:1]), seconds=trial.seconds
    )


def _failed(record: Record, profile: str) -> Iterator[tuple[str, float | None]]:
    """Criterion -> by how much it failed, the farthest first; one without a bound to divide by comes last."""
    worst: dict[str, float] = {}
    for verdict in judge(record, load(profile)):
        if verdict.outcome is Outcome.FAIL:
            ratio = excess(verdict) if verdict.bound else -1.0
            worst[verdict.criterion] = max(worst.get(verdict.criterion, -1.0), ratio)
    for name in sorted(worst, key=lambda name: -worst[name]):
        yield name.partition("/")[2], worst[name] if worst[name] >= 0 else None


def shown(profile: str) -> tuple[str, ...]:
    """The profile that was asked for, and those beside it."""
    return tuple(dict.fromkeys([profile, *BESIDE]))


def measure(
    model: str,
    dtypes: Sequence[str],
    profile: str,
    processes: int,
    progress: Callable[[str], None],
    seeds: int = SEEDS,
    only: Sequence[str] = (),
) -> list[Table]:
    """Try everybody in every number format.

    Args:
        model: the checkpoint.
        dtypes: number formats, at least one.
        profile: whose survivors are looked at again in float64.
        processes: that share the work; 0 takes one a core, and one for a large file; with one, this process does it.
        progress: told how far the work is.
        seeds: honest runs in every format.
        only: names of faults and equivalents; empty is all.

    Raises:
        InputError: the checkpoint cannot be opened.
        BackendError: the reference cannot serve it, or a process died.
    """
    version = _version(model)
    everybody = {dtype: suspects(dtype, seeds, only, version) for dtype in dict.fromkeys(dtypes)}
    queue = [suspect for tried in everybody.values() for suspect in tried]
    processes = min(processes or _processes(model), len(queue))
    progress(f"opening {model}")
    began = time.monotonic()
    rows = []
    with crew(model, processes, threads=int(processes > 1)) as call:
        honest = dict(zip(everybody, call(Rig.honest, everybody), strict=True))
        tasks = [(honest[dtype], suspect) for dtype, tried in everybody.items() for suspect in tried]
        for suspect, trial in zip(queue, call(_try, tasks), strict=True):
            rows.append(judged(suspect, trial, shown(profile)))
            progress(f"{len(rows)} of {len(queue)} tried, {time.monotonic() - began:.0f} s: {suspect.backend}")
        effects = _effects(call, rows, profile)
    rows = [replace(row, effect=effects.get(row.name)) for row in rows]
    return list(_tables(model, {d: len(tried) for d, tried in everybody.items()}, rows, time.monotonic() - began))


def _version(model: str) -> str:
    """Of RWKV."""
    from backends.checkpoint import open_checkpoint

    with open_checkpoint(model) as weights:
        return weights.facts.version


def tables(
    model: str, dtypes: Sequence[str], profile: str, folder: Path, fresh: bool, **settings: Any
) -> tuple[list[Table], bool]:
    """Kill tables from the cache, or measured and put there; what is tried with restrictions is not kept.

    Args:
        model: the checkpoint.
        dtypes: number formats.
        profile: whose verdicts count.
        folder: --out, where the cache is.
        fresh: measure again what the cache has.
        settings: of `measure`.

    Returns:
        A table a number format, and whether all of them were in the cache.
    """
    whole = not settings.get("only") and settings.get("seeds", SEEDS) == SEEDS
    found = {d: None if fresh or not whole else kept(folder, model, d, profile) for d in dict.fromkeys(dtypes)}
    missing = [dtype for dtype, table in found.items() if table is None]
    for table in measure(model, missing, profile, **settings) if missing else ():
        found[table.dtype] = table
        if whole:
            keep(folder, table, profile)
    return [table for table in found.values() if table], not missing


def _processes(model: str) -> int:
    """One a core; only one where a checkpoint is so large that several copies would not fit."""
    path = Path(model).expanduser()
    small = not path.is_file() or path.stat().st_size < 4 * envelope.SMALL
    return min(os.cpu_count() or 1, MOST) if small and not model.startswith("synthetic") else 1


def _try(rig: Rig, task: tuple[Honest, Suspect]) -> Trial:
    honest, suspect = task
    return rig.trial(honest, suspect.backend, suspect.kind, suspect.tensor)


def _effects(call: Call[Any, Any], rows: Iterable[Row], profile: str) -> dict[str, float]:
    """Effect in float64 of every mistake in the numbers that survived somewhere."""
    numeric = {name for name, entry in FAULTS.items() if entry.kind not in (TOKENIZER, SAMPLER)}
    names = list(dict.fromkeys(row.name for row in rows if row.name in numeric and not row.caught(profile)))
    return dict(zip(names, call(Rig.effect, names), strict=True))


def _tables(model: str, lengths: Mapping[str, int], rows: Sequence[Row], seconds: float) -> Iterator[Table]:
    """Rows by number format; the time that passed is shared out by the time that they took."""
    suites = tuple(found.name for found in selection())
    busy, start = sum(row.seconds for row in rows), 0
    for dtype, length in lengths.items():
        part = tuple(rows[start : start + length])
        start += length
        yield Table(model, dtype, suites, part, seconds * sum(row.seconds for row in part) / busy)


def known(job: Job, folder: Path) -> Observation | None:
    """The power of the gate that a job goes through, if it was measured on this checkpoint by this program.

    A job of fewer suites is another gate: nothing is known about it.

    Args:
        job: of a run.
        folder: --out, where the cache is.
    """
    if not _whole(job.suites):
        return None
    found = [kept(folder, job.model, dtype, job.profile) for dtype in envelope.FORMATS]
    tables = [table for table in found if table]
    if not tables:
        return None
    data = evidence(tables, shown(job.profile))
    for dtype, rows in data["rows"].items():  # a record tells of innocents only those who were accused
        data["rows"][dtype] = [row for row in rows if row["role"] == FAULT or row["failed"][job.profile]]
    return Observation("", "", "", "power", data)


def told_of(record: Record, gate: Observation | None) -> Record:
    """A complete record with the power of its gate."""
    if gate is None or record.status != "complete":
        return record
    return replace(record, observations=(*record.observations, gate))


def _whole(suites: Iterable[str]) -> bool:
    """Whether all suites are there that power is measured with."""
    return {found.name for found in selection()} <= set(suites)


def told(record: Record) -> str:
    """One line for the terminal on the gate that a record went through; empty for a part of it."""
    if line(record):
        return f"this gate: {line(record)}"
    if not _whole(str(found["name"]) for found in record.suites):
        return ""
    asked = shlex.join(["--model", str(record.job["model"]), "--profile", str(record.profile["name"])])
    return f"this gate: its power is not known yet; `python -m harness power {asked}` measures it"
