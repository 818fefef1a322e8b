"""The GPU backend's mathematics on the CPU, and on a GPU where there is one."""

import numpy as np
import pytest
import torch

from backends import registry
from backends.base import Session, Want
from backends.errors import BackendError
from backends.torch_compiled import open_torch_compiled
from backends.torch_cuda import open_torch_cuda
from tests.backends import numpy_rwkv7
from tests.backends.feeding import (
    ALL,
    F32_BAND,
    assert_close,
    assert_within,
    fed,
    foreign_greedy,
    ids_for,
    logits_of,
    small_model,
)
from tests.backends.random_model import as_weights, random_rwkv7


def on_cpu(tensors: dict[str, torch.Tensor], dtype: str = "f32") -> Session:
    return open_torch_cuda(as_weights(tensors), device="cpu", dtype=dtype, threads=0)


@pytest.fixture
def small() -> Session:
    return on_cpu(small_model())


def test_equals_numpy_float64() -> None:
    tensors, ids = random_rwkv7(), ids_for(70, 997)
    session = on_cpu(tensors)
    logits, S = numpy_rwkv7.run(tensors, ids)
    out = session.forward(ids, want=ALL)
    assert_within(logits_of(out)[0], logits, F32_BAND)
    assert_within(session.export_state(out.state).wkv[:, 0], S, F32_BAND)


def test_one_shot_equals_chunks_and_single_tokens(small: Session) -> None:
    ids = ids_for(60).reshape(2, 30)
    before = small.forward(ids[:, :4], want=ALL).state
    once = fed(small, ids, [30], before)
    for sizes in ([1] * 30, [7, 23], [29, 1]):
        assert_close(small, fed(small, ids, sizes, before), once)
    again = small.forward(ids, small.import_state(small.export_state(before)), ALL)
    assert_close(small, again, once, limit=0.0)


@pytest.mark.parametrize(("dtype", "limit"), [("bf16", 2e-2), ("f16", 3e-3)])
def test_half_precision_keeps_decay_and_state_in_float32(dtype: str, limit: float) -> None:
    """RMS error over the last tokens, in units of the logits' deviation; a bf16 decay or state would reach 5e-2."""
    kind = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    tensors, ids = random_rwkv7(128, 64, 3, 97, dtype=kind), ids_for(192)
    for i in range(3):
        tensors[f"blocks.{i}.att.w0"].fill_(-6.0)
    truth, _ = numpy_rwkv7.run(tensors, ids)
    out = on_cpu(tensors, dtype).forward(ids, want=ALL)
    error = (logits_of(out)[0] - truth)[-32:]
    assert np.sqrt(np.mean(error**2)) <= limit * truth.std()
    assert [part.dtype for part in out.state[0]] == [kind, torch.float32, kind]


@pytest.mark.parametrize("name", ["blocks.1.att.w0", "blocks.0.att.r_k", "blocks.1.ffn.value.weight", "head.weight"])
def test_nan_in_a_weight_is_not_hidden(name: str) -> None:
    tensors = small_model()
    tensors[name].view(-1)[-1] = float("nan")
    assert np.isnan(logits_of(on_cpu(tensors).forward([1, 2]))).any()


def test_layer_0_never_reads_its_value_residual() -> None:
    tensors = small_model()
    plain = logits_of(on_cpu(tensors).forward([1, 2]))
    for i in range(3):
        tensors[f"blocks.0.att.v{i}"] = torch.full_like(tensors[f"blocks.1.att.v{i}"], float("nan"))
    assert_within(logits_of(on_cpu(tensors).forward([1, 2])), plain, 0.0)


def test_want_generation_and_closing(small: Session) -> None:
    ids = ids_for(6)
    none = small.forward(ids, want=Want(logits="none", state=True))
    assert (none.logits, none.state is None) == (None, False)
    unfetched = small.forward(ids, want=Want(fetch=False))
    assert unfetched.logits is None
    assert len(list(small.generate(ids, foreign_greedy, 3))) == 3
    small.sync()
    small.close()
    with pytest.raises(BackendError, match="closed"):
        small.forward(ids)


def test_opening_errors_are_words(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = as_weights(random_rwkv7(16, 16, 1, 8))
    with pytest.raises(BackendError, match="serves dtype bf16, f32, f16, not 'f64'"):
        open_torch_cuda(weights, device="cpu", dtype="f64", threads=0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="no usable CUDA device"):
        open_torch_cuda(weights, device="cuda", dtype="bf16", threads=0)


def test_threads_are_set_on_request() -> None:
    before = torch.get_num_threads()
    weights = as_weights(random_rwkv7(16, 16, 1, 8))
    try:
        for opener in (open_torch_cuda, open_torch_compiled):
            for threads in (1, 2):
                assert opener(weights, device="cpu", dtype="f32", threads=threads).info.threads == threads
    finally:
        torch.set_num_threads(before)


def gpu() -> str:
    """Why the tests on a GPU cannot run here."""
    return registry.find("torch-cuda-bf16").available()


@pytest.mark.cuda
@pytest.mark.parametrize(("dtype", "limit"), [("bf16", 2e-2), ("f32", 1e-5)])
@pytest.mark.parametrize("opener", [open_torch_cuda, open_torch_compiled])
def test_on_a_gpu(opener: registry.Opener, dtype: str, limit: float) -> None:
    if reason := gpu():
        pytest.skip(f"no GPU: {reason}")
    kind = {"bf16": torch.bfloat16, "f32": torch.float32}[dtype]
    tensors, ids = random_rwkv7(dtype=kind), ids_for(130, 997)
    truth, _ = numpy_rwkv7.run(tensors, ids)
    with opener(as_weights(tensors), device="cuda", dtype=dtype, threads=0) as session:
        for sizes in ([130], [100, 1, 29], [1] * 130):
            error = logits_of(fed(session, ids, sizes))[0] - truth
            assert np.sqrt(np.mean(error**2)) <= limit * truth.std()
        rows = np.stack([ids[:20], ids[20:40]])
        fast, inherited = (list(session.generate(rows, sampler, 16)) for sampler in (None, foreign_greedy))
        assert np.array_equal(np.stack(fast), np.stack(inherited))
