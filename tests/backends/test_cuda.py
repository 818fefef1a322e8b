"""What only a GPU can show: `pytest -m cuda`; collected everywhere, skipped in words without one."""

import itertools
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from backends.base import Array, Session, Want
from backends.torch_compiled import open_torch_compiled
from harness.cli import run_command
from tests.backends import numpy_rwkv7
from tests.backends.feeding import ALL, fed, foreign_greedy, ids_for, logits_of
from tests.backends.random_model import as_weights, random_rwkv7
from tests.backends.triton_here import NO_GPU

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(bool(NO_GPU), reason=f"no GPU: {NO_GPU}"),
    pytest.mark.filterwarnings("default"),  # torch's compiler warns of what it does on the way
]

V = 997
KINDS = {"bf16": torch.bfloat16, "f32": torch.float32}


def session(dtype: str = "bf16", argument: str = "", L: int = 3) -> Session:
    tensors = random_rwkv7(C=256, N=64, L=L, V=V, dtype=KINDS[dtype])
    return open_torch_compiled(as_weights(tensors), device="cuda", dtype=dtype, threads=0, argument=argument)


def generated(mine: Session, rows: Array, count: int = 24) -> Array:
    return np.stack(list(mine.generate(rows, None, count)))


@pytest.mark.parametrize(
    ("model", "suites"), [("conformance", "logits,stepwise,consistency,state"), ("synthetic:rwkv7-0.1b", "logits")]
)
@pytest.mark.parametrize("subject", ["torch-compile@cuda,bf16", "torch-compile@cuda", "torch-cuda-bf16"])
def test_within_the_envelope_of_float64(subject: str, model: str, suites: str, tmp_path: Path) -> None:
    arguments = ["--model", model, "--backend", subject, "--suite", suites, "--use", "none", "--no-diagnosis"]
    arguments += [] if model == "conformance" else ["--honest-runs", "2"]  # on a CPU, while the GPU waits
    assert run_command(["validate", *arguments, "--format", "json", "--out", str(tmp_path)]) == 0


@pytest.mark.parametrize("B", [1, 2, 16])
def test_a_graph_changes_no_token(B: int) -> None:
    rows = ids_for(4 * B, V).reshape(B, 4)
    with session() as replayed, session(argument="graph=0") as launched:
        tokens = generated(replayed, rows)
        assert np.array_equal(tokens, generated(launched, rows))
        assert np.array_equal(tokens, generated(replayed, rows)), "the second run replays the same graph"
        assert np.array_equal(tokens, np.stack(list(replayed.generate(rows, foreign_greedy, 24))))
        handles = [fed(mine, rows, [1] * 4).state for mine in (replayed, launched)]
        states = [mine.export_state(handle) for mine, handle in zip((replayed, launched), handles, strict=True)]
        for one, other in zip(*(state.parts().values() for state in states), strict=True):
            assert np.array_equal(one, other)


def test_a_table_on_the_host_gives_the_same_tokens() -> None:
    rows = ids_for(6, V).reshape(2, 3)
    with session() as plain, session(argument="embedding=host") as hosted:
        assert np.array_equal(generated(plain, rows), generated(hosted, rows))


def test_zeros_that_are_not_read_change_no_answer_beyond_rounding() -> None:
    ids = ids_for(40, V)
    with session("f32") as sparse, session("f32", "sparse=0") as dense:
        answers = [logits_of(fed(mine, ids, [1] * 40)) for mine in (sparse, dense)]
        assert np.abs(answers[0] - answers[1]).max() <= 6e-5
        assert sparse.skipped_bytes > 0
        assert dense.skipped_bytes == 0


def test_handles_are_never_written_to() -> None:
    with session() as mine:
        handle = mine.forward(ids_for(70, V), want=ALL).state
        before = mine.export_state(handle)
        first = mine.forward([4], handle, ALL)
        list(mine.generate([1, 2], None, 8))
        again = mine.forward([4], handle, ALL)
        assert np.array_equal(logits_of(first), logits_of(again))
        for one, other in zip(before.parts().values(), mine.export_state(handle).parts().values(), strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize(
    ("dtype", "limit"), [("bf16", 2e-2), ("f32", 1e-5)]
)  # sums in another order, over a layer's depth
def test_rows_of_a_batch_are_the_single_rows(dtype: str, limit: float) -> None:
    ids = ids_for(64 * 8, V).reshape(64, 8)
    with session(dtype) as mine:
        together = logits_of(fed(mine, ids, [5, 1, 1, 1]))
        for row in (0, 17, 63):
            alone = logits_of(fed(mine, ids[row : row + 1], [5, 1, 1, 1]))
            assert np.sqrt(np.mean((together[row] - alone[0]) ** 2)) <= limit * alone.std()


@pytest.mark.parametrize(("dtype", "limit"), [("bf16", 2e-2), ("f32", 1e-5)])
@pytest.mark.parametrize("triton", ["1", "0"])
def test_triton_and_torch_equal_float64(triton: str, dtype: str, limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_TRITON", triton)
    tensors, ids = random_rwkv7(C=256, N=64, L=3, V=V, dtype=KINDS[dtype]), ids_for(300, V)
    truth, _ = numpy_rwkv7.run(tensors, ids)
    with open_torch_compiled(as_weights(tensors), device="cuda", dtype=dtype, threads=0) as mine:
        assert ("Triton" in mine.info.attention) == (triton == "1")
        for sizes in ([300], [33, 1, 200, 1, 65], [280, *[1] * 20]):
            error = logits_of(fed(mine, ids, sizes))[0] - truth
            assert np.sqrt(np.mean(error**2)) <= limit * truth.std()


def test_a_token_costs_the_same_behind_100000_others() -> None:
    with session(L=6) as mine:
        state, far = None, 100_000
        for start in range(0, far, 10_000):
            state = mine.forward(ids_for(10_000, V, seed=start), state, Want(logits="none", state=True)).state
        exported = mine.export_state(state)
        assert all(np.isfinite(part).all() for part in exported.parts().values())
        near = mine.forward([1], None, Want(logits="none", state=True)).state
        seconds: dict[str, list[float]] = {"near": [], "far": []}
        for name, handle in itertools.islice(itertools.cycle((("near", near), ("far", state))), 400):
            mine.sync()
            begin = time.perf_counter()
            mine.forward([2], handle, Want(fetch=False))
            mine.sync()
            seconds[name].append(time.perf_counter() - begin)
        ratio = statistics.median(seconds["far"][50:]) / statistics.median(seconds["near"][50:])
        assert 0.95 <= ratio <= 1.05
