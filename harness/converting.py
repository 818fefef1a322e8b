"""Commands that bring checkpoints here and into shape: convert, pull, models."""

import argparse
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.progress import Progress

if TYPE_CHECKING:
    from backends.catalogue import Row
    from backends.convert import Conversion


def convert(options: argparse.Namespace) -> int:
    """Convert a checkpoint, prove it, and say what was lost."""
    from backends.convert import convert as run

    with Progress() as progress:
        began = time.monotonic()

        def told(done: int, total: int) -> None:
            rate = done / max(time.monotonic() - began, 1e-3) / 1e6
            progress.tell(f"{done / total:4.0%} of {total / 1e9:.2f} GB, {rate:.0f} MB/s")

        config = Path(options.config) if options.config else None
        done = run(options.source, Path(options.dest), options.to, options.dtype, config, told)
    if options.json:
        print(json.dumps(_facts(done), indent=1))
    else:
        for line in _lines(done):
            print(line)
    return 0


def pull(options: argparse.Namespace) -> int:
    """Download a release, or find it in the cache, and check its hash."""
    from backends.checkpoint import pull as run

    began = time.monotonic()
    with Progress() as progress:
        done = run(options.name, progress.tell)
    facts = {
        "name": options.name,
        "from": done.ident,
        "path": str(done.path),
        "bytes": done.size,
        "checked": done.checked,
        "seconds": round(time.monotonic() - began, 3),
    }
    if options.json:
        print(json.dumps(facts, indent=1))
    else:
        checked = "its hash is the hub's" if done.checked else "not checked: this cache does not keep the hub's hash"
        print(f"{options.name} is {done.ident}, {done.size / 1e6:.1f} MB; {checked}")
        print(done.path)
    return 0


def models(options: argparse.Namespace) -> int:
    """List what --model takes, and what of it is here; asks nobody."""
    from backends.catalogue import rows

    found = list(rows())
    if options.json:
        print(json.dumps([_row(row) for row in found], indent=1))
        return 0
    width = max(len(row.name) for row in found)
    for row in found:
        print(f"{row.name:<{width}}  {row.what}")
        if row.cached:
            print(f"{'':<{width}}  here: {row.cached}")
    print(f"{'':<{width}}  `pull NAME` downloads; rwkv7[a|b]-gGENERATION[DATASET]-SIZE names later releases too")
    return 0


def _row(row: "Row") -> dict[str, Any]:
    facts = {"name": row.name, "what": row.what, "cached": str(row.cached or "")}
    return facts | (asdict(row.entry) | {"place": row.entry.place} if row.entry else {})


def _lines(done: "Conversion") -> list[str]:
    facts, dtype = done.facts, done.dtype or done.facts.stored
    model = f"RWKV-{facts.version}, {facts.n_layer} layers of {facts.n_embd}, {facts.parameters:,} parameters"
    lines = [f"wrote {done.path}: {model}, {dtype}, {done.size / 1e6:.1f} MB in {done.seconds:.1f} s"]
    lines += done.proof.sentences()
    if done.loss.values:
        lines.append(f"narrowed {facts.stored} to {dtype}: {done.loss.sentence()}")
    return lines


def _facts(done: "Conversion") -> dict[str, Any]:
    """What `--json` prints."""
    return {
        "path": str(done.path),
        "format": done.to,
        "version": done.facts.version,
        "parameters": done.facts.parameters,
        "stored": done.facts.stored,
        "dtype": done.dtype or done.facts.stored,
        "bytes": done.size,
        "seconds": round(done.seconds, 3),
        "loss": asdict(done.loss),
        "proof": asdict(done.proof),
    }
