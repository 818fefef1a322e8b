"""A million tokens through one state: is the speed the same at the end, is the memory, are the numbers still numbers?

    python benchmarks/streaming.py [--model conformance] [--backend torch-compile] [--tokens 1000000] [--threads 1]
                                   [--out docs/benchmarks/streaming-conformance.json]

Tokens are drawn at random, not taken greedily, so that the text does not fall into a loop. They go in one by one, each
behind the state that the one before it left, and every token's logits are looked at. A part of the tokens is timed
together and makes one point; between parts the resident memory is read. The record has all points; printed are the
medians of the first and the last tenth, and the slope over all points as a change over the whole way, with its bounds.
Exit code 1 if logits or state were not finite once.
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))


def main() -> int:
    """Stream, print, keep."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="conformance")
    p.add_argument("--backend", default="torch-compile")
    p.add_argument("--tokens", type=int, default=1_000_000)
    p.add_argument("--part", type=int, default=10_000, help="tokens of one point")
    p.add_argument("--threads", type=int, default=1)
    p.add_argument("--out", type=Path)
    options = p.parse_args()
    if options.part < 1 or options.tokens < 10 * options.part:
        p.error(f"--tokens {options.tokens} are fewer than ten parts of {options.part}")

    from harness import facts

    record = {
        "command": f"python benchmarks/streaming.py {' '.join(sys.argv[1:])}".strip(),
        "environment": facts.environment(),
        **streamed(options),
    }
    if options.out:
        options.out.write_text(json.dumps(record, indent=1) + "\n")
    return 0 if record["finite"] else 1


def streamed(options: argparse.Namespace) -> dict[str, Any]:
    """All points, and what they come to."""
    from backends import registry
    from backends.base import Want
    from backends.checkpoint import open_checkpoint
    from harness import memory, statistics

    want = Want(logits="last", state=True)
    random = np.random.default_rng(0)
    points: dict[str, list[float]] = {"token": [], "tokens_a_second": [], "resident": []}
    finite, handle, fed = True, None, 0
    with (
        open_checkpoint(options.model) as weights,
        registry.open_session(registry.parse(options.backend), weights, options.threads) as session,
    ):
        while fed < options.tokens:
            ids = random.integers(0, weights.facts.vocab_size, size=(options.part, 1, 1))
            worst = 0.0
            start = time.perf_counter()
            for one in ids:
                out = session.forward(one, handle, want)
                handle = out.state
                worst += float(out.logits.sum())  # type: ignore[union-attr] # NaN and infinity stay in a sum
            seconds = time.perf_counter() - start
            fed += options.part
            finite &= bool(np.isfinite(worst))
            points["token"].append(fed)
            points["tokens_a_second"].append(options.part / seconds)
            seen = memory.look()
            points["resident"].append(float(seen.now if seen else 0))
            if sys.stderr.isatty():
                print(f"\r{fed:,} tokens, {options.part / seconds:,.0f} a second ", end="", file=sys.stderr, flush=True)
        state = session.export_state(handle)
        finite &= all(bool(np.isfinite(part).all()) for part in (state.att_shift, state.wkv, state.ffn_shift))
        norm = float(np.sqrt(np.mean(np.square(state.wkv))))
    change = statistics.growth(points["token"], points["tokens_a_second"])
    tell(points, change, finite, norm)
    return {
        "finite": finite, "state_rms": norm, "growth": [change.low, change.value, change.high],
        "verdict": statistics.cost_verdict(change), "points": points,
    }  # fmt: skip


def tell(points: dict[str, list[float]], change: Any, finite: bool, norm: float) -> None:
    """What it comes to, in words."""
    speed, resident = np.array(points["tokens_a_second"]), np.array(points["resident"])
    tenth = max(1, len(speed) // 10)
    health = "finite" if finite else "NOT FINITE"
    print(f"{int(points['token'][-1]):,} tokens; logits and state {health}; state RMS {norm:.3g}")
    print(
        f"tokens a second: first tenth {np.median(speed[:tenth]):,.0f}, last tenth {np.median(speed[-tenth:]):,.0f}; "
        f"slope over all of it {100 * change.value:+.2f}% ({100 * change.low:+.2f}% to {100 * change.high:+.2f}%)"
    )
    grown = (resident[-1] - resident[tenth]) / 2**20
    print(f"resident memory: {resident[tenth] / 2**20:.1f} MiB after the first tenth, {grown:+.1f} MiB until the end")


if __name__ == "__main__":
    sys.exit(main())
