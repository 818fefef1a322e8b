"""A bench record against an earlier one: the same cells of the same subjects on the same machine, or why not."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from backends.errors import InputError
from harness import statistics
from harness.statistics import RESAMPLES, Interval
from reports import store
from reports.record import Observation, Record, Subject

MACHINE = (("cpu", "processor"), ("cores", "number of cores"), ("memory_gib", "memory"))
"""Facts of the environment that have to be the same, with their names."""

SUBJECT = (("threads", "threads"), ("device", "device"), ("device_name", "device"), ("dtype", "number format"))

Key = tuple[str, str, int, int]
"""Subject, what, tokens, batch."""


def timed_record(path: Path) -> Record:
    """An earlier record that has timings.

    Raises:
        InputError: nothing was timed in it.
        RecordError: it cannot be read.
    """
    record = store.load(path)
    if not _timed(record):
        raise InputError(f"{path}: nothing was timed in that run; `python -m harness bench` writes such records.")
    return record


def with_history(record: Record, earlier: Record) -> Record:
    """The record with an observation "history" for every cell of every subject."""
    return replace(record, observations=(*record.observations, *_compared(record, earlier)))


def _compared(record: Record, earlier: Record) -> Iterator[Observation]:
    then, subjects = _timed(earlier), {subject.id: subject for subject in earlier.subjects}
    alike = _machine(record, earlier)
    for key, seen in _timed(record).items():
        own = next((subject for subject in record.subjects if subject.id == seen.subject), None)
        why = alike or _subject(record, earlier, own, subjects.get(seen.subject))
        if not why and key not in then:
            why = "the baseline did not time this cell"
        where = {name: seen.data[name] for name in ("what", "tokens", "batch")}
        data: dict[str, Any] = {**where, "baseline": earlier.id, "created": earlier.created}
        if why:
            data |= {"verdict": "incomparable", "because": why}
        else:
            data |= _ratio(seen.data, then[key].data, _quiet(record) and _quiet(earlier))
        yield Observation(seen.suite, seen.case, seen.subject, "history", data)


def _timed(record: Record) -> dict[Key, Observation]:
    rows = (seen for seen in record.observations if seen.suite == "speed" and seen.kind == "samples")
    return {(seen.subject, seen.data["what"], seen.data["tokens"], seen.data["batch"]): seen for seen in rows}


def _machine(record: Record, earlier: Record) -> str:
    """In what the two runs differ that makes any comparison idle; "" where in nothing."""
    if record.model.get("name") != earlier.model.get("name"):
        return f"the baseline timed the checkpoint {earlier.model.get('name')}"
    return _differs(record.environment, earlier.environment, MACHINE)


def _subject(record: Record, earlier: Record, own: Subject | None, other: Subject | None) -> str:
    """In what a subject was not the same."""
    if own is None or other is None:
        return "the baseline did not time this subject"
    mine, theirs = (dict(one.environment.get("packages") or {}) for one in (record, earlier))
    return _differs(own.info, other.info, SUBJECT) or _differs(mine, theirs, (("torch", "torch"),))


def _differs(mine: Mapping[str, Any], theirs: Mapping[str, Any], keys: tuple[tuple[str, str], ...]) -> str:
    for key, words in keys:
        if mine.get(key) != theirs.get(key):
            return f"another {words}: {theirs.get(key) or 'unknown'} then, {mine.get(key) or 'unknown'} now"
    return ""


def _quiet(record: Record) -> bool:
    """Whether no control of a run says that it was too noisy."""
    controls = [seen.data for seen in record.observations if seen.suite == "speed" and seen.kind == "control"]
    return all(data["verdict"] == "equivalent" for data in controls)


def _ratio(now: Mapping[str, Any], then: Mapping[str, Any], quiet: bool) -> dict[str, Any]:
    """Speed now over speed then; in units of the machine's limits of each run, where both have them."""
    normal = bool(now.get("whole_seconds") and then.get("whole_seconds"))
    ratio = unpaired(_speeds(now, normal), _speeds(then, normal))
    found = statistics.speed_verdict(ratio)
    verdict = found if quiet else "inconclusive"
    because = {} if quiet else {"because": "one of the two runs was too noisy: its control does not read equivalent"}
    data = {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "normalised": normal, "verdict": verdict}
    return data | because


def _speeds(data: Mapping[str, Any], normal: bool) -> npt.NDArray[np.float64]:
    """Samples per second of every round, or in units of what the machine allowed for the whole work.

    What a program leaves out is its gain: the limit that is left for the rest would take that away again.
    """
    seconds = np.asarray(data["seconds"], dtype=np.float64)
    return np.asarray(data["whole_seconds"], dtype=np.float64) / seconds if normal else 1 / seconds


def unpaired(mine: npt.NDArray[np.float64], other: npt.NDArray[np.float64], seed: int = 0) -> Interval:
    """Median over median with its bootstrap interval; each side is resampled by itself, for they were timed apart."""
    random = np.random.default_rng(seed)
    tops, bottoms = (
        np.median(values[random.integers(0, values.size, (RESAMPLES, values.size))], axis=1) for values in (mine, other)
    )
    low, high = np.quantile(tops / bottoms, [(1 - statistics.LEVEL) / 2, (1 + statistics.LEVEL) / 2])
    return Interval(float(np.median(mine) / np.median(other)), float(low), float(high))
