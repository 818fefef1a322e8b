"""Every kernel in Triton compiled for a GPU that need not be there: registers, spills, shared memory, wide loads.

    python benchmarks/cuda_kernels.py [--target 90] [--dtype bf16] [--only solve]

Needs the Python package triton, which brings ptxas along. Exit code 1 if a kernel does not compile. A `spill` is what a
thread keeps in local memory for want of registers, in bytes. `products` counts tensor-core instructions, `wide` loads
of 16 bytes, `async` copies to shared memory that run while a block computes.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parents[1]))


class Case(NamedTuple):
    """A kernel as it is launched."""

    kernel: Any
    types: tuple[str, ...]
    constants: Mapping[str, Any]
    warps: int
    stages: int = 3


class Found(NamedTuple):
    """What became of it."""

    registers: int
    spill: int
    shared: int
    products: int
    wide: int
    copies: int


def main() -> None:
    """A line for each kernel."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--target", type=int, default=90, help="compute capability: 80 (A100), 89 (L4), 90 (H100, H200)")
    p.add_argument("--dtype", default="bf16", choices=("bf16", "f16", "f32"))
    p.add_argument("--only", default="", metavar="TEXT", help="kernels whose name has it")
    options = p.parse_args()

    from triton import __version__

    print(f"triton {__version__}, sm_{options.target}, {options.dtype}, C = 2560, heads of 64 (2.9B)")
    print(f"{'kernel':42} {'registers':>9} {'spill':>6} {'shared':>7} {'products':>8} {'wide':>5} {'async':>5}")
    failed = False
    for name, case in cases(options.dtype):
        if options.only in name:
            try:
                found = compiled(case, options.target)
            except Exception as error:  # a compiler fails in its own ways
                failed = True
                print(f"{name:42} does not compile: {type(error).__name__}: {error}", flush=True)
                continue
            print(f"{name:42} {found.registers:9} {found.spill:6} {found.shared:7}", end=" ")
            print(f"{found.products:8} {found.wide:5} {found.copies:5}", flush=True)
    sys.exit(int(failed))


def cases(dtype: str) -> Iterator[tuple[str, Case]]:
    """Every kernel with the sizes of 2.9B, by name."""
    from backends.compiled import triton_wkv as wkv

    H, N, L, F = 40, 64, wkv.CHUNK, "*fp32"
    exact = dtype == "f32"
    head = {"H": H, "N": N}
    precision = {"PRECISION": "ieee" if exact else "tf32x3"}
    yield "scan", Case(wkv.scan_kernel, (*[F] * 9, "i32"), {**head, "ROWS": wkv.ROWS}, wkv.WARPS["scan"])
    sizes = {**head, "L": L, **precision}
    levels = {"LEVELS": L.bit_length() - 1}
    yield "solve", Case(wkv.solve_kernel, (*[F] * 9, "i32", "i32"), sizes | levels, wkv.WARPS["solve"])
    rows = {"N": N, "ROWS": wkv.ROWS, **precision}
    yield "walk", Case(wkv.walk_kernel, (*[F] * 5, "i32"), rows, wkv.WARPS["walk"])
    yield "answer", Case(wkv.answer_kernel, (*[F] * 10, "i32", "i32"), sizes, wkv.WARPS["answer"])
    yield from _step(dtype)


def _step(dtype: str) -> Iterator[tuple[str, Case]]:
    """Those of a single token."""
    from backends.compiled import packed, step
    from backends.compiled import triton_step as one

    C, H, N, A, F = 2560, 40, 64, f"*{ {'bf16': 'bf16', 'f16': 'fp16', 'f32': 'fp32'}[dtype] }", "*fp32"
    row = {"C": C, "EPS": 1e-5, "BLOCK": 4096}
    yield "embed", Case(one.embed_kernel, ("*i64", A, A, A, A), row, 8)
    yield "shift, 6 mixes", Case(one.shift_kernel, (A,) * 6, row | {"MIXES": 6}, 8)
    product = ((A, A, "*i64", A, "i32", "i32", "i32"), step.WARPS, step.STAGES)
    for name, rows, depth, B in (
        ("r k v and low-rank", 3 * C + 480, C, 1),
        ("low-rank", 4 * C, 256, 1),
        ("output", C, C, 1),
        ("output, batch 16", C, C, 16),
        ("key, batch 64", 4 * C, C, 64),
    ):
        stack = packed.Stack.__new__(packed.Stack)
        stack.rows, stack.depth = rows, depth
        tile = step.tile_for(stack, B)
        fixed = {"ENTRY": packed.ENTRY, "STAGES": step.STAGES, "ADD": True, "WIDE": False, "PRECISION": "ieee"}
        cut = {"ROWS": tile.rows, "DEPTH": tile.depth, "BATCH": B, **fixed}
        yield f"product: {name} ({tile.rows} x {tile.depth})", Case(one.product_kernel, product[0], cut, *product[1:])
    state = (A, A, F, F, F, A, F, "i32")
    head = {"H": H, "N": N, "ROWS": N, "FIRST": False, "DECAY": 0.6, "FLOOR": 1e-12, "EPS": 64e-5}
    yield "attend, a head in a block", Case(one.attend_kernel, state, head, 4)
    parts = (A, A, F, F, F, F, F, "i32")
    yield "attend, a head in 4 blocks", Case(one.attend_kernel, parts, head | {"ROWS": 16}, 4)
    yield "finish", Case(one.finish_kernel, (F, F, A, F, A), {"H": H, "N": N, "EPS": 64e-5}, 2)
    sparse = {"COLUMNS": step.SPARSE_COLUMNS, "DEPTH": step.SPARSE_DEPTH, "EACH": 640, "STAGES": step.STAGES}
    yield "sparse", Case(one.sparse_kernel, (A, A, F, "*i64", "i32", "i32"), sparse, 4)
    yield "collect", Case(one.collect_kernel, (F, A, "i32"), {"PARTS": step.SPARSE_PARTS, "COLUMNS": 128}, 4)


def compiled(case: Case, target: int) -> Found:
    """Compile a kernel down to machine code and look at it."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = case.kernel.arg_names
    types = iter(case.types)
    signature = {name: "constexpr" if name in case.constants else next(types) for name in names}
    aligned = [i for i, name in enumerate(names) if signature[name] != "constexpr" and name not in ("T", "chunks", "B")]
    source = ASTSource(
        case.kernel,
        signature,
        {(names.index(name),): value for name, value in case.constants.items()},
        {(i,): [["tt.divisibility", 16]] for i in aligned},
    )
    options = {"num_warps": case.warps, "num_stages": case.stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options)
    registers, spill = _usage(Path(triton.__file__).parent, kernel.asm["cubin"])
    ptx = kernel.asm["ptx"]
    products = ptx.count("mma.sync") + ptx.count("wgmma.mma_async")
    wide, copies = len(re.findall(r"ld\.global[.\w]*\.v4", ptx)), len(re.findall(r"cp\.async\.c[ag]", ptx))
    return Found(registers, spill, kernel.metadata.shared, products, wide, copies)


def _usage(folder: Path, cubin: bytes) -> tuple[int, int]:
    """Registers and local memory of a thread, in bytes."""
    tool = folder / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run([str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"REG:(\d+) STACK:(\d+)", told)[-1]
    return int(found[0]), int(found[1])


if __name__ == "__main__":
    main()
