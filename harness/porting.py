"""Commands for those who write a port: kit, record, diagnose. Each from its options to an exit code."""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from backends.errors import UsageError
from harness.options import listed
from harness.progress import Progress


def kit(options: argparse.Namespace) -> int:
    """Write a kit."""
    from harness.kit import make

    settings = {"tokens": options.tokens, "runs": options.honest_runs, "dtype": options.dtype}
    with Progress() as progress:
        progress.tell(f"writing the kit of {options.model}")
        folder = make(options.model, Path(options.out), **settings)
    names = sorted(file.name for file in folder.iterdir())
    size = sum((folder / name).stat().st_size for name in names)
    if options.json:
        _json({"kit": str(folder), "bytes": size, "files": names})
    else:
        print(f"wrote {folder}: {size / 1e6:.1f} MB; {folder / 'README.md'} says what to do with it")
    return 0


def record(options: argparse.Namespace) -> int:
    """Keep what a backend answers: to whole suites, or to a kit's prompt as a port would write it."""
    return _record_kit(options) if options.kit else _record_suites(options)


def _record_suites(options: argparse.Namespace) -> int:
    from harness.job import make_job, unavailable
    from harness.recorded import record as make
    from harness.suite import DEFAULT
    from harness.truth import SPEED

    suites = listed(options.suite, "suite") or tuple(name for name in DEFAULT if name != SPEED)
    if SPEED in suites:
        raise UsageError("speed cannot be recorded: `python -m harness bench` times a backend where it runs.")
    model, settings = options.model or "conformance", {"reference": options.reference, "seed": options.seed}
    settings |= {"threads": options.threads, "diagnosis": not options.no_diagnosis}
    job = make_job(model, (options.backend,), suites, options.device, options.dtype, **settings)
    for name, reason in unavailable(job).items():
        raise UsageError(f"{name} cannot run here: {reason}. `python -m harness backends` lists what can.")
    try:
        with Progress() as progress:
            made = make(job, Path(options.out), progress.tell)
    except KeyboardInterrupt:
        print("interrupted; nothing was written", file=sys.stderr)
        return 130
    if options.json:
        _json({"recording": options.out, "backend": job.subjects[0], **vars(made)})
        return 0
    size = f"{made.cases} cases of {len(suites)} suites, {made.calls} calls, {made.size / 1e6:.1f} MB"
    print(f"wrote {options.out}: {size}")
    if made.outcomes:
        counts = ", ".join(f"{number} {outcome}" for outcome, number in made.outcomes.items())
        print(f"of the cases {counts}; the first is {made.first}")
    end = "/" if "@" in Path(options.out).name else ""  # what stands behind an @ would be read as a number format
    subject = f"recorded:{options.out}{end}"
    print(f"`python -m harness validate --model {model} --backend {subject}` judges it, here or elsewhere")
    return 0


def _record_kit(options: argparse.Namespace) -> int:
    from backends.checkpoint import open_checkpoint
    from backends.fingerprint import fingerprint
    from backends.registry import open_session, parse
    from harness.kit import CHECKPOINT, manifest
    from harness.kit import record as write

    if options.suite or options.model:
        raise UsageError("--kit brings its own checkpoint and prompt: leave --model and --suite out, or --kit.")
    folder, spec = Path(options.kit), parse(options.backend, options.device, options.dtype)
    manifest(folder)
    with open_checkpoint(str(folder / CHECKPOINT)) as weights, open_session(spec, weights, 1) as session:
        dump = write(folder, session, Path(options.out), fingerprint(weights))
    if options.json:
        _json({"dump": str(dump), "backend": spec.id})
    else:
        print(f"wrote {dump}; `python -m harness compare {folder} {dump}` judges it")
    return 0


def diagnose(options: argparse.Namespace) -> int:
    """Say what is wrong with backends: 0 nothing, 1 something."""
    from harness.consult import consult

    with Progress() as progress:
        found = consult(
            options.model,
            options.backend,
            options.device,
            options.dtype,
            threads=options.threads,
            logits_only=options.logits_only,
            progress=progress.tell,
        )
    if options.json:
        _json({name: diagnosis.data() for name, diagnosis in found.items()})
    else:
        for name, diagnosis in found.items():
            print(f"{name}: {' '.join(filter(None, diagnosis.data()['sentences']))}")
    return int(any(diagnosis.astray for diagnosis in found.values()))


def _json(data: dict[str, Any]) -> None:
    """One object; what is not finite is a word, as in records."""
    from reports.record import plain

    print(json.dumps(plain(data), indent=1, ensure_ascii=False, allow_nan=False))
