"""A Job: everything that decides what a run does. Frozen, picklable, plain data inside."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

from backends.errors import UsageError
from backends.registry import Spec, find, parse, table
from harness import suite
from harness.envelope import FORMATS, honest_id

REFERENCE = "reference-f64"

SUBJECTS = ("torch-cpu-f32", "torch-compile", "torch-compile@bf16")
"""What a plain `validate` compares: the seed's F32 and BF16 columns without a GPU."""

CUDA_SUBJECTS = ("torch-cuda-bf16", "torch-compile@cuda,bf16")
"""What it adds where CUDA can be used."""

ENGINES = ("official", "llama-cpp", "hf")
"""What it adds where they are installed; their arguments may be left out."""


@dataclass(frozen=True)
class Job:
    """One run.

    Attributes:
        model: one string for every kind of checkpoint, see `backends.checkpoint`.
        subjects: ids of the candidates, see `backends.registry`.
        reference: id of the backend that stands for the truth.
        suites: names, in order.
        profile: name of the criteria.
        threads: of every session; 0 takes one for a tiny model, else each backend's default.
        seed: of everything random.
        honest_runs: how many honest runs the envelope is taken from; 0 lets the size of the model decide.
        diagnosis: look for the cause where a candidate fails.
        use: a trained checkpoint on which the candidates are shown at work beside what is judged; empty is none.
        speed: options of the suite speed that are asked for instead of its own, see `harness.cells.Plan`.
    """

    model: str
    subjects: tuple[str, ...]
    reference: str = REFERENCE
    suites: tuple[str, ...] = suite.DEFAULT
    profile: str = "strict"
    threads: int = 0
    seed: int = 0
    honest_runs: int = 0
    diagnosis: bool = False
    use: str = ""
    speed: dict[str, Any] = field(default_factory=dict)

    def plain(self) -> dict[str, Any]:
        """As JSON values."""
        return json.loads(json.dumps(asdict(self)))  # type: ignore[no-any-return]

    def key(self, code: str = "") -> str:
        """Hash that is equal when a run of one job may go on with the numbers of another."""
        data = {"job": self.plain(), "suites": [suite.load(name).facts() for name in self.suites], "code": code}
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()[:16]


def make_job(
    model: str,
    backends: tuple[str, ...] = (),
    suites: tuple[str, ...] = (),
    device: str = "",
    dtype: str = "",
    **settings: Any,
) -> Job:
    """A checked Job from what was typed.

    Args:
        model: the checkpoint.
        backends: subjects as written; empty takes the defaults that can run here.
        suites: names; empty takes all of a plain run.
        device: for subjects that leave it open.
        dtype: for subjects that leave it open.
        settings: further fields of Job.

    Raises:
        UsageError: an unknown backend, suite or combination, or a subject that cannot run here.
    """
    specs = [parse(text, device, dtype) for text in backends or _defaults(device, dtype)]
    for name in suites:
        suite.load(name)
    chosen = tuple(dict.fromkeys(spec.id for spec in specs))
    for name in set(chosen) & set(map(honest_id, FORMATS)):
        raise UsageError(f"{name} is how a record calls its own honest runs; write honest:SEED, as in honest:1@f32.")
    reference = parse(settings.pop("reference", "") or REFERENCE).id
    if reference in chosen:
        raise UsageError(
            f"{reference} is the reference; it cannot be a candidate of the same run. Choose another --reference."
        )
    return Job(model, chosen, reference, tuple(dict.fromkeys(suites)) or suite.DEFAULT, **settings)


def _defaults(device: str, dtype: str) -> tuple[str, ...]:
    """Every subject of a plain run that is available, narrowed to a device or a number format if one was asked for."""
    cuda_missing = bool(_missing(CUDA_SUBJECTS[0]))
    specs = {name: parse(name) for name in SUBJECTS} | {name: parse(name, device, dtype) for name in _others()}
    specs |= {} if cuda_missing else {name: parse(name) for name in CUDA_SUBJECTS}
    kept = tuple(name for name, spec in specs.items() if not _missing(name) and _serves(spec, device, dtype))
    if not kept or (device.startswith("cuda") and cuda_missing):
        raise UsageError(
            f"no default backend runs here with device {device or 'any'}, dtype {dtype or 'any'}; "
            "name one with --backend."
        )
    return kept


def left_out() -> dict[str, str]:
    """Backend of a plain run -> why it cannot run here, for those that cannot."""
    reasons = {name: _missing(name) for name in (*SUBJECTS, *CUDA_SUBJECTS[:1], *_others())}
    return {name: reason for name, reason in reasons.items() if reason}


def _others() -> Iterator[str]:
    """Engines, and what other packages offer that needs no argument."""
    own = {parse(name).backend for name in (*SUBJECTS, *CUDA_SUBJECTS, REFERENCE)}
    yield from (name for name, row in table().items() if name in ENGINES or not (row.argument or name in own))


def _missing(name: str) -> str:
    return table()[parse(name).backend].available()


def _serves(spec: Spec, device: str, dtype: str) -> bool:
    """Whether a default subject fits what was asked for; the reference in float32 always does."""
    if spec.backend == SUBJECTS[0] and not device:
        return True
    return (not dtype or spec.dtype == dtype) and (not device or spec.device == device.partition(":")[0])


def unavailable(job: Job) -> dict[str, str]:
    """Subject -> why it cannot run here, for those that cannot."""
    reasons = {name: find(parse(name).backend).available() for name in (job.reference, *job.subjects)}
    return {name: reason for name, reason in reasons.items() if reason}
