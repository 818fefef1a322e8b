"""Commands for those who write a port: kit, record, diagnose. Each from its options to an exit code."""

import argparse
import json
from pathlib import Path
from typing import Any

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
    """Write what a backend gives on a kit's prompt, as a port would."""
    from backends.checkpoint import open_checkpoint
    from backends.registry import open_session, parse
    from harness.kit import CHECKPOINT, manifest
    from harness.kit import record as write

    folder, spec = Path(options.kit), parse(options.backend)
    manifest(folder)
    with open_checkpoint(str(folder / CHECKPOINT)) as weights, open_session(spec, weights, 1) as session:
        dump = write(folder, session, Path(options.out))
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
