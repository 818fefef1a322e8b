"""A port's dump against a kit: judged without torch by what the kit holds, and by replay where torch is there."""

import importlib.util
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from backends.base import Array, ModelFacts
from backends.dumped import DumpSession
from backends.dumps import Dump
from backends.errors import HarnessError, InputError
from harness import kit, metrics, replay
from harness.agreement import Findings
from harness.diagnose import Clinic
from harness.diagnosis import Diagnosis
from harness.dumps import read, settled
from harness.replay import Error, Vector
from reports.record import Observation

SUITE = "kit"

FREE = 3.0
"""Times the honest band from which a named tensor is away from the truth; as in comparison/strict.toml. Of 32 fresh
honest runs in each of f32, bf16 and f16 on the designed checkpoint none came beyond 1.94 in any tensor."""

SHOWN = 6

TOTALS = ("factor", "share")
"""Parts of an error that are one number over all tokens."""


class Kit:
    """A kit, read.

    Args:
        path: its folder.

    Raises:
        InputError: no kit, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.facts = kit.manifest(path)
        self.model: ModelFacts = kit.facts_of(self.facts)
        self.tokens = np.asarray(self.facts["tokens"], dtype=np.int64)
        self.edge = self.facts["calls"][0] if len(self.facts["calls"]) > 1 else 0
        dump = read(path)
        if not isinstance(dump, Dump) or dump.logits is None:
            raise InputError(f"{path}: the kit holds no expected logits.")
        self.expected: dict[str, Array] = {
            "logits": dump.logits,
            **{f"state.{name}": value for name, value in dump.state.items()},
            **dump.tensors,
        }

    def band(self, dtype: str) -> dict[str, Error]:
        """How far honest runs land from the truth, by tensor."""
        from safetensors.numpy import load_file

        parts: dict[str, dict[str, Any]] = {}
        for key, value in load_file(self.path / kit.BANDS).items():
            stated, name, part = key.split("/")
            if stated == dtype:
                parts.setdefault(name, {})[part] = float(value[0]) if part in TOTALS else value
        return {name: Error(**found) for name, found in parts.items()}

    def shapes(self) -> dict[str, Array]:
        """Every name that a dump may hold -> an array of the shape that is due, as memory that is not touched."""
        model, T = self.model, len(self.tokens)
        state = np.empty((T, model.n_head, model.head_size, model.head_size), dtype=np.float32)
        states = {f"blocks.{layer}.att.state": state for layer in range(model.n_layer)}
        return {**self.expected, **states, "head": self.expected["logits"]}


def check(folder: Path, dump: Dump, name: str, into: Findings) -> None:
    """Judge a dump by a kit.

    Args:
        folder: of the kit.
        dump: what the port wrote.
        name: of the dump, for the record.
        into: collects measurements, evidence and notes.

    Raises:
        InputError: the kit is damaged.
    """
    found = Kit(folder)
    into.model = dict(found.facts["model"])
    if dump.tokens and list(dump.tokens) != found.tokens.tolist():
        into.notes.append("Nothing in common: the dump is of other tokens than the kit's.")
        return
    dump, wrong = settled(dump, found.shapes())
    dump = replace(dump, dtype=dump.dtype or "f32")
    into.add(into.case("shapes", SUITE), "shapes_differ", float(len(wrong)), where=_listed(wrong))
    into.notes += [f"{name}: {reason}, so it was not compared." for name, reason in list(wrong.items())[:SHOWN]]
    band = found.band("f32" if dump.dtype == "f64" else dump.dtype)
    _judge_logits(found, dump, band, into)
    _judge_state(found, dump, band, into)
    free = _free_run(found, dump, band)
    if free:
        worst = max(free, key=lambda key: float(free[key].max()))
        into.add(into.case("tensors", SUITE), "free_run_worst", float(free[worst].max()), "x honest", worst)
    _diagnosed(found, dump, name, free, into)
    _untested(dump, found, into)


def _judge_logits(found: Kit, dump: Dump, band: Mapping[str, Error], into: Findings) -> None:
    if dump.logits is None:
        return
    want = found.expected["logits"][-len(dump.logits) :]
    ratio = _ratio("logits", dump.logits, want, band)
    case = into.case("logits", SUITE)
    at = len(found.tokens) - len(ratio) + int(np.argmax(ratio))
    into.add(case, "worst_ratio", float(ratio.max()), "x honest", f"token {at}")
    into.add(case, "median_ratio", float(np.median(ratio)), "x honest")
    numbers = metrics.logit_numbers(dump.logits, want)
    for measure, unit in (("deviation", ""), ("max_abs", "logit"), ("rms", "logit"), ("top1", "")):
        into.add(case, measure, numbers[measure], unit)


def _judge_state(found: Kit, dump: Dump, band: Mapping[str, Error], into: Findings) -> None:
    ratios = {
        name: _ratio(f"state.{name}", got, found.expected[f"state.{name}"], band) for name, got in dump.state.items()
    }
    if ratios:
        worst = max(ratios, key=lambda key: float(ratios[key].max()))
        where = f"{worst}, layer {int(np.argmax(ratios[worst]))}"
        into.add(into.case("state", SUITE), "worst_ratio", float(ratios[worst].max()), "x honest", where)


def _ratio(name: str, got: Array, want: Array, band: Mapping[str, Error]) -> Vector:
    """Error by token, or by layer of a state, in units of the honest band."""
    honest = band[name]
    if len(want) < len(honest.rms):  # the last position alone
        tail = slice(-len(want), None)
        honest = replace(honest, rms=honest.rms[tail], largest=honest.largest[tail], size=honest.size[tail])
    return replay.ratios({name: replay.error(got, want)}, {name: honest})[name]


def _free_run(found: Kit, dump: Dump, band: Mapping[str, Error]) -> dict[str, Vector]:
    """Named tensors against the truth, in the order of evaluation."""
    order = [name for name in found.expected if name in dump.tensors and name in band]
    return {name: _ratio(name, dump.tensors[name], found.expected[name], band) for name in order}


def _diagnosed(found: Kit, dump: Dump, name: str, free: Mapping[str, Vector], into: Findings) -> None:
    """Replay and the known mistakes where torch can be used; else what a free run tells."""
    reason = _no_replay(found)
    diagnosis = None if reason else _examined(found, dump, name, into)
    if diagnosis is None:
        away = replay.out_of_band(list(free), free, FREE)
        first = away[0] if away else None
        version = found.model.version
        diagnosis = Diagnosis(dump.dtype, first=first, replayed=False, problem=reason, version=version)
    if diagnosis.traced:
        into.add(into.case("replay", SUITE), "out_of_band", float(diagnosis.first is not None), where=_first(diagnosis))
    if diagnosis.astray:
        data = diagnosis.data()
        into.observations.append(Observation(SUITE, "diagnosis", into.candidate, "diagnosis", data))
        into.notes += [sentence for sentence in data["sentences"] if sentence]
        into.notes += [
            f"It looks like this: {hint}" for hint in diagnosis.hints if hint[:-1] not in data["sentences"][1]
        ]
    if reason and (dump.tensors or diagnosis.astray):
        into.notes.append(f"Nothing was replayed and no known mistake was tried: {reason}.")


def _first(diagnosis: Diagnosis) -> str:
    first = diagnosis.first
    return f"{first.tensor}, token {first.token}: {first.ratio:.4g} x honest" if first else ""


def _no_replay(found: Kit) -> str:
    """Why nothing can be replayed; empty if it can."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    return "" if (found.path / kit.CHECKPOINT).is_file() else f"{kit.CHECKPOINT} is not in the kit"


def _examined(found: Kit, dump: Dump, name: str, into: Findings) -> Diagnosis | None:
    from backends.checkpoint import open_checkpoint
    from backends.registry import open_session, parse

    if dump.logits is None and not dump.tensors:
        return None
    try:
        with ExitStack() as stack:
            weights = stack.enter_context(open_checkpoint(str(found.path / kit.CHECKPOINT)))

            def opened(subject: str) -> Any:
                return open_session(parse(subject), weights, 1)

            truth = stack.enter_context(opened("reference-f64"))
            clinic = Clinic(opened, truth, found.tokens, found.edge, found.facts["honest_runs"])
            subject = DumpSession(dump, found.tokens, found.model, name)
            return clinic.examine(subject, faults=dump.logits is not None, thorough=True, recorded=True)
    except HarnessError as error:
        into.notes.append(f"The kit's checkpoint could not be used, so nothing was replayed: {error}")
        return None


def _untested(dump: Dump, found: Kit, into: Findings) -> None:
    missing = [] if dump.logits is not None else ["logits"]
    missing += [] if dump.state else ["the state"]
    traced = sum(name in dump.tensors for name in found.expected)
    total = len(found.expected) - 1 - sum(name.startswith("state.") for name in found.expected)
    if traced < total:
        missing.append(f"{total - traced} of {total} named tensors" if traced else "named tensors")
    if missing:
        into.notes.append(f"Not in the dump, so untested: {', '.join(missing)}.")
    if dump.ignored:
        into.notes.append(f"Names that nothing here reads: {_listed(dict.fromkeys(dump.ignored))}.")


def _listed(names: Mapping[str, Any]) -> str:
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(list(names)[:SHOWN]) + rest
