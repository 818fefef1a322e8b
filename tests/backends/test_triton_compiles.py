"""The kernels compiled to machine code for GPUs that are not here."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.backends.triton_here import INSTALLED

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "cuda_kernels.py"
MOST_SPILLED = 256
"""Bytes of a thread in local memory; the largest kernel has 64 to 232, by version of Triton."""


@pytest.mark.skipif(not INSTALLED, reason="the Python package 'triton' is not installed")
@pytest.mark.parametrize("options", [("--target", "90"), ("--target", "80", "--dtype", "f16", "--only", "product")])
def test_every_kernel_compiles_without_spilling_much(options: tuple[str, ...], tmp_path: Path) -> None:
    without = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", str(SCRIPT), *options],
        env={**without, "TRITON_CACHE_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = re.findall(r"^(.{42}) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+) +(\d+)$", done.stdout, flags=re.MULTILINE)
    assert len(rows) == (5 if "product" in options else 16)
    for name, _, spill, shared, products, wide, copies in rows:
        assert int(spill) <= MOST_SPILLED, name
        assert int(shared) <= 99 << 10, f"{name}: the smallest cards have no more"
        if name.startswith(("solve", "walk", "answer", "product: key")):
            assert int(products) > 0, f"{name}: no tensor cores"
        if name.startswith(("product", "sparse", "attend", "scan")):
            assert int(wide) + int(copies) > 0, f"{name}: loads of single numbers"
