"""RWKV-7 by the C program, with every instruction set that this processor has."""

import mmap
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import Array
from backends.compiled.state import NetState
from backends.errors import BackendError
from backends.native import build, library, model, packing
from backends.native.model import NativeNet
from backends.torch_compiled import open_torch_compiled
from backends.weights import DTYPES
from tests.backends import numpy_rwkv7
from tests.backends.feeding import ALL, F32_BAND, assert_within, fed, foreign_greedy, ids_for, logits_of, needs_compiler
from tests.backends.feeding import opened as session_of
from tests.backends.random_model import as_weights, random_rwkv7

SIZES = [(64, 16), (96, 32), (128, 64), (40, 8), (60, 20), (128, 128)]
"""C, N: heads of every special size, and what no vector divides."""


@pytest.fixture
def meeting(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """All threads take part, however little there is to do."""
    monkeypatch.setattr(build, "OPTIONS", (*build.OPTIONS, "-DLITTLE=0"))
    library.typed.cache_clear()
    yield
    library.typed.cache_clear()


def odd(C: int, N: int, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """A model whose inner width is no multiple of a vector either."""
    tensors = random_rwkv7(C, N, L=2, V=97, dtype=dtype)
    for i in range(2):
        tensors[f"blocks.{i}.ffn.key.weight"] = tensors[f"blocks.{i}.ffn.key.weight"][: 3 * C + 7]
        tensors[f"blocks.{i}.ffn.value.weight"] = tensors[f"blocks.{i}.ffn.value.weight"][:, : 3 * C + 7].contiguous()
    return tensors


def net_of(tensors: dict[str, torch.Tensor], dtype: str = "f32", threads: int = 1) -> NativeNet:
    return NativeNet(as_weights(tensors), dtype, threads)


def run(net: NativeNet, ids: Array, sizes: list[int] | None = None) -> tuple[torch.Tensor, NetState]:
    """Logits of every token, (B, T, V), and the state, with the prompt in pieces of these sizes."""
    tokens = torch.from_numpy(np.atleast_2d(ids))
    state, parts = net.start(net._facts, len(tokens)), []
    for part in torch.split(tokens, sizes or [tokens.shape[1]], dim=1):
        logits, state = net.run(part, state, "all")
        assert logits is not None
        parts.append(logits)
    return torch.cat(parts, dim=1), state


def equal(a: tuple[torch.Tensor, NetState], b: tuple[torch.Tensor, NetState]) -> bool:
    """Every bit."""
    layers = zip(a[1], b[1], strict=True)
    return torch.equal(a[0], b[0]) and all(
        torch.equal(x, y) for one, two in layers for x, y in zip(one, two, strict=True)
    )


@pytest.mark.parametrize(("C", "N"), SIZES)
def test_equals_numpy_float64(instructions: str, C: int, N: int) -> None:
    tensors, ids = odd(C, N), ids_for(40)
    logits, S = numpy_rwkv7.run(tensors, ids)
    got, state = run(net_of(tensors), ids)
    assert_within(got[0].numpy(), logits, F32_BAND)
    assert_within(np.stack([layer.wkv[0].numpy() for layer in state]), S, F32_BAND)


@pytest.mark.parametrize(("C", "N"), SIZES)
def test_bf16_rounds_where_weights_meet_activations_and_nowhere_else(instructions: str, C: int, N: int) -> None:
    """Measured 5e-3 to 8e-3 of the logits' deviation; a state or a residual stream in bf16 would show at once."""
    tensors, ids = odd(C, N, torch.bfloat16), ids_for(100)
    logits, S = numpy_rwkv7.run(tensors, ids)
    got, state = run(net_of(tensors, "bf16"), ids)
    assert np.sqrt(np.mean((got[0].numpy() - logits) ** 2)) <= 1.2e-2 * logits.std()
    assert state[0].wkv.dtype == torch.float32
    assert state[0].att.dtype == torch.bfloat16
    assert np.abs(np.stack([layer.wkv[0].numpy() for layer in state]) - S).max() <= 0.05 * np.abs(S).max()


@pytest.mark.usefixtures("meeting")
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(("C", "N"), [(60, 20), (128, 64)])
def test_bits_depend_on_nothing_but_tokens_and_weights(instructions: str, dtype: str, C: int, N: int) -> None:
    """Not on how a prompt is cut, what else is in the batch, or how many threads there are."""
    tensors, ids = odd(C, N), ids_for(5 * 37).reshape(5, 37)
    net = net_of(tensors, dtype)
    whole = run(net, ids)
    assert equal(run(net, ids, [1] * 37), whole)
    assert equal(run(net, ids, [16, 1, 20]), whole)
    assert equal(run(net_of(tensors, dtype, threads=3), ids), whole)
    for row in range(5):
        alone = run(net, ids[row])
        assert torch.equal(alone[0][0], whole[0][row])
        assert all(torch.equal(mine.wkv[0], theirs.wkv[row]) for mine, theirs in zip(alone[1], whole[1], strict=True))


@settings(max_examples=15, deadline=None)
@given(T=st.integers(1, 60), B=st.integers(1, 9), columns=st.integers(1, 40))
def test_any_batch_in_any_segments(T: int, B: int, columns: int) -> None:
    needs_compiler()
    net, ids = net_of(odd(64, 16), threads=2), ids_for(T * B, seed=T).reshape(B, T)
    whole = run(net, ids)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model, "COLUMNS", columns)
        assert equal(run(net, ids), whole)
        last, state = net.run(torch.from_numpy(ids), net.start(net._facts, B), "last")
    assert last is not None
    assert equal((last, state), (whole[0][:, -1:], whole[1]))


def zeros_in(C: int, N: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A model that leaves four of five inner activations of the channel mix at zero, beside what the ReLU leaves."""
    tensors = odd(C, N, dtype)
    for i in range(2):
        key = tensors[f"blocks.{i}.ffn.key.weight"]
        key[torch.arange(len(key)) % 10 < 8] = 0
    return tensors


@pytest.mark.usefixtures("meeting")
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(("C", "N"), [(60, 20), (128, 64), (224, 32)])
def test_what_meets_zeros_is_left_out_and_no_bit_changes(instructions: str, dtype: str, C: int, N: int) -> None:
    net, ids = net_of(zeros_in(C, N, DTYPES[dtype]), dtype, threads=2), ids_for(150).reshape(2, 75)
    single = run(net, ids, [1] * 75)
    assert net.skipped_operations == 0  # too few columns at a time
    assert equal(run(net, ids), single)
    least = 150 * 2 * C * int(0.8 * (3 * C + 7))  # of the first layer; the last one's are the last token's business
    assert least <= net.skipped_operations <= least * 10 / 8
    once = net.skipped_operations
    run(net, ids[:, :70].reshape(-1, 1))  # 140 rows of a token each: last ones all of them
    assert 2 * least * 140 / 150 <= net.skipped_operations - once <= 2 * least * 140 / 150 * 10 / 8


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
@pytest.mark.parametrize(("C", "N"), [(60, 20), (128, 64), (224, 32)])
def test_a_single_token_leaves_weights_unread_and_no_bit_changes(instructions: str, dtype: str, C: int, N: int) -> None:
    net, ids = net_of(zeros_in(C, N, DTYPES[dtype]), dtype, threads=2), ids_for(75)
    whole = run(net, ids)
    assert net.skipped_bytes == 0  # all of a prompt's tokens together need every weight
    operations = net.skipped_operations
    assert equal(run(net, ids, [1] * 75), whole)
    values = 75 * 2 * C * (3 * C + 7) if instructions != "c" else 0  # whose words are half a cache line
    assert 0.75 * values <= net.skipped_bytes / DTYPES[dtype].itemsize <= 0.95 * values
    assert net.skipped_operations - operations == 2 * net.skipped_bytes / DTYPES[dtype].itemsize
    dense = NativeNet(as_weights(zeros_in(C, N, DTYPES[dtype])), dtype, 1, sparse=False)
    assert equal(run(dense, ids, [1] * 75), whole)
    assert equal(run(dense, ids), whole)
    assert dense.skipped_bytes == dense.skipped_operations == 0


def test_a_session_counts_what_is_left_out_and_can_be_told_to_leave_out_nothing() -> None:
    needs_compiler()
    weights, ids = as_weights(zeros_in(64, 16, torch.float32)), ids_for(100)
    skipped = []
    for argument in ("", "sparse=0"):
        with open_torch_compiled(weights, device="cpu", dtype="f32", threads=1, argument=argument) as session:
            fed(session, ids, [100])
            session.forward([5])
            skipped.append((session.skipped_operations, session.skipped_bytes))
    assert skipped[0][0] > 0
    assert (skipped[0][1] > 0) == (build.chosen() != "c")
    assert skipped[1] == (0, 0)


@pytest.mark.parametrize("C", [128, 160])
def test_the_widest_jobs_give_the_same_bits(instructions: str, C: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """More columns than a job takes, of all panels and of one that is left over."""
    net, ids = net_of(zeros_in(C, 32, torch.float32)), ids_for(1100)
    narrow = run(net, ids, [20] * 55)
    assert net.skipped_operations == 0
    monkeypatch.setattr(model, "COLUMNS", 1100)
    assert equal(run(net, ids), narrow)
    assert net.skipped_operations > 0


def test_where_everything_is_zero_nothing_is_read(instructions: str) -> None:
    tensors, ids = odd(128, 64), ids_for(30)
    for i in range(2):
        tensors[f"blocks.{i}.ffn.key.weight"].zero_()
    net = net_of(tensors)
    assert equal(run(net, ids, [1] * 30), run(net, ids))
    assert net.skipped_bytes == (30 * 2 * 128 * 391 * 4 if instructions != "c" else 0)


def test_more_words_than_a_list_has_room_for_are_all_read(instructions: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "OPTIONS", (*build.OPTIONS, "-DMOST=256"))
    library.typed.cache_clear()
    net, ids = net_of(zeros_in(128, 64, torch.float32)), ids_for(30)
    assert equal(run(net, ids, [1] * 30), run(net, ids))
    assert net.skipped_bytes == 0
    library.typed.cache_clear()


def test_zero_times_what_is_not_finite_is_not_left_out(instructions: str) -> None:
    tensors, ids = zeros_in(64, 16, torch.float32), ids_for(100)
    tensors["blocks.1.ffn.value.weight"][:, 0] = torch.inf  # of an activation that is always zero
    net = net_of(tensors)
    assert run(net, ids)[0].isnan().all()
    assert net.skipped_bytes == 0
    assert net.skipped_operations == pytest.approx(100 * 2 * 64 * 0.9 * 199, rel=0.1)  # the other layer's


def test_nothing_is_written_but_what_is_asked_for(instructions: str) -> None:
    net, ids = net_of(odd(64, 16)), torch.from_numpy(ids_for(20).reshape(2, 10))
    state = net.start(net._facts, 2)
    logits, after = net.run(ids, state, "none")
    assert logits is None
    assert all(not part.any() for layer in state for part in layer)
    copy = [part.clone() for layer in after for part in layer]
    net.run(ids, after, "last")
    assert all(torch.equal(a, b) for a, b in zip(copy, (part for layer in after for part in layer), strict=True))


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_session_decodes_what_it_would_feed(instructions: str, dtype: str) -> None:
    with session_of(odd(64, 16), dtype) as session:
        assert session.info.attention == f"WKV-7 token by token in C ({instructions})"
        prompt = ids_for(14).reshape(2, 7)
        mine, inherited = (list(session.generate(prompt, sampler, 9)) for sampler in (None, foreign_greedy))
        assert np.array_equal(np.stack(mine), np.stack(inherited))
        out = session.forward(prompt, want=ALL)
        again = session.import_state(session.export_state(out.state))
        pair = [logits_of(session.forward([[3], [4]], state)) for state in (out.state, again)]
        assert_within(pair[0], pair[1], 0.0)
        rows = tuple(type(layer)(*(part[1:] for part in layer)) for layer in out.state)
        assert_within(logits_of(session.forward([4], rows))[0], pair[0][1], 0.0)
        assert_within(logits_of(fed(session, prompt, [3, 4])), logits_of(out), 0.0)


def test_a_closed_session_ends_its_threads() -> None:
    needs_compiler()
    tasks = Path("/proc/self/task")
    if not tasks.exists():
        pytest.skip("this system does not list threads")
    before = len(list(tasks.iterdir()))
    nets = [net_of(odd(64, 16), threads=4) for _ in range(3)]
    assert len(list(tasks.iterdir())) == before + 9
    nets.clear()
    assert len(list(tasks.iterdir())) == before


@pytest.mark.usefixtures("meeting")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_forked_child_computes_without_its_parents_threads() -> None:
    needs_compiler()
    net, ids = net_of(odd(64, 16), threads=2), ids_for(9)
    want = run(net, ids)
    child = os.fork()
    if not child:  # pragma: no cover - another process
        os._exit(0 if equal(run(net, ids), want) else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def test_no_memory_is_an_error_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    needs_compiler()
    net = net_of(odd(64, 16))
    monkeypatch.setattr(net, "_lib", type("Full", (), {"rwkv7": lambda *_: 1}))
    with pytest.raises(BackendError, match="no memory for the activations of 2 rows of 3 tokens"):
        run(net, np.zeros((2, 3), dtype=np.int64))


@pytest.mark.parametrize(
    ("change", "words"),
    [({"version": "6"}, "RWKV-7, not 6"), ({"head_size": 6}, "not 6"), ({"head_size": 256}, "not 256")],
)
def test_what_it_does_not_know(change: dict[str, object], words: str) -> None:
    facts = as_weights(odd(64, 16)).facts
    assert model.obstacle(facts, "f32") == ""
    assert words in model.obstacle(replace(facts, **change), "f32")  # type: ignore[arg-type]
    assert "not f16" in model.obstacle(facts, "f16")


# How weights lie.


@settings(max_examples=25, deadline=None)
@given(rows=st.integers(1, 70), K=st.integers(1, 9), lanes=st.sampled_from([4, 8, 16]), step=st.sampled_from([1, 2]))
def test_panels_hold_the_matrix_and_zeros(rows: int, K: int, lanes: int, step: int) -> None:
    W = torch.arange(1.0, rows * K + 1).view(rows, K)
    found = packing.Room().panels(W, lanes, step)
    assert found.shape[2:] == (packing.VECTORS * lanes, step)
    flat = found.transpose(1, 2).reshape(found.shape[0] * found.shape[2], -1)
    assert torch.equal(flat[:rows, :K], W)
    assert flat.count_nonzero() == W.numel()


def test_pairs_lie_by_head() -> None:
    W = torch.arange(1.0, 5 * 12 + 1).view(5, 12)
    found = packing.Room().by_head(W, 3, 8)
    assert found.shape == (3, 5, 8)
    assert torch.equal(found[1, :, :4], W[:, 4:8])
    assert found.count_nonzero() == W.numel()


def test_rooms_hand_out_zeros_that_do_not_meet() -> None:
    room = packing.Room()
    made = [room.zeros(shape, dtype) for shape in ((3,), (5, 7), (1 << 25,)) for dtype in DTYPES.values()]
    assert all(tensor.data_ptr() % packing.LINE == 0 and not tensor.any() for tensor in made)
    for i, tensor in enumerate(made):
        tensor.fill_(i + 1)
    values = [*range(1, len(made) + 1)]
    assert [float(tensor.min()) for tensor in made] == values
    assert [float(tensor.max()) for tensor in made] == values


def test_large_pieces_lie_on_huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    size = 3 * packing.HUGE + 5
    large = packing.on_huge_pages(size).fill_(1)
    assert large.shape == (size,)
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert packing.on_huge_pages(size).shape == (size,)
    if huge_pages_allowed():
        assert eligible(large.data_ptr())


def huge_pages_allowed() -> bool:
    """Of the three choices of the system, "never" is the only one that refuses them."""
    choice = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    return choice.exists() and "[never]" not in choice.read_text()


def eligible(address: int) -> bool:
    """Whether the mapping that holds an address may have huge pages; how many it gets is the system's business."""
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(found[1], 16) <= address < int(found[2], 16)
        elif inside and line.startswith("THPeligible:"):
            return line.split()[1] == "1"
    return "THPeligible" not in Path("/proc/self/smaps").read_text()  # an older system does not tell
