"""Everything that has to be seen on an NVIDIA GPU, in one run: kernels, tests, validation, speed; records in a folder.

    python benchmarks/cuda.py [--out reports/out/cuda] [--models 1.5b 2.9b 7.2b] [--only STEP ...] [--dry]

Steps, each a command that is printed before it runs and can be typed by hand:

    facts      what the machine is
    kernels    every kernel compiled for its GPU: registers, spills
    tests      pytest -m cuda, and the tests of the kernels on the GPU itself
    validate   all suites on the designed checkpoint, logits on the shapes of 0.1B
    MODEL      decode of 1 and of 64 rows, a prompt of 4096, a token behind 100,000 others; graph on and off
    report     a page of all records

A step that fails is named at the end, and the others run. With --dry every step runs on a CPU with the designed
checkpoint in place of the models: it shows that the commands work, and no number of it means anything.
"""

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PYTHON = sys.executable


class Step(NamedTuple):
    """One command of a step."""

    name: str
    command: list[str]


def main() -> None:
    """Run what was asked for; exit code 1 if a step failed."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", default="reports/out/cuda", help="folder for logs, records and the page")
    p.add_argument("--models", nargs="*", default=["1.5b", "2.9b", "7.2b"], help="sizes of synthetic:rwkv7-SIZE")
    p.add_argument("--only", nargs="*", default=[], metavar="STEP")
    p.add_argument("--device", default="cuda")
    p.add_argument("--dry", action="store_true")
    options = p.parse_args()
    out = Path(options.out).resolve()
    out.mkdir(parents=True, exist_ok=True)
    chosen = [step for step in steps(options, out) if not options.only or step.name in options.only]
    failed = [step.name for step in chosen if not ran(step, out / f"{step.name}.log")]
    if not options.only or "report" in options.only:
        records = sorted(str(file) for file in out.glob("bench-*/records/*.json"))
        shown = [part for file in records for part in ("--record", file)]
        page = harness("report", *shown, "--format", "speed", "--out", str(out / "page"))
        if not records or not ran(Step("report", page), out / "report.log"):
            failed.append("report")
    print(f"failed: {', '.join(dict.fromkeys(failed))}" if failed else f"all done; see {out}", flush=True)
    sys.exit(bool(failed))


def steps(options: argparse.Namespace, out: Path) -> Iterator[Step]:
    """All but the last one."""
    dry, device = options.dry, "cpu" if options.dry else options.device
    told = "import torch; print(torch.__version__, torch.version.cuda, torch.cuda.is_available())"
    yield Step("facts", [PYTHON, "-c", told])
    if not dry:
        yield Step("facts", ["nvidia-smi"])
    if not dry or importlib.util.find_spec("triton"):
        yield Step("kernels", [PYTHON, "benchmarks/cuda_kernels.py", "--target", str(capability())])
    here = [PYTHON, "-m", "pytest", "-q", "--no-cov", "-p", "no:cacheprovider"]
    yield Step("tests", [*here, "-m", "cuda"])
    yield Step("tests", [*here, "tests/backends/test_triton_wkv.py", "tests/backends/test_triton_step.py"])
    eager = [] if dry else ["--backend", "torch-cuda-bf16"]
    both = ["--backend", f"torch-compile@{device},bf16", "--backend", f"torch-compile@{device}"]
    yield Step("validate", harness("validate", *eager, *both, "--use", "none", "--out", str(out / "validate")))
    if not dry:
        logits = ["--model", "synthetic:rwkv7-0.1b", "--suite", "logits", "--out", str(out / "validate-0.1b")]
        yield Step("validate", harness("validate", *eager, *both, *logits))
    for size in options.models:
        yield from timed(size, device, dry, out / f"bench-{size}")


def timed(size: str, device: str, dry: bool, out: Path) -> Iterator[Step]:
    """One size: single rows with and without what can be switched off, then a batch."""
    model = "conformance" if dry else f"synthetic:rwkv7-{size}"
    common = ["--model", model, "--honest-runs", "2", "--out", str(out), "--format", "md"]
    full = f"torch-compile@{device},bf16"
    less = [f"torch-compile:{switch}@{device},bf16" for switch in ("graph=0", "sparse=0")]
    subjects = [part for name in (full, *less) for part in ("--backend", name)]
    single = ["--prefill", "16" if dry else "4096", "--position", "0,16" if dry else "0,100000"]
    many = ["--prefill", "1", "--position", "0", "--batch", "2" if dry else "64"]
    quick = ["--rounds", "1"] if dry else []
    yield Step(size, harness("bench", *common, *subjects, *single, *quick))
    yield Step(size, harness("bench", *common, *subjects[:4], *many, *quick))


def harness(*arguments: str) -> list[str]:
    """A command of the harness."""
    return [PYTHON, "-m", "harness", *arguments]


def capability() -> int:
    """Of the first GPU, 90 for 9.0; 90 too where there is none."""
    asked = "import torch, json; print(json.dumps(torch.cuda.is_available() and torch.cuda.get_device_capability(0)))"
    found = subprocess.run([PYTHON, "-c", asked], capture_output=True, text=True, check=False, cwd=ROOT).stdout
    numbers = json.loads(found or "false")
    return numbers[0] * 10 + numbers[1] if numbers else 90


def ran(step: Step, log: Path) -> bool:
    """Run a step; what it prints is shown and added to its log."""
    line = " ".join(part if part != PYTHON else "python" for part in step.command)
    print(f"\n[{step.name}] {line}", flush=True)
    start = time.perf_counter()
    with log.open("a", encoding="utf-8") as file:
        file.write(f"$ {line}\n")
        try:
            child = subprocess.Popen(
                step.command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
            )
        except OSError as error:
            print(f"[{step.name}] {error}", flush=True)
            return False
        with child:
            assert child.stdout is not None
            for text in child.stdout:
                print(text, end="", flush=True)
                file.write(text)
    seconds = time.perf_counter() - start
    good = child.returncode == 0
    print(f"[{step.name}] {'done' if good else f'exit code {child.returncode}'} in {seconds:.0f} s", flush=True)
    return good


if __name__ == "__main__":
    main()
