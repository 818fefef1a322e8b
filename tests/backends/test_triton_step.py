"""Single tokens and whole sessions through the kernels in Triton, on a GPU or interpreted."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from backends.base import Session, Want
from backends.compiled import graph, kernels, packed, step, triton_ops
from backends.compiled.kernels import Kernels
from backends.compiled.switches import Switches
from backends.torch_compiled import open_torch_compiled
from tests.backends import numpy_rwkv7
from tests.backends.feeding import (
    F32_BAND,
    assert_within,
    fed,
    foreign_greedy,
    ids_for,
    logits_of,
    small_model,
)
from tests.backends.program_checks import check_buffers, check_handles
from tests.backends.random_model import as_weights, random_rwkv7
from tests.backends.triton_here import DEVICE, triton_runs

__all__ = ["triton_runs"]


@pytest.fixture(autouse=True)
def _prompts_uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    monkeypatch.setattr(step, "SPARSE_PARTS", 3)  # an interpreted program takes milliseconds


def session(tensors: dict[str, Tensor], dtype: str = "f32", argument: str = "") -> Session:
    return open_torch_compiled(as_weights(tensors), device=DEVICE, dtype=dtype, threads=0, argument=argument)


def tiny(N: int = 16, L: int = 2, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return random_rwkv7(C=2 * N, N=N, L=L, V=41, dtype=dtype)


@pytest.mark.parametrize("argument", ["", "sparse=0,embedding=host"])
@pytest.mark.parametrize("N", [16, 32, 64])
def test_single_tokens_and_prompts_equal_numpy_float64(N: int, argument: str) -> None:
    tensors, ids = tiny(N), ids_for(54, 41)
    truth, S = numpy_rwkv7.run(tensors, ids)
    mine = session(tensors, argument=argument)
    assert mine.info.attention.startswith("WKV-7 in Triton")
    for sizes in ([50, 1, 1, 2], [1, 53]):
        out = fed(mine, ids, sizes)
        assert_within(logits_of(out)[0], truth, F32_BAND)
        assert_within(mine.export_state(out.state).wkv[:, 0], S, F32_BAND)


@pytest.mark.parametrize("rows", [16, 64])
def test_a_head_in_one_block_or_in_several(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "HEAD_ROWS", rows)
    tensors, ids = tiny(32), ids_for(6, 41).reshape(2, 3)
    truth = np.stack([numpy_rwkv7.run(tensors, row)[0] for row in ids])
    assert_within(logits_of(fed(session(tensors), ids, [1] * 3)), truth, F32_BAND)


@pytest.mark.parametrize(("dtype", "limit"), [("bf16", 2e-2), ("f16", 3e-3)])
def test_half_precision(dtype: str, limit: float) -> None:
    kind = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    tensors, ids = random_rwkv7(C=64, N=32, L=2, V=41, dtype=kind), ids_for(56, 41)
    truth, _ = numpy_rwkv7.run(tensors, ids)
    out = fed(session(tensors, dtype), ids, [52, *[1] * 4])
    error = logits_of(out)[0] - truth
    for part in (error[:52], error[52:]):
        assert np.sqrt(np.mean(part**2)) <= limit * truth.std()
    assert [part.dtype for part in out.state[0]] == [kind, torch.float32, kind]


@pytest.mark.parametrize("B", [2, 3, 17])
@pytest.mark.parametrize("argument", ["", "sparse=0"])
def test_rows_of_a_batch_are_the_single_rows(B: int, argument: str) -> None:
    tensors, ids = tiny(L=1), ids_for(2 * B, 41).reshape(B, 2)
    mine = session(tensors, argument=argument)
    together = fed(mine, ids, [1, 1])
    for row in {0, B - 1}:
        alone = fed(mine, ids[row : row + 1], [1, 1])
        assert_within(logits_of(together)[row : row + 1], logits_of(alone), F32_BAND)


def test_a_handle_is_never_written_to_and_states_are_no_views_of_buffers() -> None:
    check_handles(session(tiny(L=1)))


def test_generators_side_by_side_do_not_meet() -> None:
    check_buffers(session(tiny(L=1), argument="sparse=0"), steps=4, made=2)


@pytest.mark.parametrize("ahead", [0, 2])
def test_generation_is_the_inherited_one(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from backends import torch_compiled

    monkeypatch.setattr(torch_compiled, "AHEAD", {DEVICE: ahead})
    mine, prompt = session(tiny(L=1)), ids_for(6, 41).reshape(2, 3)
    full = np.stack(list(mine.generate(prompt, foreign_greedy, 6)))
    assert np.array_equal(np.stack(list(mine.generate(prompt, None, 6))), full)
    stop = [int(full[2, 0]), int(full[3, 1])]
    stopped = list(mine.generate(prompt, None, 6, stop))
    ends = [next(t for t in range(6) if full[t, row] in stop) for row in range(2)]
    assert np.array_equal(np.stack(stopped), full[: max(ends)])
    assert [len(list(mine.generate(prompt, None, count))) for count in (0, 1, 2)] == [0, 1, 2]


def warmed(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    """What a capture does to buffers and counters, on any device."""
    for _ in range(3):
        step()
    return step


@pytest.mark.parametrize("warming", [False, True])
def test_skipped_bytes_are_counted_exactly(warming: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps before a capture count nothing; where there is a GPU, there are such steps anyway."""
    if warming:
        monkeypatch.setattr(graph, "capturable", lambda device: True)
        monkeypatch.setattr(graph, "_captured", warmed)
    tensors = tiny(L=1)
    tensors["blocks.0.ffn.key.weight"] = torch.zeros(128, 32)
    tensors["blocks.0.ffn.key.weight"][::4] = 1.0
    mine = session(tensors)
    assert mine.skipped_bytes == 0
    truth, _ = numpy_rwkv7.run(tensors, np.array([5]))
    out = mine.forward([5], want=Want())
    assert_within(logits_of(out)[0], truth, F32_BAND)
    k = mine._opened._pool.idle[1][0][0]._inner  # type: ignore[attr-defined]
    zeros = int((k == 0).sum())
    assert zeros >= 96
    assert mine.skipped_bytes == zeros * 32 * 4
    mine.forward([[5], [6]], want=Want())
    assert mine.skipped_bytes == zeros * 32 * 4  # a batch reads every row
    assert session(tensors, argument="sparse=0").skipped_bytes == 0
    mine.close()
    assert mine.skipped_bytes == 0


def test_a_capture_that_fails_is_a_note_and_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
        warmed(step, device)
        raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    tensors = tiny(L=1)
    plain = [int(new[0]) for new in session(tensors, argument="graph=0").generate([3], None, 4)]
    for place in (graph, kernels):
        monkeypatch.setattr(place, "capturable", lambda device: True)
    monkeypatch.setattr(graph, "_captured", broken)
    mine = session(tensors)
    assert "single tokens: Triton, one CUDA graph a batch size" in mine.info.notes
    assert [int(new[0]) for new in mine.generate([3], None, 4)] == plain
    reason = "RuntimeError: CUDA error: operation failed due to a previous error during capture"
    assert f"single tokens: Triton, launch by launch: capture failed ({reason})" in mine.info.notes
    truth, _ = numpy_rwkv7.run(tensors, np.array([5]))
    assert_within(logits_of(mine.forward([5]))[0], truth, F32_BAND)


@pytest.mark.parametrize("name", ["blocks.1.att.w0", "blocks.0.att.r_k", "blocks.1.ffn.value.weight", "head.weight"])
def test_nan_in_a_weight_is_not_hidden(name: str) -> None:
    tensors = tiny()
    tensors[name].view(-1)[-1] = float("nan")
    mine = session(tensors, argument="sparse=0")  # a row that is not read cannot show its NaN
    assert np.isnan(logits_of(mine.forward([1]))).any()


def test_layer_0_never_reads_its_value_residual() -> None:
    tensors = tiny()
    plain = logits_of(session(tensors).forward([1]))
    for i in range(3):
        tensors[f"blocks.0.att.v{i}"] = torch.full_like(tensors[f"blocks.1.att.v{i}"], float("nan"))
    assert_within(logits_of(session(tensors).forward([1])), plain, 0.0)


def test_weights_are_held_once() -> None:
    """What prompts multiply lies in the memory that single tokens read."""
    mine = session(small_model())
    program = mine._opened  # type: ignore[attr-defined]
    net, model = program._stepper.net, program._model
    for layer, p in zip(net.layers, model.layers, strict=True):
        for view, stack in (
            (layer.key, p.first),
            (layer.g2, p.second),
            (layer.output, p.output),
            (layer.ffn_key, p.key),
        ):
            assert view.untyped_storage().data_ptr() == stack.weights.untyped_storage().data_ptr()
        assert layer.ffn_value.untyped_storage().data_ptr() == p.value_rows.untyped_storage().data_ptr()
    assert net.ends.head.untyped_storage().data_ptr() == model.ends.head.weights.untyped_storage().data_ptr()


def test_a_stack_multiplies_matrices_of_any_shape() -> None:
    """Rows and inputs that are no multiples of anything, each with its own input and place."""
    draw = torch.Generator().manual_seed(0)
    matrices = [torch.randn(rows, depth, generator=draw) for rows, depth in ((5, 16), (70, 20), (17, 33))]
    places = [(0, 0), (16, 16), (48, 96)]
    stack = packed.Stack([packed.Part(W.to(DEVICE), *place) for W, place in zip(matrices, places, strict=True)])
    for view, W in zip(stack.views, matrices, strict=True):
        assert torch.equal(view.cpu(), W)
    for B in (1, 3):
        x, out = torch.zeros(B, 96), torch.zeros(B, 128)
        wanted = out.clone()
        for W, (source, _) in zip(matrices, places, strict=True):
            x[:, source : source + W.shape[1]] = torch.randn(B, W.shape[1], generator=draw)
        for W, (source, target) in zip(matrices, places, strict=True):
            wanted[:, target : target + len(W)] = x[:, source : source + W.shape[1]] @ W.T
        made = step.Step.__new__(step.Step)
        made._B, made._kernels = B, triton_ops.module("triton_step")
        out = out.to(DEVICE)
        made._product(x.to(DEVICE), stack, out)
        assert torch.allclose(out.cpu(), wanted, atol=1e-4)
        made._product(x.to(DEVICE), stack, out, add=True)
        assert torch.allclose(out.cpu(), 2 * wanted, atol=1e-4)


@pytest.mark.parametrize("value", [-30.0, -1.0, -0.09, -1e-4, 0.0, 1e-6, 0.05, 0.11, 3.0, 40.0])
def test_what_follows_a_product(value: float) -> None:
    wanted: dict[str, Callable[[Tensor], Tensor]] = {
        "": lambda z: z,
        "tanh": torch.tanh,
        "sigmoid": torch.sigmoid,
        "relu2": lambda z: torch.relu(z) ** 2,
    }
    x, out = torch.zeros(1, 16, device=DEVICE), torch.zeros(1, 64, device=DEVICE)
    x[0, 0] = 1
    W = torch.zeros(1, 16, device=DEVICE)
    W[0, 0] = value
    stack = packed.Stack([packed.Part(W, 0, 16 * at, act) for at, act in enumerate(packed.ACTS)])
    made = step.Step.__new__(step.Step)
    made._B, made._kernels = 1, triton_ops.module("triton_step")
    made._product(x, stack, out)
    for at, act in enumerate(packed.ACTS):
        want = wanted[act](torch.tensor(value, dtype=torch.float64)).item()
        assert out[0, 16 * at].item() == pytest.approx(want, rel=1e-5, abs=1e-30)


def test_what_the_kernels_do_not_serve_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = as_weights(tiny()).facts
    here, on = torch.device(DEVICE), Switches("interpret")
    assert kernels.obstacle(facts, here, on) == ""
    assert "RWKV_TRITON=0" in kernels.obstacle(facts, here, Switches(""))
    assert "CUDA" in kernels.obstacle(facts, torch.device("cpu"), Switches("cuda"))
    odd = as_weights(random_rwkv7(C=16, N=8, L=1, V=8)).facts
    assert "head sizes (16, 32, 64), not 8" in kernels.obstacle(odd, here, on)
    monkeypatch.setenv("RWKV_TRITON", "0")
    assert not isinstance(session(tiny())._opened, Kernels)  # type: ignore[attr-defined]
