"""The program for CUDA around its kernels: weights, buffers, launches, sessions. Runs without Triton."""

import numpy as np
import pytest
import torch
from torch import Tensor

from backends import torch_compiled
from backends.base import Session, Want
from backends.compiled import kernels, packed, step, triton_ops
from backends.compiled.kernels import Kernels
from backends.compiled.net import load
from backends.compiled.switches import Switches
from backends.torch_compiled import open_torch_compiled
from tests.backends import numpy_rwkv7, torch_kernels
from tests.backends.feeding import (
    ALL,
    F32_BAND,
    assert_within,
    fed,
    foreign_greedy,
    ids_for,
    logits_of,
    small_model,
)
from tests.backends.program_checks import check_buffers, check_handles, check_one_graph
from tests.backends.random_model import as_weights, random_rwkv7

PIECES = ([70], [50, 1, 1, 18], [1] * 20 + [50])


@pytest.fixture(autouse=True)
def _torch_for_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(triton_ops, "module", torch_kernels.MODULES.__getitem__)
    monkeypatch.setattr(triton_ops, "obstacle", lambda device, switches: "" if switches.triton else "switched off")
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")


def session(tensors: dict[str, Tensor], dtype: str = "f32", argument: str = "") -> Session:
    return open_torch_compiled(as_weights(tensors), device="cpu", dtype=dtype, threads=0, argument=argument)


@pytest.mark.parametrize("argument", ["", "sparse=0,embedding=host"])
@pytest.mark.parametrize(("C", "N"), [(64, 16), (96, 32)])
def test_a_session_equals_numpy_float64(C: int, N: int, argument: str) -> None:
    tensors, ids = random_rwkv7(C=C, N=N, L=3, V=97), ids_for(70)
    truth, S = numpy_rwkv7.run(tensors, ids)
    with session(tensors, argument=argument) as mine:
        assert "Triton" in mine.info.attention
        assert any("host" in note for note in mine.info.notes) == ("host" in argument)
        for sizes in PIECES:
            out = fed(mine, ids, sizes)
            assert_within(logits_of(out)[0], truth, F32_BAND)
            assert_within(mine.export_state(out.state).wkv[:, 0], S, F32_BAND)


@pytest.mark.parametrize(("dtype", "limit"), [("bf16", 2e-2), ("f16", 3e-3)])
def test_half_precision_keeps_the_state_in_float32(dtype: str, limit: float) -> None:
    kind = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    tensors, ids = random_rwkv7(C=64, N=32, L=3, V=97, dtype=kind), ids_for(90)
    truth, _ = numpy_rwkv7.run(tensors, ids)
    out = fed(session(tensors, dtype), ids, [50, *[1] * 40])
    error = (logits_of(out)[0] - truth)[50:]
    assert np.sqrt(np.mean(error**2)) <= limit * truth.std()
    assert [part.dtype for part in out.state[0]] == [kind, torch.float32, kind]


@pytest.mark.parametrize("argument", ["", "sparse=0"])
@pytest.mark.parametrize("rows", [16, 64])
def test_batches_and_heads_in_several_blocks(rows: int, argument: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step, "HEAD_ROWS", rows)
    mine, ids = session(random_rwkv7(C=64, N=32, L=2, V=97), argument=argument), ids_for(120).reshape(20, 6)
    together = logits_of(fed(mine, ids, [2, 1, 1, 1, 1]))
    for row in (0, 7, 19):
        alone = logits_of(fed(mine, ids[row : row + 1], [1] * 6))
        assert_within(together[row : row + 1], alone, F32_BAND)


def test_a_handle_is_never_written_to() -> None:
    mine = session(small_model())
    check_handles(mine)
    handle = mine.forward([1, 2, 3], want=ALL).state
    assert mine.forward([4], handle, Want(logits="none", state=True)).logits is None


@pytest.mark.parametrize("ahead", [0, 2])
def test_generation_is_the_inherited_one(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch_compiled, "AHEAD", {"cpu": ahead})
    mine, prompt = session(small_model()), ids_for(6).reshape(2, 3)
    full = np.stack(list(mine.generate(prompt, foreign_greedy, 12)))
    assert np.array_equal(np.stack(list(mine.generate(prompt, None, 12))), full)
    stop = [int(full[3, 0]), int(full[6, 1])]
    assert len(list(mine.generate(prompt, None, 12, stop))) == len(
        list(mine.generate(prompt, foreign_greedy, 12, stop))
    )


def test_buffers_are_used_again_but_not_by_two_at_once() -> None:
    mine = session(small_model())
    check_buffers(mine, steps=6, made=3, between=lambda: mine.forward([9], want=Want(state=True)))


def test_skipped_bytes_are_counted() -> None:
    mine = session(small_model())
    assert mine.skipped_bytes == 0
    mine.forward([5])
    spared = mine.skipped_bytes
    row_bytes, rows = 64 * 4, 3 * 256
    assert 0.3 * rows <= spared / row_bytes <= 0.7 * rows
    mine.forward([[5], [6]])
    assert mine.skipped_bytes == spared
    assert session(small_model(), argument="sparse=0").skipped_bytes == 0
    mine.close()
    assert mine.skipped_bytes == 0


@pytest.mark.parametrize("sparse", [True, False])
def test_weights_are_held_once_and_unchanged(sparse: bool) -> None:
    """What prompts multiply lies in the memory that single tokens read."""
    weights = as_weights(small_model())
    plain = load(weights, "f32", "cpu")
    for i, p in enumerate(plain.layers):
        layer, same = packed.packed(p, sparse)
        for name, mine, before in zip(p._fields, same, p, strict=True):
            assert (mine is None) == (before is None), name
            if isinstance(before, Tensor):
                assert isinstance(mine, Tensor)
                assert torch.equal(mine, before), name
        stacks = (
            (same.key, layer.first),
            (same.g2, layer.second),
            (same.output, layer.output),
            (same.ffn_key, layer.key),
        )
        for view, stack in stacks:
            assert view.untyped_storage().data_ptr() == stack.weights.untyped_storage().data_ptr()
        value = layer.value_rows if sparse else layer.value.weights if layer.value else None
        assert value is not None
        assert same.ffn_value.untyped_storage().data_ptr() == value.untyped_storage().data_ptr()
        assert len(layer.second.views) == (4 if i else 3)


@pytest.mark.parametrize("rows", [4, 16, 64])
@pytest.mark.parametrize("B", [1, 3])
def test_a_stack_multiplies_matrices_of_any_shape(B: int, rows: int) -> None:
    """Rows and inputs that are no multiples of anything, each with its own input and place."""
    draw = torch.Generator().manual_seed(0)
    matrices = [torch.randn(count, depth, generator=draw) for count, depth in ((5, 16), (70, 20), (17, 33))]
    places = [(0, 0, ""), (16, 16, "tanh"), (48, 96, "relu2")]
    stack = packed.Stack([packed.Part(W, *place) for W, place in zip(matrices, places, strict=True)])
    table = stack.table(rows)
    assert table is stack.table(rows)
    assert not (table[:, :3] % packed.ALIGNED).any()  # what the kernels are told
    assert not (table[:, 3] % min(rows, packed.ALIGNED)).any()
    x, out = torch.zeros(B, 96), torch.zeros(B, 128)
    for W, (source, _, _) in zip(matrices, places, strict=True):
        x[:, source : source + W.shape[1]] = torch.randn(B, W.shape[1], generator=draw)
    torch_kernels.product(x, stack.weights, table, out, B, 96, 128, packed.ENTRY, rows, ADD=False)
    for W, (source, target, act) in zip(matrices, places, strict=True):
        wanted = torch_kernels.AFTER[packed.ACTS[act]](x[:, source : source + W.shape[1]] @ W.T)
        assert torch.allclose(out[:, target : target + len(W)], wanted, atol=1e-4)


def test_what_the_program_does_not_serve_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    facts, cpu = as_weights(small_model()).facts, torch.device("cpu")
    assert kernels.obstacle(facts, cpu, Switches()) == ""
    assert kernels.obstacle(facts, cpu, Switches("")) == "switched off"
    odd = as_weights(random_rwkv7(C=16, N=8, L=1, V=8)).facts
    assert "head sizes (16, 32, 64), not 8" in kernels.obstacle(odd, cpu, Switches())
    wide = as_weights(random_rwkv7(C=64, N=16, L=1, V=8)).facts
    object.__setattr__(wide, "n_ffn", 200)
    assert "multiples of 16, not 200" in kernels.obstacle(wide, cpu, Switches())
    object.__setattr__(wide, "version", "6")
    assert "knows RWKV-7, not 6" in kernels.obstacle(wide, cpu, Switches())
    monkeypatch.setenv("RWKV_TRITON", "0")
    assert not isinstance(session(small_model())._opened, Kernels)  # type: ignore[attr-defined]


def test_shapes_of_released_models_fill_a_card() -> None:
    """Every product of the decode step of 1.5B to 7.2B has at least two blocks for each of 132 processors."""
    for C in (2048, 2560, 4096):
        for rows, depth in ((3 * C + 288, C), (C, C), (4 * C, C), (C, 4 * C), (65536, C)):
            stack = packed.Stack.__new__(packed.Stack)
            stack.rows, stack.depth = rows, depth
            tile = step.tile_for(stack, 1)
            assert rows // tile.rows >= 2 * 132
            assert tile.rows * tile.depth == step.AT_ONCE
            assert step.tile_for(stack, 64).rows >= 16


def test_a_layer_is_compiled_once_for_prompts_of_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    check_one_graph(lambda: session(small_model()), "cpu", monkeypatch)
