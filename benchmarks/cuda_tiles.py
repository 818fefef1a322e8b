"""Which cut of each kernel is fastest on this card: what `step.py` and `triton_wkv.py` assume, measured.

    python benchmarks/cuda_tiles.py [--model 2.9b] [--dtype bf16] [--tokens 4096] [--dry]

Products of a single row by rows x inputs of a block, loads under way and warps; the recurrence of a prompt by tokens a
chunk and warps. Each cut is replayed as a CUDA graph of 20 calls on weights that no cache holds; the median of 7
replays counts. The line that the code uses now is marked. With --dry a few are called under Triton's interpreter, and
no time is told.
"""

import argparse
import itertools
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

CALLS, REPLAYS = 20, 7
COPIES = 8
"""Of the weights, in turn: together they are larger than a cache."""


def main() -> None:
    """A line for each cut, the fastest last."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="2.9b", help="a size of synthetic:rwkv7-SIZE")
    p.add_argument("--dtype", default="bf16", choices=("bf16", "f16", "f32"))
    p.add_argument("--tokens", type=int, default=4096)
    p.add_argument("--dry", action="store_true")
    options = p.parse_args()
    if options.dry:
        os.environ["TRITON_INTERPRET"] = "1"

    from backends.sizes import SIZES

    C = 128 if options.dry else SIZES[f"rwkv7-{options.model}"].C
    shapes = {"r k v and low-rank": (3 * C + 480, C), "output": (C, C), "key": (4 * C, C), "value": (C, 4 * C)}
    for name, (rows, depth) in shapes.items():
        show(f"{name}, {rows} x {depth}", products(rows, depth, options.dtype, options.dry), options.dry)
    show(f"recurrence, {options.tokens} tokens", recurrences(C, options.tokens, options.dry), options.dry)


def products(rows: int, depth: int, dtype: str, dry: bool) -> Iterator[tuple[str, Callable[[int], None], int]]:
    """Name, call, bytes of every cut of a product of one row."""
    import torch

    from backends.compiled import packed, step, triton_step
    from backends.weights import DTYPES

    device, kind = ("cpu" if dry else "cuda"), DTYPES[dtype]
    W = torch.randn(rows, depth, device=device).to(kind)
    stacks = [packed.Stack([packed.Part(W)]) for _ in range(1 if dry else COPIES)]
    x, out = torch.randn(1, depth, device=device).to(kind), torch.zeros(1, rows, dtype=kind, device=device)
    used = step.tile_for(stacks[0], 1)
    cuts = itertools.product((4, 8, 16, 32), (256, 512, 1024, 2048), (1, 3, 4, 6), (2, 4, 8))
    for count, inputs, stages, warps in itertools.islice(cuts, 3 if dry else None):
        if not 1024 <= count * inputs <= 16384 or inputs > max(depth, 256):
            continue

        def call(at: int, cut: tuple[int, int, int, int] = (count, inputs, stages, warps)) -> None:
            stack, (count, inputs, stages, warps) = stacks[at % len(stacks)], cut
            table = stack.table(count)
            triton_step.product_kernel[len(table), 1](
                x, stack.weights, table, out, 1, depth, rows, ENTRY=packed.ENTRY, ROWS=count, DEPTH=inputs, BATCH=1,
                STAGES=stages, ADD=False, WIDE=dry, PRECISION="ieee", num_warps=warps, num_stages=stages,
            )  # fmt: skip

        now = (count, inputs, stages, warps) == (used.rows, used.depth, step.STAGES, step.WARPS)
        name = f"{count:3} x {inputs:4}, {stages} stages, {warps} warps{', used now' if now else ''}"
        yield name, call, rows * depth * kind.itemsize


def recurrences(C: int, T: int, dry: bool) -> Iterator[tuple[str, Callable[[int], None], int]]:
    """Every chunk of the recurrence of a prompt; bytes are its inputs and its output."""
    import torch

    from backends.compiled import triton_wkv as wkv

    H, N, T, device = C // 64, 64, 70 if dry else T, "cpu" if dry else "cuda"
    inputs = tuple(torch.randn(1, T, H, N, device=device).mul(0.1) for _ in range(6))
    inputs = (inputs[0], -inputs[1].abs(), *inputs[2:])
    S = torch.zeros(1, H, N, N, device=device)
    warps = dict(wkv.WARPS)
    for L, solve, walk, answer in itertools.product((16, 32, 64), (4, 8), (2, 4), (4, 8)):

        def call(at: int, L: int = L, solve: int = solve, walk: int = walk, answer: int = answer) -> None:
            del at
            wkv.WARPS.update(solve=solve, walk=walk, answer=answer)
            wkv.chunks(inputs, S, exact=False, L=L)

        now = (L, solve, walk, answer) == (wkv.CHUNK, warps["solve"], warps["walk"], warps["answer"])
        name = f"chunks of {L}, warps {solve} {walk} {answer}{', used now' if now else ''}"
        yield name, call, 7 * T * C * 4
        if dry:
            break
    wkv.WARPS.update(warps)


def show(title: str, cuts: Iterator[tuple[str, Callable[[int], Any], int]], dry: bool) -> None:
    """Time all, print the best ten and what is used."""
    found = []
    for name, call, moved in cuts:
        try:
            found.append((call(0) or 0.0 if dry else seconds(call), name, moved))
        except Exception as error:  # too much shared memory, too many registers
            print(f"  {name}: {type(error).__name__}", flush=True)
    print(f"{title}: {len(found)} cuts", flush=True)
    if dry:
        return
    best = sorted(found)
    for taken, name, moved in [*best[:10], *(one for one in best[10:] if "used now" in one[1])]:
        print(f"  {1e6 * taken:8.1f} us {moved / max(taken, 1e-9) / 1e9:8.0f} GB/s  {name}", flush=True)


def seconds(call: Callable[[int], None]) -> float:
    """Of one call, in a graph of many."""
    import torch

    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    with torch.cuda.stream(side):
        for at in range(COPIES):
            call(at)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for at in range(CALLS):
            call(at)
    taken = []
    for _ in range(REPLAYS):
        torch.cuda.synchronize()
        start = time.perf_counter()
        graph.replay()
        torch.cuda.synchronize()
        taken.append((time.perf_counter() - start) / CALLS)
    return statistics.median(taken)


if __name__ == "__main__":
    main()
