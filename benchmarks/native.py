"""The C program against memory and against other engines, all in one interleaved run.

    python benchmarks/native.py [--model synthetic:rwkv7-0.1b] [--dtype f32] [--against official]
                                [--llama PYTHON] [--batch 1 4 16 64] [--prompt 512] [--seconds 30]

PYTHON is an interpreter that has llama_cpp; llama.cpp is timed inside its own process, by benchmarks/llama_timer.py, on
a GGUF that is written here. Backends named by --against are timed through their sessions.

Every round times each subject once, in an order drawn anew, with a probe of the read bandwidth before each (the better
of two reads). Printed are medians over rounds, and the best round; ratios are medians over samples of the same round.
"of the probe" is the bytes that a decoded token needs (weights once, the state read and written), by its time, by what
the probe before it read. Weights that a kernel leaves unread where they would meet zeros are counted as read, as if
`torch-compile:sparse=0` ran: with random weights there are none; use `python -m harness bench` for other models.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).parents[1]))

if TYPE_CHECKING:
    from backends.base import Session
    from backends.native.library import MemoryProbe
    from backends.weights import Weights


def main() -> None:
    """Every cell by itself, a line for each subject."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="synthetic:rwkv7-0.1b")
    p.add_argument("--dtype", default="f32", choices=("f32", "bf16"))
    p.add_argument("--against", nargs="*", default=[], metavar="BACKEND")
    p.add_argument("--llama", metavar="PYTHON", default="")
    p.add_argument("--batch", nargs="*", type=int, default=[1, 4, 16, 64])
    p.add_argument("--prompt", nargs="*", type=int, default=[512])
    p.add_argument("--steps", type=int, default=8, help="decoded tokens a sample")
    p.add_argument("--seconds", type=float, default=30.0, help="of each cell, at most")
    p.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    options = p.parse_args()

    from backends import registry
    from backends.checkpoint import open_checkpoint
    from backends.native.library import MemoryProbe

    with open_checkpoint(options.model) as weights, tempfile.TemporaryDirectory() as folder:
        sessions = {
            name: registry.open_session(registry.parse(f"{name}@{options.dtype}"), weights, options.threads)
            for name in ("torch-compile", *options.against)
        }
        llama = llama_timer(options.llama, weights, options.dtype, options.threads, Path(folder))
        probe = MemoryProbe(options.threads)
        for B in options.batch:
            able = {name: s for name, s in sessions.items() if B == 1 or s.shares_batch}
            subjects = {name: decode(s, B, options.steps) for name, s in able.items()}
            subjects |= llama(f"decode {B} {options.steps}")
            samples = interleaved(subjects, probe, options.seconds)
            moved = options.steps * needed(weights, options.dtype, B)
            show(f"decode, batch {B}", samples, B * options.steps, moved)
        for T in options.prompt:
            subjects = {name: prefill(s, T) for name, s in sessions.items()} | llama(f"prompt {T}")
            show(f"prompt of {T}", interleaved(subjects, probe, options.seconds), T, 0)
        for session in sessions.values():
            session.close()


Timers = dict[str, Callable[[], float]]
"""Subject -> seconds of one sample."""


def llama_timer(python: str, weights: "Weights", dtype: str, threads: int, folder: Path) -> Callable[[str], Timers]:
    """From a cell, as llama_timer.py reads it, to llama.cpp as a subject; to none where it was not asked for."""
    if not python:
        return lambda _: {}
    from backends.gguf_writer import save_gguf

    path = save_gguf(weights, folder / "model.gguf", dtype)
    program = [python, str(Path(__file__).with_name("llama_timer.py")), str(path), str(threads)]
    child = subprocess.Popen(
        program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )

    def seconds(cell: str) -> float:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"{cell}\n")
        child.stdin.flush()
        return float(child.stdout.readline())

    return lambda cell: {"llama.cpp": lambda: seconds(cell)}


def needed(weights: "Weights", dtype: str, B: int) -> int:
    """Bytes that a decoded token of every row moves: all weights but the embedding, the state twice."""
    facts, size = weights.facts, {"f32": 4, "bf16": 2}[dtype]
    state = facts.n_layer * (facts.n_embd * facts.head_size * 4 + 2 * facts.n_embd * size)
    return (facts.parameters - facts.vocab_size * facts.n_embd) * size + 2 * B * state


def decode(session: "Session", B: int, count: int) -> Callable[[], float]:
    """Seconds of `count` steps, after the prompt and the first one."""

    def sample() -> float:
        steps = session.generate([[1]] * B, max_new_tokens=count + 1)
        next(steps)
        start = time.perf_counter()
        done = sum(1 for _ in steps)
        assert done == count
        return time.perf_counter() - start

    return sample


def prefill(session: "Session", T: int) -> Callable[[], float]:
    """Seconds of a prompt; logits of its last token."""
    from backends.base import Want

    ids = [[1 + i % 97 for i in range(T)]]

    def sample() -> float:
        start = time.perf_counter()
        session.forward(ids, want=Want(fetch=False))
        return time.perf_counter() - start

    return sample


Samples = dict[str, list[tuple[float, float]]]
"""Subject -> (seconds, bytes a second that the probe read before it), one a round."""


def interleaved(subjects: Timers, probe: "MemoryProbe", seconds: float) -> Samples:
    """Rounds in random order until the time is over; two before that do not count."""
    samples: Samples = {name: [] for name in subjects}
    for sample in [*subjects.values()] * 2:
        sample()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(samples["torch-compile"]) < 3:
        for name in random.sample(list(subjects), len(subjects)):
            rate = max(read_rate(probe) for _ in range(2))  # threads that slept are late for the first
            samples[name].append((subjects[name](), rate))
    return samples


def read_rate(probe: "MemoryProbe") -> float:
    """Bytes a second."""
    start = time.perf_counter()
    probe.read()
    return probe.nbytes / (time.perf_counter() - start)


def show(cell: str, samples: Samples, tokens: int, moved: int) -> None:
    """One line a subject."""
    ours = [seconds for seconds, _ in samples["torch-compile"]]
    for name, found in samples.items():
        seconds = [s for s, _ in found]
        ratio = statistics.median(theirs / mine for mine, theirs in zip(ours, seconds, strict=True))
        best = tokens / min(seconds)
        line = f"{cell:18} {name:14} {tokens / statistics.median(seconds):8.1f} tokens/s (best {best:8.1f})"
        if moved:
            share = statistics.median(moved / s / rate for s, rate in found)
            low, high = min(r for _, r in found) / 1e9, max(r for _, r in found) / 1e9
            line += f"  {share:5.2f} of the probe ({low:.0f}-{high:.0f} GB/s)"
        print(f"{line}  torch-compile is {ratio:.2f}x  ({len(found)} rounds)", flush=True)


if __name__ == "__main__":
    main()
