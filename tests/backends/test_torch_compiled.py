import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends import registry
from backends.base import Session, State, Want
from backends.compiled import host, linear, net
from backends.errors import BackendError, InputError, Unsupported
from backends.torch_compiled import open_torch_compiled
from tests.backends import numpy_rwkv7
from tests.backends.feeding import (
    ALL,
    F32_BAND,
    assert_close,
    assert_within,
    fed,
    ids_for,
    logits_of,
    needs_compiler,
    opened,
    small_model,
)
from tests.backends.random_model import as_weights, random_rwkv7

SHARED = Path(__file__).parents[2].parent / "shared"


@pytest.fixture(autouse=True, params=["native", "torch"])
def computes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Every test looks at the C program, where it can be had, and at the layers in torch, here uncompiled.

    test_compiled_inductor.py looks at the compiled step; these tests do not wait for torch's compiler.
    """
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    kind: str = request.param
    if kind == "torch":
        monkeypatch.setenv("RWKV_NATIVE", "off")
    else:
        needs_compiler()
    return kind


@pytest.fixture(scope="module")
def model() -> dict[str, torch.Tensor]:
    return random_rwkv7()


@pytest.fixture
def session(model: dict[str, torch.Tensor]) -> Session:
    return opened(model)


@pytest.fixture
def small() -> Session:
    return opened(small_model())


# The model against programs that share no line with it.


def test_equals_numpy_float64(session: Session, model: dict[str, torch.Tensor]) -> None:
    ids = ids_for(130, 997)
    logits, S = numpy_rwkv7.run(model, ids)
    out = session.forward(ids, want=ALL)
    assert_within(logits_of(out)[0], logits, F32_BAND)
    assert_within(session.export_state(out.state).wkv[:, 0], S, F32_BAND)


def test_equals_the_reference_backend(session: Session, model: dict[str, torch.Tensor]) -> None:
    ids = ids_for(100, 997, seed=3)
    with registry.open_session(registry.parse("reference-f64"), as_weights(model)) as reference:
        truth = reference.forward(ids, want=ALL)
        state = reference.export_state(truth.state)
        continued = logits_of(reference.forward(ids[:7], truth.state, ALL))
    out = session.forward(ids, want=ALL)
    assert_within(logits_of(out), logits_of(truth), F32_BAND)
    for mine, theirs in zip(session.export_state(out.state).parts().values(), state.parts().values(), strict=True):
        assert_within(mine, theirs, F32_BAND)
    assert_within(logits_of(session.forward(ids[:7], session.import_state(state), ALL)), continued, F32_BAND)


def test_equals_the_published_logits_of_a_trained_model() -> None:
    path = SHARED / "models" / "tiny-rwkv-7v0-834K.pth"
    if not path.exists():
        pytest.skip(f"{path.name} is not on this machine")
    expected = json.loads(path.with_name("tiny-rwkv-7v0-834K.expected.json").read_text())
    session = opened(torch.load(path, weights_only=True))
    for sizes in ([3], [1, 1, 1]):
        logits = logits_of(fed(session, np.array(expected["token_ids"]), sizes))
        assert np.abs(logits[0, -1] - np.array(expected["expected_logits_f32"])).max() < 1e-5


def test_without_onednn_the_numbers_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    once = logits_of(opened(small_model()).forward(ids_for(30), want=ALL))
    monkeypatch.setattr(linear, "_ONEDNN", False)
    assert_within(logits_of(opened(small_model()).forward(ids_for(30), want=ALL)), once, F32_BAND)


# One prompt, many ways to feed it.


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 63, 64, 65, 300])
def test_one_shot_equals_chunks_and_single_tokens(session: Session, T: int, with_state: bool) -> None:
    ids = ids_for(T, 997, seed=T)
    before = session.forward(ids_for(9, 997), want=ALL).state if with_state else None
    once = fed(session, ids, [T], before)
    assert_close(session, fed(session, ids, [1] * T, before), once)
    thirds = [len(part) for part in np.array_split(ids, 3) if len(part)]
    assert_close(session, fed(session, ids, thirds, before), once)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=st.lists(st.integers(1, 90), min_size=1, max_size=5))
def test_any_split_equals_one_shot(small: Session, sizes: list[int]) -> None:
    ids = ids_for(sum(sizes))
    assert_close(small, fed(small, ids, sizes), fed(small, ids, [sum(sizes)]))


def test_a_long_prompt_walks_in_segments(small: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ids_for(40)
    once = fed(small, ids, [40])
    monkeypatch.setattr(net, "SEGMENT", 16)
    assert_close(small, fed(small, ids, [40]), once)
    assert_within(logits_of(small.forward(ids)), logits_of(once)[:, -1:], F32_BAND)


@pytest.mark.parametrize("T", [1, 5, 70])
def test_batch_rows_equal_single_rows(session: Session, T: int) -> None:
    """Within the band; the bits differ, because a matrix product of another height sums in another order."""
    ids = ids_for(3 * T, 997).reshape(3, T)
    before = session.forward(ids_for(6, 997).reshape(3, 2), want=ALL).state
    together = session.forward(ids, before, ALL)
    state = session.export_state(together.state)
    for row in range(3):
        single = tuple(type(layer)(*(part[row : row + 1] for part in layer)) for layer in before)
        alone = session.forward(ids[row], single, ALL)
        assert_within(logits_of(alone)[0], logits_of(together)[row], F32_BAND)
        assert_within(session.export_state(alone.state).wkv[:, 0], state.wkv[:, row], F32_BAND)


@pytest.mark.parametrize("T", [1, 70])
def test_the_handle_is_untouched_and_bits_repeat(small: Session, T: int) -> None:
    handle = small.forward(ids_for(5), want=ALL).state
    copy = small.export_state(handle)
    outs = [small.forward(ids_for(T), handle, ALL) for _ in range(2)]
    assert_close(small, outs[0], outs[1], limit=0.0)
    for mine, theirs in zip(small.export_state(handle).parts().values(), copy.parts().values(), strict=True):
        assert np.array_equal(mine, theirs)


def test_the_handle_does_not_keep_the_prompt_alive(small: Session) -> None:
    for part in small.forward(ids_for(70), want=ALL).state[1]:
        assert part.untyped_storage().nbytes() == part.nbytes


def test_later_tokens_do_not_change_earlier_logits(small: Session) -> None:
    ids = ids_for(80)
    changed = np.concatenate([ids[:50], (ids[50:] + 1) % 97])
    a, b = (logits_of(small.forward(x, want=ALL)) for x in (ids, changed))
    assert_within(a[:, :50], b[:, :50], F32_BAND)
    assert np.abs(a[:, 50:] - b[:, 50:]).max() > 0.1


# Extreme weights.


@pytest.mark.parametrize("w0", [-12.0, 40.0])
def test_slow_and_fastest_decays(w0: float) -> None:
    """All w near 1 (0.999996), and all w at the bound exp(-exp(-1/2)) = 0.5452."""
    tensors = small_model()
    for i in range(3):
        tensors[f"blocks.{i}.att.w0"].fill_(w0)
    session, ids = opened(tensors), ids_for(200)
    logits, S = numpy_rwkv7.run(tensors, ids)
    once = fed(session, ids, [200])
    band = F32_BAND * max(1.0, np.abs(S).max() / 10)
    assert_within(logits_of(once)[0], logits, F32_BAND)
    assert_within(session.export_state(once.state).wkv[:, 0], S, band)
    assert_close(session, fed(session, ids, [1] * 200), once, band)


READ = sorted(name for name in random_rwkv7(16, 16, 2, 8) if name != "emb.weight" and "blocks.0.att" not in name)


@pytest.mark.parametrize("name", READ)
def test_nan_in_a_weight_is_not_hidden(name: str) -> None:
    tensors = random_rwkv7(16, 16, 2, 8)
    tensors[name].view(-1)[-1] = float("nan")
    session = opened(tensors)
    before = session.forward(ids_for(3, 8), want=ALL).state
    for ids in (ids_for(70, 8), np.array([1])):
        assert np.isnan(logits_of(session.forward(ids, before))).any()


def test_layer_0_never_reads_its_value_residual() -> None:
    tensors = small_model()
    plain = logits_of(opened(tensors).forward(ids_for(9), want=ALL))
    for i in range(3):
        tensors[f"blocks.0.att.v{i}"] = torch.full_like(tensors[f"blocks.1.att.v{i}"], float("nan"))
    assert_within(logits_of(opened(tensors).forward(ids_for(9), want=ALL)), plain, 0.0)


@pytest.mark.parametrize(("dtype", "limit"), [("bf16", 2e-2), ("f16", 3e-3)])
@pytest.mark.parametrize("slow", [False, True])
def test_half_precision_keeps_decay_and_state_in_float32(dtype: str, limit: float, slow: bool) -> None:
    """RMS error over the last tokens, in units of the logits' deviation: 1.2e-2 in bf16.

    With slow decays a bf16 decay would reach 5e-2 there, and a bf16 state 7e-2.
    """
    kind = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    tensors = random_rwkv7(128, 64, 3, 97, dtype=kind)
    for i in range(3 * slow):
        tensors[f"blocks.{i}.att.w0"].fill_(-6.0)
    ids = ids_for(192)
    truth, _ = numpy_rwkv7.run(tensors, ids)
    session = opened(tensors, dtype)
    for sizes in ([192], [1] * 192):
        out = fed(session, ids, sizes)
        error = (logits_of(out)[0] - truth)[-32:]
        assert np.sqrt(np.mean(error**2)) <= limit * truth.std()
        assert [part.dtype for part in out.state[0]] == [kind, torch.float32, kind]


# What a caller may ask for.


def test_want_chooses_what_comes_back(small: Session) -> None:
    ids = ids_for(6)
    last, everything = logits_of(small.forward(ids)), logits_of(small.forward(ids, want=ALL))
    assert (last.shape, everything.shape) == ((1, 1, 97), (1, 6, 97))
    assert last.dtype == np.float32
    none = small.forward(ids, want=Want(logits="none", state=True))
    assert none.logits is None
    assert none.state is not None
    unfetched = small.forward(ids, want=Want(fetch=False))
    assert (unfetched.logits, unfetched.state) == (None, None)
    small.sync()
    with pytest.raises(Unsupported, match="trace"):
        small.forward(ids, want=Want(trace=("blocks.0.att.w",)))


def test_state_survives_the_agreed_layout(small: Session) -> None:
    out = small.forward(ids_for(14).reshape(2, 7), want=ALL)
    state = small.export_state(out.state)
    assert [part.shape for part in state.parts().values()] == [(3, 2, 64), (3, 2, 4, 16, 16), (3, 2, 64)]
    again = small.import_state(state)
    next_ids = ids_for(2).reshape(2, 1)
    assert_close(small, small.forward(next_ids, again, ALL), small.forward(next_ids, out.state, ALL), limit=0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, wkv=s.wkv[..., :8]), r"state wkv has shape .* needs \(3, 1, 4, 16, 16\)"),
        (lambda s: replace(s, att_shift=s.att_shift[0]), "state att_shift has shape"),
        (lambda s: replace(s, ffn_shift=s.ffn_shift.repeat(2, axis=1)), "state ffn_shift has shape"),
        (lambda s: replace(s, extra={"cache": s.wkv}), "no state named 'cache'"),
    ],
)
def test_a_foreign_state_is_refused(small: Session, change: Callable[[State], State], message: str) -> None:
    state = small.export_state(small.forward([1, 2], want=ALL).state)
    with pytest.raises(BackendError, match=message):
        small.import_state(change(state))


def test_rows_of_state_and_tokens_must_agree(small: Session) -> None:
    state = small.forward([1, 2], want=ALL).state
    with pytest.raises(BackendError, match="holds 1 rows and the tokens 2"):
        small.forward([[1], [2]], state)


def test_a_closed_session_says_so(small: Session) -> None:
    small.close()
    small.close()
    with pytest.raises(BackendError, match="closed"):
        small.forward([1])


def test_opening_errors_are_words() -> None:
    weights = as_weights(random_rwkv7(16, 16, 1, 8))
    with pytest.raises(BackendError, match="serves dtype f32, bf16, f16, not 'f64'"):
        open_torch_compiled(weights, device="cpu", dtype="f64", threads=0)
    with pytest.raises(BackendError, match="no device 'gpu'"):
        open_torch_compiled(weights, device="gpu", dtype="f32", threads=0)
    with pytest.raises(BackendError, match="not on 'meta'"):
        open_torch_compiled(weights, device="meta", dtype="f32", threads=0)
    missing = {name: t for name, t in random_rwkv7(16, 16, 1, 8).items() if name != "ln_out.bias"}
    with pytest.raises(InputError, match=r"ln_out\.bias"):
        opened(missing)


def test_cuda_without_a_gpu_is_words(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(BackendError, match="no usable CUDA device"):
        host.checked_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert host.checked_device("cuda:0") == torch.device("cuda:0")
    with pytest.raises(BackendError, match="there are 1 CUDA devices"):
        host.checked_device("cuda:1")


def test_info_describes_the_session(small: Session, computes: str) -> None:
    info = small.info
    assert (info.backend, info.device, info.dtype, info.state_dtype) == ("torch-compile", "cpu", "f32", "f32")
    if computes == "torch":
        assert info.attention == "chunked WKV-7 (chunk 64)"
        off = "no C program: switched off by RWKV_NATIVE=off"
        assert info.notes == ("runs uncompiled: switched off by TORCH_COMPILE_DISABLE=1", off)
    else:
        assert info.attention.startswith("WKV-7 token by token in C (")
        assert len(info.notes) == 1
    assert info.packages == {"torch": torch.__version__}
    assert info.threads == torch.get_num_threads()
    assert info.device_name
    assert {"logits-all", "state", "batch", "generate"} <= info.abilities


def test_devices_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "GPU")
    assert host.device_name(torch.device("cuda:0")) == "GPU"
    monkeypatch.setattr(Path, "exists", lambda _: False)
    assert host.device_name(torch.device("cpu"))
