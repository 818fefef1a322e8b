"""Speed of several subjects in one run: interleaved in random order, every sample kept, intervals printed.

Machines drift; a subject timed after another is timed on another machine. So each round times every subject once, in
an order drawn anew, and ratios are taken from the same rounds. The machine's limits are probed in those rounds too, and
the first subject has a second turn under another name: what does not read as equal to itself was measured on a machine
too noisy for verdicts.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np

from backends.base import Ids, Session
from harness import energy, memory, opening, positions, statistics
from harness.cells import ENOUGH, Cell, Plan, Sample, interleaved, repeated, sample, warm_up
from harness.limits import Limits, Rates
from harness.measures.base import Context
from harness.noise import Noise, Watch
from reports.record import Measurement, Observation

T = TypeVar("T")
Row = Measurement | Observation
Progress = Callable[[str], None]

SUITE = "speed"
MACHINE = "machine"
"""Stands for a subject where evidence is about the machine."""


class BrokenSubjectError(Exception):
    """A subject broke while it was timed; `cause` is its own error."""

    def __init__(self, subject: str, cause: Exception) -> None:
        super().__init__(subject)
        self.subject, self.cause = subject, cause


class BrokenProbeError(Exception):
    """The probe of a device broke between timings; `cause` is its own error."""

    def __init__(self, device: str, cause: Exception) -> None:
        super().__init__(device)
        self.device, self.cause = device, cause


@contextmanager
def blaming(name: str) -> Iterator[None]:
    """Say whose error it is."""
    try:
        yield
    except Exception as error:  # a backend may break in any way
        raise BrokenSubjectError(name, error) from error


@dataclass(frozen=True)
class Race:
    """What came of one cell.

    Attributes:
        cell: which.
        samples: subject -> one a round, in the order of the rounds.
        control: samples of the first subject's second turns; empty without a control.
        rates: device -> its limits, one a round.
        noise: what else went on; None where the system does not tell.
    """

    cell: Cell
    samples: dict[str, list[Sample]]
    control: list[Sample]
    rates: dict[str, list[Rates]]
    noise: Noise | None


def measure(
    sessions: Mapping[str, Session],
    context: Context,
    progress: Progress,
    limits: Limits | None = None,
    broken: Callable[[BrokenSubjectError], None] | None = None,
) -> Iterator[Row]:
    """Time every cell of the case on every subject.

    Args:
        sessions: subject id -> opened session that has passed logits.
        context: case with the options of `cells.Plan`; tokens to feed.
        progress: told which cell is timed.
        limits: of the machine; None where they are not asked for.
        broken: told of a subject that breaks. The others begin that one cell again and go on; None ends the race.

    Yields:
        Measurements (tokens/s, share of the limit, cost by position), and observations "samples", "ratio", "control",
        "noise", "limits" and "latency", each as soon as it is known.

    Raises:
        BrokenSubjectError: a subject broke, and `broken` is None.
    """
    plan = Plan.of(context.case.options)
    limits = limits if plan.probe else None
    working: dict[str, dict[str, int]] = {}
    racing, trusted = _Racing(dict(sessions), broken, progress), True
    for cell in plan.cells():
        once = partial(run, cell, context=context, plan=plan, limits=limits, working=working)
        race, able = racing.through(cell, limits, once)
        if race:
            trusted = _equal(race) if race.control else trusted
            yield from _rows(race, able, context.case.name, limits, trusted)
    for name, session in tuple(racing.sessions.items()):
        try:
            yield from positions.measure({name: session}, context, plan, progress, blaming)
        except BrokenSubjectError as error:
            racing.without(error)
    for name in racing.sessions:
        for key, measure in (("own", "working_memory"), ("device", "working_memory_of_device")):
            if key in working.get(name, {}):
                where = "largest of all cells"
                yield Measurement(SUITE, context.case.name, name, measure, float(working[name][key]), "bytes", where)


@dataclass
class _Racing:
    """Who is still in the race."""

    sessions: dict[str, Session]
    broken: Callable[[BrokenSubjectError], None] | None
    progress: Progress

    def through(
        self, cell: Cell, limits: Limits | None, once: Callable[[Mapping[str, Session]], Race]
    ) -> tuple[Race | None, dict[str, Session]]:
        """Time a cell, anew without whoever or whatever breaks in it; and who was timed."""
        while able := {name: s for name, s in self.sessions.items() if cell.batch == 1 or opening.batches(s)}:
            self.progress(f"speed: {cell.what}, {cell.tokens} tokens, batch {cell.batch}, {len(able)} subjects")
            try:
                return once(able), able
            except BrokenSubjectError as error:
                self.without(error)
            except BrokenProbeError as error:
                assert limits is not None
                limits.missing[error.device] = f"the probe of {error.device} broke: {error.cause}"
        return None, able

    def without(self, error: BrokenSubjectError) -> None:
        """Go on without a subject, where somebody wants to be told."""
        if self.broken is None:
            raise error
        self.broken(error)
        del self.sessions[error.subject]


def run(
    cell: Cell,
    sessions: Mapping[str, Session],
    context: Context,
    plan: Plan,
    limits: Limits | None = None,
    working: dict[str, dict[str, int]] | None = None,
) -> Race:
    """Warm everybody up, then time a cell in rounds.

    Args:
        cell: what is timed.
        sessions: of whom.
        context: tokens and seed.
        plan: how long.
        limits: probed in every round.
        working: subject -> the most memory that its work took; kept up to date.
    """
    fed = np.tile(np.resize(context.tokens, cell.tokens), (cell.batch, 1))
    turns: dict[str, Callable[[], Any]] = {}
    for name, session in sessions.items():
        once = _turn(name, cell, session, fed)
        repeats, grown = _watched(session.info.device, once, plan)
        for key, size in grown.items():
            kept = working.setdefault(name, {}) if working is not None else {}
            kept[key] = max(kept.get(key, 0), size)
        turns[name] = partial(repeated, once, repeats)
    first = next(iter(sessions))
    again = f"{first}, again"
    if cell.what in plan.control:
        turns[again] = turns[first]
    probes = _probes(sessions, limits) if limits else {}
    with Watch() as watch:
        found = interleaved(turns | probes, context.seed, partial(_enough, plan, tuple(sessions), again))
    return Race(
        cell,
        {name: found[name] for name in sessions},
        found.get(again, []),
        {name.removeprefix("limits of "): found[name] for name in probes},
        watch.noise,
    )


def _turn(name: str, cell: Cell, session: Session, fed: Ids) -> Callable[[], Sample]:
    joules, _ = energy.counter(session.info.device)

    def turn() -> Sample:
        with blaming(name):
            return sample(cell, session, fed, joules)

    return turn


def _watched(device: str, turn: Callable[[], Sample], plan: Plan) -> tuple[int, dict[str, int]]:
    """Warm up; how often a sample has to be repeated, and the memory that it takes."""
    memory.forget_peak(device)
    before = memory.look(device)
    repeats = warm_up(turn, plan.seconds, plan.least)
    grown = memory.grown(before, memory.look(device))
    return repeats, {key: size for key, size in grown.items() if key in ("own", "device")}


def _probes(sessions: Mapping[str, Session], limits: Limits) -> dict[str, Callable[[], Rates]]:
    """A turn for every device that subjects use."""
    devices: dict[str, dict[str, None]] = {}
    for session in sessions.values():
        devices.setdefault(session.info.device, {})[session.info.dtype] = None
    turns = {
        device: _probing(device, partial(limits.turn, device, tuple(dtypes))) for device, dtypes in devices.items()
    }
    return {f"limits of {device}": partial(_probing, device, turn) for device, turn in turns.items() if turn}


def _probing(device: str, asked: Callable[[], T]) -> T:
    try:
        return asked()
    except Exception as error:  # what a subject did to a device may be seen first by the next one to use it
        raise BrokenProbeError(device, error) from error


def _enough(plan: Plan, subjects: tuple[str, ...], again: str, found: Mapping[str, list[Any]]) -> bool:
    """Whether the rounds end: all done and the control equal to itself, or time and patience used up."""
    rounds = len(found[subjects[0]])
    longest = max(sum(one.seconds for one in found[name]) for name in subjects)
    if not plan.patient and rounds >= ENOUGH and longest > plan.seconds:
        return True
    if rounds < plan.rounds:
        return False
    return again not in found or rounds >= plan.longer * plan.rounds or _same(found[subjects[0]], found[again])


def _same(one: list[Sample], other: list[Sample]) -> bool:
    return statistics.speed_verdict(statistics.speed_ratio(_seconds(other), _seconds(one))) == "equivalent"


def _equal(race: Race) -> bool:
    """Whether the first subject reads as equal to itself."""
    return _same(next(iter(race.samples.values())), race.control)


def _seconds(samples: list[Sample]) -> list[float]:
    return [one.seconds for one in samples]


def _rows(
    race: Race, sessions: Mapping[str, Session], case: str, limits: Limits | None, trusted: bool
) -> Iterator[Row]:
    cell, where = race.cell, race.cell.facts()
    invalid: set[str] = set()
    for name, samples in race.samples.items():
        data = {**where, **_rate(cell, _seconds(samples)), **_singles(samples), **_joules(cell, samples)}
        if limits:
            rates = race.rates.get(sessions[name].info.device, [])
            data |= limits.compare(cell, sessions[name], rates, samples)
        yield Observation(SUITE, case, name, "samples", data)
        rounds = f"{len(samples)} rounds"
        yield Measurement(SUITE, case, name, f"{cell.name}_tokens_per_s", data["median"], "tokens/s", rounds)
        if "fraction" in data:
            bound = f"limit: {data['bound']}"
            yield Measurement(SUITE, case, name, f"{cell.name}_of_limit", data["fraction"], "", bound)
            invalid |= {name} if data["invalid"] else set()
    baseline = next(iter(race.samples))
    for name, samples in race.samples.items():
        if name != baseline:
            data = _ratio(samples, race.samples[baseline], trusted and name not in invalid)
            because = "invalid" if {name, baseline} & invalid else data["verdict"]
            yield Observation(SUITE, case, name, "ratio", {**where, "versus": baseline, **data, "verdict": because})
    if race.control:
        data = _ratio(race.control, race.samples[baseline], True)
        yield Observation(SUITE, case, baseline, "control", {**where, **data, "seconds": _seconds(race.control)})
    if race.noise:
        yield Observation(SUITE, case, MACHINE, "noise", {**where, **asdict(race.noise)})
    for device, rates in race.rates.items():
        yield Observation(SUITE, case, MACHINE, "limits", {**where, "device": device, **_probed(rates)})


def _rate(cell: Cell, seconds: list[float]) -> dict[str, Any]:
    """Tokens per second with their interval."""
    middle = statistics.median(seconds)
    rates = {"median": cell.work / middle.value, "low": cell.work / middle.high, "high": cell.work / middle.low}
    return {"seconds": seconds, **rates}


def _singles(samples: list[Sample]) -> dict[str, Any]:
    """Percentiles of the time of single tokens, in milliseconds; nothing where they did not come singly."""
    each = [1e3 * token for one in samples for token in one.tokens]
    return {"token_ms": statistics.percentiles(each), "token_count": len(each)} if each else {}


def _joules(cell: Cell, samples: list[Sample]) -> dict[str, Any]:
    """Their mean: counters are coarse, and what one sample missed another one has."""
    told = [one.joules / cell.work for one in samples if one.joules is not None]
    return {"joules_per_token": sum(told) / len(told)} if told else {}


def _ratio(samples: list[Sample], baseline: list[Sample], trusted: bool) -> dict[str, Any]:
    ratio = statistics.speed_ratio(_seconds(samples), _seconds(baseline))
    verdict = statistics.speed_verdict(ratio) if trusted else "inconclusive"
    noisy = {} if trusted else {"without_control": statistics.speed_verdict(ratio)}
    return {"ratio": ratio.value, "low": ratio.low, "high": ratio.high, "verdict": verdict, **noisy}


def _probed(rates: list[Rates]) -> dict[str, Any]:
    """Every probe of a cell, in its rounds."""
    gemm = {dtype: [one.gemm[dtype] for one in rates] for dtype in rates[0].gemm}
    return {"read": [one.read for one in rates], "copy": [one.copy for one in rates], "gemm": gemm}
