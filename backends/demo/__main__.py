"""`python -m backends.demo` trains the checkpoint `demo` and writes it; an interrupted run goes on where it was."""

import argparse
import platform
import sys
import time
from pathlib import Path

import torch

from backends.demo import baselines, corpus, export, scan, training
from backends.demo.corpus import Corpus
from backends.demo.training import Plan, Trainer
from backends.errors import HarnessError

SLICE = 4096
"""Of each held-out file so many bytes are judged while the training runs; all of them at its end."""


def main(arguments: list[str] | None = None) -> int:
    """Train, judge, write; returns the exit code."""
    options = _options(arguments)
    torch.set_num_threads(options.threads)
    torch.set_flush_denormal(True)  # the moments of bytes long unseen become denormal, and slow
    try:
        return _run(options)
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the checkpoint", file=sys.stderr)
        return 130
    finally:
        torch.set_flush_denormal(False)


def _run(options: argparse.Namespace) -> int:
    plan = Plan(
        steps=options.steps, finish=options.finish, scan=options.scan, compile=not options.no_compile, seed=options.seed
    )
    text = corpus.read()
    print(
        f"Python {platform.python_version()}: {len(text.training)} files, {sum(map(len, text.training)):,} bytes to "
        f"train on; {len(text.held_out)} files, {sum(map(len, text.held_out)):,} bytes held out; {text.fingerprint()}"
    )
    trainer = Trainer(plan, text.training)
    state = Path(options.out) / "training.pt"
    state.parent.mkdir(parents=True, exist_ok=True)
    if state.exists():
        trainer.load(state)
    print(f"{sum(p.numel() for p in trainer.weights.values()):,} parameters; step {trainer.step} of {plan.total}")
    training.train(trainer, state, Log(text, options.judge).tell)
    _judge(trainer, text, Path(options.out) / "demo.safetensors")
    return 0


def _judge(trainer: Trainer, text: Corpus, path: Path) -> None:
    """Write the file, and say what it reached beside simpler means."""
    plan = trainer.plan
    reached = training.bits_per_byte(export.rounded(trainer.weights), plan.shape, text.held_out, plan.scan)
    ngram = baselines.NGram(text.training).bits_per_byte(text.held_out)
    facts = {"corpus": text.fingerprint(), "steps": str(plan.total), "bits_per_byte": f"{reached:.4f}"}
    digest = export.write(trainer.weights, facts, path)
    print("held-out bits per byte, whole files:")
    print(f"  demo, bf16 weights            {reached:.4f}")
    print(f"  order-{baselines.ORDER} n-gram (Kneser-Ney)   {ngram:.4f}")
    print(f"  gzip -9                       {baselines.gzip_bits(text.held_out):.4f}")
    print(f"wrote {path}: {path.stat().st_size:,} bytes, sha256 {digest}")


class Log:
    """Says how far the training is: one rewritten line on a terminal, a line every so often elsewhere.

    Args:
        text: whose held-out files are judged along the way.
        judge: steps between two judgements; 0 is never.
    """

    def __init__(self, text: Corpus, judge: int) -> None:
        self._text, self._judge, self._live = text, judge, sys.stderr.isatty()
        self._loss, self._seconds = float("nan"), 0.0

    def tell(self, trainer: Trainer, seconds: float) -> None:
        """After a step."""
        first = self._loss != self._loss
        self._loss = trainer.loss if first else 0.98 * self._loss + 0.02 * trainer.loss
        self._seconds = seconds if first else 0.98 * self._seconds + 0.02 * seconds
        step, steps = trainer.step, trainer.plan.total
        line = f"step {step} of {steps}, {self._loss:.3f} bits per byte, {self._seconds:.2f} s a step"
        if self._live:
            left = (steps - step) * self._seconds / 60
            print(
                f"\r\x1b[2K{line}, {left:.0f} min left", end="\n" if step == steps else "", file=sys.stderr, flush=True
            )
        elif step % 50 == 0 or step == steps:
            print(f"{time.strftime('%H:%M:%S')} {line}", flush=True)
        if self._judge and step % self._judge == 0:
            plan = trainer.plan
            bits = training.bits_per_byte(
                trainer.weights, plan.shape, self._text.held_out, plan.scan, SLICE, plan.dtype
            )
            print(
                f"\nstep {step}: the first {SLICE} bytes of each held-out file take {bits:.4f} bits per byte",
                flush=True,
            )


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m backends.demo", description=__doc__, allow_abbrev=False)
    default = Plan()
    parser.add_argument(
        "--out", default="demo-training", metavar="DIR", help="checkpoint and result (default: %(default)s)"
    )
    parser.add_argument("--steps", type=int, default=default.steps, metavar="N", help="batches (default: %(default)s)")
    parser.add_argument(
        "--finish", type=int, default=default.finish, metavar="N",
        help="further batches, each row from the beginning of a statement (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of weights and order (default: 0)")
    parser.add_argument("--threads", type=int, default=1, metavar="N", help="of torch (default: 1)")
    parser.add_argument("--judge", type=int, default=500, metavar="N", help="steps between judgements (default: 500)")
    parser.add_argument("--no-compile", action="store_true", help="do not compile the layers: slower, starts at once")
    parser.add_argument(
        "--scan", choices=("native", "chunks"), default="chunks" if scan.obstacle() else "native",
        help="the recurrence by a small C program or by matrix products (default: native where there is a compiler)",
    )  # fmt: skip
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
