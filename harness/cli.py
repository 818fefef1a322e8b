"""Commands: each a function from its options to an exit code. Every failure is one line and a code."""

import argparse
import json
import re
import shlex
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends.errors import HarnessError, InputError, UsageError
from harness import chatting, converting, generating, porting, racing, skeleton
from harness.options import FORMATS, listed, parser
from harness.progress import Progress as _Progress

if TYPE_CHECKING:
    from harness.job import Job
    from reports.record import Record

RECORDS = "records"
"""Folder inside --out that keeps one file a run."""


def run_command(arguments: list[str]) -> int:
    """Run one command line; returns the exit code and never a traceback."""
    from reports.record import RecordError

    try:
        options = parser().parse_args(arguments)
        if options.command is None:
            parser().print_help()
            return 2
        options.typed = shlex.join(["python", "-m", "harness", *arguments])
        return COMMANDS[options.command](options)
    except HarnessError as error:
        return _complain(str(error), error.exit_code)
    except RecordError as error:
        return _complain(str(error), InputError.exit_code)
    except KeyboardInterrupt:
        return _complain("interrupted; what was measured is kept: `--resume` goes on with it", 130)
    except BrokenPipeError:
        sys.stderr.close()  # whoever read the output has seen enough
        return 0
    except Exception as error:  # the last net: a bug of ours is still one line and a code
        return _complain(f"the harness broke: {type(error).__name__}: {' '.join(str(error).split())}", 4)


def _complain(message: str, code: int) -> int:
    print(f"error: {message}" if code != 130 else message, file=sys.stderr)
    return code


def validate(options: argparse.Namespace) -> int:
    """Run, judge, write record and documents, print the table."""
    from harness.job import left_out

    record = measured(options)
    paths = written(record, options)
    _print(record, options, paths, {} if options.backend else left_out())
    return record.exit_code()


def report(options: argparse.Namespace) -> int:
    """Draw a record; without one the latest, without that a new run."""
    from reports import store

    if options.format == ["speed"]:
        return racing.page(options)
    if len(options.record) > 1:
        raise UsageError("several records make one page of timings: add --format speed, or name one --record.")
    if options.record:
        record = store.load(Path(options.record[0]))
    else:
        latest = store.latest(Path(options.out) / RECORDS, status="complete")
        if latest is None:
            options.profile = options.profile or "strict"
            return validate(options)
        record = latest
    if options.profile:
        from harness.judge import again, load

        record = again(record, load(options.profile))
    paths = written(record, options)
    _print(record, options, paths)
    return 0


def compare(options: argparse.Namespace) -> int:
    """Compare two saved things."""
    from harness.compare import compare as compare_saved
    from harness.compare import table

    record = compare_saved(Path(options.a), Path(options.b), profile=options.profile)
    paths = written(record, options) if options.out else []
    if options.json:
        print(record.to_json(), end="")
    else:
        print(table(record))
        print_paths(paths)
    if record.exit_code() == 5:
        print("nothing was judged: the two have no number in common", file=sys.stderr)
    return record.exit_code()


def power(options: argparse.Namespace) -> int:
    """Which known mistakes a profile catches, and whom it accuses wrongly."""
    from harness import judge, killtable
    from harness.power import DTYPES, shown, tables

    judge.load(options.profile)
    settings = {"processes": options.processes, "seeds": options.seeds, "only": listed(options.fault, "fault")}
    dtypes, folder = listed(options.dtype, "dtype") or DTYPES, Path(options.out)
    try:
        with _Progress() as progress:
            settings["progress"] = progress.tell
            found, cached = tables(options.model, dtypes, options.profile, folder, options.fresh, **settings)
    except KeyboardInterrupt:
        return _complain("interrupted; number formats that were not finished are not kept", 130)
    data = killtable.evidence(found, shown(options.profile))
    if options.json:
        print(json.dumps({**data, "cached": cached}, indent=1))
        return killtable.exit_code(data)
    for line in killtable.lines(data):
        print(line)
    print(f"measured earlier, in {data['seconds']} s; --fresh measures again" if cached else f"{data['seconds']} s")
    return killtable.exit_code(data)


def backends(options: argparse.Namespace) -> int:
    """List the backends."""
    from backends.registry import table

    rows = [
        {
            "name": row.name + (f":{_first_word(row.argument)}" if row.argument else ""),
            "available": row.available() or "yes",
            "devices": list(row.devices),
            "dtypes": list(row.dtypes),
            "versions": list(row.versions),
            "summary": row.summary,
        }
        for row in table().values()
    ]
    if options.json:
        print(json.dumps(rows, indent=1))
        return 0
    for row in rows:
        print(f"{row['name']:<18} {'/'.join(row['devices'])}  {'/'.join(row['dtypes'])}  {row['summary']}")
        if row["available"] != "yes":
            print(f"{'':<18} not available: {row['available']}")
    return 0


def _first_word(argument: str) -> str:
    """What a backend's argument is called: its leading word, in capitals."""
    return re.split(r"\W", argument, maxsplit=1)[0].upper()


def suites(options: argparse.Namespace) -> int:
    """List suites, cases and criteria."""
    from harness import judge, suite

    profile = judge.load(options.profile)
    facts = [suite.load(name).facts() for name in suite.names()]
    if options.json:
        print(json.dumps({"suites": facts, "profile": profile.facts()}, indent=1, ensure_ascii=False))
        return 0
    for row in facts:
        print(f"{row['name']} (version {row['version']}): {row['question']}")
        print(f"  cases: {', '.join(case['name'] for case in row['cases'])}")
        for criterion in (c for c in profile.criteria if c.suite == row["name"]):
            when = "".join(f" [{key} {'/'.join(values)}]" for key, values in criterion.when.items())
            print(f"  {criterion.measure} {criterion.words()}{when}: {criterion.why}")
    print(f"profiles: {', '.join(judge.profiles())}; shown: {profile.name}. {profile.summary}")
    return 0


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "validate": validate,
    "report": report,
    "bench": racing.bench,
    "compare": compare,
    "kit": porting.kit,
    "record": porting.record,
    "diagnose": porting.diagnose,
    "power": power,
    "generate": generating.generate,
    "chat": chatting.chat,
    "backends": backends,
    "convert": converting.convert,
    "pull": converting.pull,
    "models": converting.models,
    "suites": suites,
    "new-backend": skeleton.new_backend,
}


def _job(options: argparse.Namespace) -> "Job":
    from harness import judge
    from harness.job import make_job

    judge.load(options.profile)
    listed(options.format, "format", FORMATS)
    return make_job(
        options.model,
        tuple(options.backend),
        listed(options.suite, "suite"),
        options.device,
        options.dtype,
        reference=options.reference,
        profile=options.profile,
        threads=options.threads,
        seed=options.seed,
        honest_runs=options.honest_runs,
        diagnosis=not options.no_diagnosis,
        use=_use(options),
        speed=getattr(options, "speed", {}),
    )


def _use(options: argparse.Namespace) -> str:
    """The checkpoint that is shown in use: what was asked for, else the embedded one beside the designed one."""
    if options.use:
        return "" if options.use == "none" else str(options.use)
    return "demo" if options.model == "conformance" and not options.suite else ""


def measured(options: argparse.Namespace, also: Callable[["Record"], "Record"] = lambda record: record) -> "Record":
    """Run the job that was typed, with progress on a terminal, keeping the record as it grows; `also` adds to it."""
    from harness.job import unavailable
    from harness.power import known, told_of
    from harness.run import job_key, run
    from reports import store

    job = _job(options)
    for name, reason in unavailable(job).items():
        raise UsageError(f"{name} cannot run here: {reason}. `python -m harness backends` lists what can.")
    folder = Path(options.out) / RECORDS
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out {options.out} cannot be written: {error.strerror}.") from None
    earlier = None
    if options.resume:
        earlier = store.latest(folder, job_key=job_key(job))
        if earlier is None or earlier.status == "complete":
            print("nothing to resume: no unfinished run of this job and this version; starting anew", file=sys.stderr)
            earlier = None
    gate = known(job, Path(options.out))
    with _Progress() as progress:
        keep = lambda record: _keep(also(told_of(record, gate)), folder)  # noqa: E731
        record = run(job, progress.tell, keep, earlier, options.typed, None if options.fresh else Path(options.out))
    return also(told_of(record, gate))


def _keep(record: "Record", folder: Path) -> None:
    from reports import store

    store.save(record, folder)


def written(record: "Record", options: argparse.Namespace) -> list[Path]:
    """Documents into --out, and the summary where a CI job asks for one."""
    import os

    from reports import output

    chosen = listed(options.format, "format", FORMATS) or FORMATS
    paths = output.write(record, Path(options.out), chosen)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        with Path(summary).open("a", encoding="utf-8") as file:
            file.write(output.summary(record) + "\n")
    return paths


def _print(
    record: "Record", options: argparse.Namespace, paths: list[Path], absent: Mapping[str, str] | None = None
) -> None:
    """The verdict; `absent` tells why a backend of a plain run is not in it."""
    if options.json:
        print(json.dumps({**digest(record, paths), "not_run": absent or {}}, indent=1, ensure_ascii=False))
        return
    from harness.power import told
    from harness.table import diagnoses, failures, matrix, verdict_line

    print(matrix(record))
    for name, reason in (absent or {}).items():
        print(f"not run: {name}: {reason}")
    for line in (*failures(record), *diagnoses(record)):
        print(line)
    print_paths(paths)
    if told(record):
        print(told(record))
    print(verdict_line(record))


def digest(record: "Record", paths: list[Path]) -> dict[str, Any]:
    """What `--json` prints: the verdict, and where the rest is."""
    verdicts = json.loads(record.to_json())["verdicts"]  # spelt as in the file, where NaN is a word
    return {
        "exit_code": record.exit_code(),
        "counts": record.counts(),
        "model": record.model.get("name"),
        "profile": record.profile.get("name"),
        "subjects": [{"id": s.id, "role": s.role, "error": s.error} for s in record.subjects],
        "failures": [v for v in verdicts if v["outcome"] in ("fail", "error")],
        "record": f"{RECORDS}/{record.id}.json",
        "files": [str(path) for path in paths],
    }


def print_paths(paths: list[Path]) -> None:
    """The documents that people read."""
    for path in paths:
        if path.suffix in (".html", ".md") and path.name != "summary.md":
            print(f"wrote {path}")
