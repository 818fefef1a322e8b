"""Everything that has to be seen on an NVIDIA GPU: kernels, tests, validation, speed; records in a folder.

    python benchmarks/cuda.py [--out reports/out/cuda] [--models 1.5b 2.9b 7.2b] [--only STEP ...] [--minutes M] [--dry]

Steps in their order, each a command or more that is printed before it runs and can be typed by hand:

    facts      what the machine is
    kernels    every kernel compiled for its GPU: registers, spills
    MODEL      decode of 1 and of 64 rows, a prompt of 4096, a token behind 100,000 others; of the first model also with
               the graph off, and zeros read; the first model comes here, the others behind `validate`
    tests      pytest -m cuda, and the tests of the kernels on the GPU itself
    validate   all suites on the designed checkpoint, logits on the shapes of 0.1B
    report     a page of all records that have timings

A step that fails, or takes longer than its limit, is ended and named at the end, and the others run. After every step
all logs and records go into one archive. With `--minutes M` no step runs beyond so many minutes, the page apart:
steps that no longer fit are named too, and `--only` takes them up in another call. With --dry every step runs on a CPU
with the designed checkpoint in place of the models: it shows that the commands work, and no number of it has a meaning.
"""

import argparse
import contextlib
import importlib.util
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, NamedTuple

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable

GRACE = 8.0
"""Seconds between asking a step to end, whereupon the harness keeps what it has measured, and ending it."""

REPORT = 60.0
"""Seconds that the page may take, beyond the minutes that were asked for."""


class Step(NamedTuple):
    """One command of a step, and the seconds that it may take."""

    name: str
    command: list[str]
    seconds: float = 300.0


def main() -> None:
    """Run what was asked for; exit code 1 if a step failed."""
    options = asked()
    out = Path(options.out).resolve()
    archive = Path(options.archive).resolve() if options.archive else out / "cuda.tar.gz"
    out.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that a child ends with us
    end = time.monotonic() + 60 * options.minutes if options.minutes else math.inf
    failed = []
    for step in steps(options, out):
        if options.only and step.name not in options.only:
            continue
        left = min(step.seconds, end - time.monotonic() - GRACE)
        if left <= 0:
            print(f"\n[{step.name}] not run: the {options.minutes:g} minutes are over", flush=True)
        try:
            failed += [] if left > 0 and ran(step, out / f"{step.name}.log", left) else [step.name]
        finally:
            packed(out, archive)
    if not options.only or "report" in options.only:
        failed += [] if reported(out) else ["report"]
        packed(out, archive)
    done = f"failed: {', '.join(dict.fromkeys(failed))}" if failed else f"all done; see {out}"
    print(f"{done}; packed: {archive}", flush=True)
    sys.exit(bool(failed))


def asked() -> argparse.Namespace:
    """What was typed."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="reports/out/cuda", help="folder for logs, records and the page")
    p.add_argument("--archive", default="", metavar="FILE", help="all of it packed (default: cuda.tar.gz in --out)")
    p.add_argument("--models", nargs="*", default=["1.5b", "2.9b", "7.2b"], help="sizes of synthetic:rwkv7-SIZE")
    p.add_argument("--only", nargs="*", default=[], metavar="STEP")
    p.add_argument("--minutes", type=float, default=0.0, metavar="M", help="of all steps together; 0 is no limit")
    p.add_argument("--device", default="cuda")
    p.add_argument("--dry", action="store_true")
    options = p.parse_args()
    known = ["facts", "kernels", *options.models, "tests", "validate", "report"]
    if unknown := [name for name in options.only if name not in known]:
        p.error(f"there is no step {', '.join(unknown)}; there are {', '.join(known)}")
    return options


def steps(options: argparse.Namespace, out: Path) -> Iterator[Step]:
    """All but the last one."""
    dry, device = options.dry, "cpu" if options.dry else options.device
    names = ("torch", "triton", "numpy")
    told = "from importlib.metadata import version, PackageNotFoundError as no\nimport torch\n"
    told += f"for name in {names}:\n try: print(name, version(name))\n except no: print(name, 'is not installed')\n"
    told += "print('CUDA', torch.version.cuda, torch.cuda.is_available())"
    yield Step("facts", [PYTHON, "-c", told], 60)
    if not dry:
        yield Step("facts", ["nvidia-smi"], 60)
    if not dry or importlib.util.find_spec("triton"):
        yield Step("kernels", [PYTHON, "benchmarks/cuda_kernels.py", "--target", str(capability())], 240)
    first, others = options.models[:1], options.models[1:]
    for size in first:
        yield from timed(size, device, dry, out / f"bench-{size}")
        yield from switched(size, device, dry, out / f"bench-{size}")
    yield from tested()
    yield from validated(device, dry, out)
    for size in others:
        yield from timed(size, device, dry, out / f"bench-{size}")


def tested() -> Iterator[Step]:
    """Tests that name a GPU or take one where it is; what else lies in tests/ need not even be importable there."""
    here = [PYTHON, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "default"]  # of versions never seen together
    names = ("cuda", "torch_cuda", "probe", "synthetic")
    yield Step("tests", [*here, "-m", "cuda", *(f"tests/backends/test_{name}.py" for name in names)], 400)
    yield Step("tests", [*here, *(f"tests/backends/test_triton_{name}.py" for name in ("wkv", "step"))], 400)


def validated(device: str, dry: bool, out: Path) -> Iterator[Step]:
    """All suites on the designed checkpoint, then logits on real shapes."""
    eager = [] if dry else ["--backend", f"torch-cuda-bf16@{device}"]
    both = ["--backend", f"torch-compile@{device},bf16", "--backend", f"torch-compile@{device}"]
    yield Step("validate", harness("validate", *eager, *both, "--use", "none", "--out", str(out / "validate")), 300)
    if not dry:
        logits = ["--model", "synthetic:rwkv7-0.1b", "--suite", "logits", "--honest-runs", "2"]
        folder = ["--out", str(out / "validate-0.1b")]
        yield Step("validate", harness("validate", *eager, *both, *logits, *folder), 240)


def timed(size: str, device: str, dry: bool, out: Path) -> Iterator[Step]:
    """One size, nothing switched off, each part by itself: what breaks a device's context breaks no other part."""
    full = [f"torch-compile@{device},bf16"]
    rows, prompt, far = ("2", "16", "0,16") if dry else ("64", "4096", "0,100000")
    yield bench(size, dry, out, full, "--prefill", prompt, "--position", "0")
    yield bench(size, dry, out, full, "--prefill", "1", "--position", "0", "--batch", rows)
    yield bench(size, dry, out, full, "--prefill", "1", "--position", far)


def switched(size: str, device: str, dry: bool, out: Path) -> Iterator[Step]:
    """Single rows with zeros read, in the same rounds as without; and launch by launch, away from every graph."""
    few = ["--prefill", "1", "--position", "0"]
    yield bench(size, dry, out, [f"torch-compile@{device},bf16", f"torch-compile:sparse=0@{device},bf16"], *few)
    yield bench(size, dry, out, [f"torch-compile:graph=0@{device},bf16"], *few)


def bench(size: str, dry: bool, out: Path, names: list[str], *cells: str) -> Step:
    """A command that times subjects. The reference draws all weights on the CPU each time: a minute or two of 7.2B."""
    subjects = [part for name in names for part in ("--backend", name)]
    common = ["--model", "conformance" if dry else f"synthetic:rwkv7-{size}", "--honest-runs", "2"]
    quick = ["--rounds", "1"] if dry else []
    return Step(size, harness("bench", *common, "--out", str(out), "--format", "md", *subjects, *cells, *quick), 240)


def harness(*arguments: str) -> list[str]:
    """A command of the harness."""
    return [PYTHON, "-m", "harness", *arguments]


def capability() -> int:
    """Of the first GPU, 90 for 9.0; 90 too where there is none."""
    asked = "import torch, json; print(json.dumps(torch.cuda.is_available() and torch.cuda.get_device_capability(0)))"
    found = subprocess.run([PYTHON, "-c", asked], capture_output=True, text=True, check=False, cwd=ROOT).stdout
    numbers = json.loads(found or "false")
    return numbers[0] * 10 + numbers[1] if numbers else 90


def ran(step: Step, log: Path, seconds: float) -> bool:
    """Run a step for so many seconds at most; what it prints is shown and added to its log, line by line."""
    line = shlex.join(part if part != PYTHON else "python" for part in step.command)
    print(f"\n[{step.name}] {line}", flush=True)
    start = time.perf_counter()
    with log.open("a", encoding="utf-8", buffering=1) as file:
        file.write(f"$ {line}\n")
        try:
            child = subprocess.Popen(
                step.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
                env={**os.environ, "PYTHONUNBUFFERED": "1"}, process_group=0,
            )  # fmt: skip
        except OSError as error:
            file.write(f"{error}\n")
            print(f"[{step.name}] {error}", flush=True)
            return False
        assert child.stdout is not None
        reader = threading.Thread(target=copied, args=(child.stdout, file), daemon=True)
        reader.start()
        in_time = waited(child, seconds)
        reader.join(GRACE)  # whoever left the group may hold the pipe for ever
        good = in_time and child.returncode == 0
        what = f"exit code {child.returncode}" if in_time else f"ended at its limit of {seconds:.0f} s"
        said = f"[{step.name}] {'done' if good else what}, {time.perf_counter() - start:.0f} s"
        file.write(f"{said}\n")
    print(said, flush=True)
    return good


def copied(source: IO[str], log: IO[str]) -> None:
    """Show and keep what a child says until it is silent for good."""
    with source, contextlib.suppress(ValueError):  # of a log that was closed, since the step is over
        for text in source:
            log.write(text)
            print(text, end="", flush=True)


def waited(child: "subprocess.Popen[str]", seconds: float) -> bool:
    """Whether a child ended in time; if not, or if we are told to end, its whole process group goes."""
    try:
        child.wait(seconds)
    except subprocess.TimeoutExpired:
        ended(child)
        return False
    except BaseException:
        ended(child)
        raise
    return True


def ended(child: "subprocess.Popen[str]") -> None:
    """Interrupt a process group, which lets the harness keep its record; then kill what is left of it."""
    for how in (signal.SIGINT, signal.SIGKILL):
        try:
            os.killpg(child.pid, how)
            child.wait(GRACE)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue


def reported(out: Path) -> bool:
    """A page of every record that has timings; False where there is none."""
    records = [str(file) for file in sorted(out.glob("bench-*/records/*.json")) if has_timings(file)]
    shown = [part for file in records for part in ("--record", file)]
    page = harness("report", *shown, "--format", "speed", "--out", str(out / "page"))
    return bool(records) and ran(Step("report", page), out / "report.log", REPORT)


def has_timings(record: Path) -> bool:
    """Whether something was timed in a run, which may have ended before."""
    try:
        seen = json.loads(record.read_text(encoding="utf-8"))["observations"]
        return any((one["suite"], one["kind"]) == ("speed", "samples") for one in seen)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def packed(out: Path, archive: Path) -> None:
    """Everything so far in one file, replaced at once; caches stay behind."""
    part = archive.with_name(archive.name + ".part")
    archive.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(part, "w:gz") as file:
        for path in sorted(out.rglob("*")):
            if path.is_file() and path not in (archive, part) and "cache" not in path.relative_to(out).parts:
                file.add(path, path.relative_to(out))
    part.replace(archive)


if __name__ == "__main__":
    main()
