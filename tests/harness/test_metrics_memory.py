"""Memory of the numbers over a large vocabulary: 65,536 x 512 logits, in a process of its own."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

PROGRAM = """
import json, sys, tracemalloc
import numpy as np
from backends.base import ModelFacts
from harness.measures import distribution, logits
from harness.measures.base import Context
from harness.suite import Case

T, V = 512, 65536
rows = np.random.default_rng(0).standard_normal((16, V), dtype=np.float32)
want = np.tile(rows, (T // 16, 1))
got = want + np.float32(1e-3) * np.roll(want, 1, axis=1)
facts = ModelFacts("made", "7", "", V, 64, 1, 1, 64, 256, 1000)
context = Context(Case("long", "long", {}), np.arange(T), facts)
tracemalloc.start()
found = {"copy": want.nbytes}
for measure in (logits, distribution):
    sample, truth = {"logits": got}, {"logits": want}
    tracemalloc.reset_peak()
    numbers = measure.compare(sample, truth, context)
    list(measure.observe(sample, truth, context))
    found[measure.__name__] = tracemalloc.get_traced_memory()[1]
    assert all(np.isfinite(number.value) for number in numbers), numbers
json.dump(found, sys.stdout)
"""


def test_numbers_stream() -> None:
    """No step over 512 positions of 65,536 logits holds a further copy of them; nor a quarter of one."""
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=True, cwd=ROOT, capture_output=True, text=True)
    found = json.loads(done.stdout)
    copy = found.pop("copy")
    assert copy == 512 * 65536 * 4
    assert set(found) == {"harness.measures.logits", "harness.measures.distribution"}
    for measure, peak in found.items():
        assert 0 < peak < copy / 4, f"{measure}: {peak / 2**20:.0f} MiB beside logits of {copy / 2**20:.0f} MiB"
