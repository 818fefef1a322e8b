"""`torch-compile` on RWKV-5, 6, 7a and 7b: against transcriptions in numpy, however a prompt is fed."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from backends import registry
from backends.base import Array, Session, State, Want
from backends.compiled import inductor, net
from backends.errors import BackendError
from backends.weights import Weights
from tests.backends import numpy_deep, numpy_eagle
from tests.backends.feeding import ALL, F32_BAND, assert_close, assert_within, fed, foreign_greedy, ids_for, logits_of
from tests.backends.random_family import StateDict, random_model
from tests.backends.test_versions import weights_of

VERSIONS = ("5.0", "5.1", "5.2", "6", "7a", "7b")
LONG = 300
BAND = 2 * F32_BAND
"""States of v5 and v6 reach 30, for nothing is removed from them."""


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")


@dataclass(frozen=True)
class Case:
    """A version's random model, opened."""

    version: str
    tensors: StateDict
    weights: Weights
    session: Session


def opened(weights: Weights, dtype: str = "f32") -> Session:
    return registry.open_session(registry.parse(f"torch-compile@{dtype}"), weights, threads=1)


@pytest.fixture(scope="module", params=VERSIONS)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    tensors = random_model(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_COMPILE_DISABLE", "1")
        weights = weights_of(tensors)
        with opened(weights) as session:
            yield Case(request.param, tensors, weights, session)


def transcribed(case: Case, ids: Array) -> tuple[Array, dict[str, Array]]:
    """Logits and state in the agreed layout, without a batch axis."""
    of = numpy_deep if case.version.startswith("7") else numpy_eagle
    logits, state = of.run(case.version, case.tensors, ids)
    if not case.version.startswith("7"):
        state["wkv"] = np.swapaxes(state["wkv"], -1, -2)  # theirs is S[k, v]
    return logits, state


def test_every_version_is_served_or_refused_by_name() -> None:
    assert set(registry.find("torch-compile").versions) == set(net.VERSIONS)
    for version, row in net.VERSIONS.items():
        assert f"WKV-{version[0]}" in row.attention


def test_equals_a_transcription(case: Case) -> None:
    ids = ids_for(90)
    logits, state = transcribed(case, ids)
    out = fed(case.session, ids, [90])
    assert_within(logits_of(out)[0], logits, BAND)
    parts = case.session.export_state(out.state).parts()
    assert set(parts) == set(state)
    for name, want in state.items():
        got = parts[name][0] if name == "tokens" else parts[name][:, 0]
        assert_within(got.reshape(want.shape), want, BAND * max(1.0, float(np.abs(want).max())))


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("T", [1, 2, 15, 16, 17, 63, 64, 65, LONG])
def test_one_shot_equals_chunks_and_single_tokens(case: Case, T: int, with_state: bool) -> None:
    ids = ids_for(T, seed=T)
    before = case.session.forward(ids_for(9), want=ALL).state if with_state else None
    once = fed(case.session, ids, [T], before)
    thirds = [len(part) for part in np.array_split(ids, 3) if len(part)]
    assert_close(case.session, fed(case.session, ids, thirds, before), once, 10 * BAND)
    if T < LONG:
        assert_close(case.session, fed(case.session, ids, [1] * T, before), once, 10 * BAND)


@pytest.mark.parametrize("T", [1, 40])
def test_batch_rows_equal_single_rows(case: Case, T: int) -> None:
    ids = ids_for(3 * T).reshape(3, T)
    starts = ids_for(6).reshape(3, 2)
    before = case.session.forward(starts, want=ALL).state
    together = case.session.forward(ids, before, ALL)
    for row in range(3):
        alone = case.session.forward(ids[row], case.session.forward(starts[row], want=ALL).state, ALL)
        assert_within(logits_of(alone)[0], logits_of(together)[row], BAND)


def test_the_handle_is_untouched_and_bits_repeat(case: Case) -> None:
    session = case.session
    handle = session.forward(ids_for(20), want=ALL).state
    copy = session.export_state(handle).parts()
    outs = [session.forward(ids_for(5), handle, ALL) for _ in range(2)]
    assert_close(session, outs[0], outs[1], limit=0.0)
    for name, part in session.export_state(handle).parts().items():
        assert np.array_equal(part, copy[name]), name


def test_a_state_means_the_same_in_the_reference(case: Case) -> None:
    ids, after = ids_for(30), ids_for(7, seed=1)
    with registry.open_session(registry.parse("reference-f64"), case.weights, threads=1) as truth:
        out = truth.forward(ids, want=ALL)
        saved, want = truth.export_state(out.state), truth.forward(after, out.state, ALL)
        mine = case.session.forward(after, case.session.import_state(saved), ALL)
        assert_within(logits_of(mine), logits_of(want), BAND)
        own = case.session.export_state(case.session.forward(ids, want=ALL).state)
        back = truth.forward(after, truth.import_state(own), ALL)
        assert_within(logits_of(back), logits_of(want), BAND)


def test_a_state_of_zeros_is_no_state(case: Case) -> None:
    parts = case.session.export_state(case.session.forward(ids_for(4), want=ALL).state).parts()
    zeros = {name: np.zeros_like(part) for name, part in parts.items()}
    for name in ("tokens", "dea_k", "dea_v"):  # nothing was read, so nothing is remembered
        if name in zeros:
            zeros[name] = zeros[name][:, :, :0]
    att_shift, wkv, ffn_shift = (zeros.pop(name) for name in ("att_shift", "wkv", "ffn_shift"))
    handle = case.session.import_state(State(att_shift, wkv, ffn_shift, zeros))
    fresh, from_zero = (case.session.forward(ids_for(9), state, ALL) for state in (None, handle))
    assert_close(case.session, from_zero, fresh, limit=0.0)


@pytest.mark.parametrize(("dtype", "limit"), [("bf16", 3e-2), ("f16", 5e-3)])
def test_half_precision_keeps_decay_and_state_in_float32(case: Case, dtype: str, limit: float) -> None:
    kind = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
    tensors = {name: tensor.to(kind) for name, tensor in case.tensors.items()}
    ids = ids_for(64)
    truth = transcribed(replace(case, tensors=tensors), ids)[0]
    with opened(weights_of(tensors), dtype) as session:
        out = session.forward(ids, want=ALL)
        assert np.sqrt(np.square(logits_of(out)[0] - truth).mean()) <= limit * truth.std()
        assert out.state[0].wkv.dtype == torch.float32


def test_later_tokens_do_not_change_earlier_logits(case: Case) -> None:
    ids = ids_for(60)
    changed = np.concatenate([ids[:40], (ids[40:] + 1) % 97])
    a, b = (logits_of(case.session.forward(x, want=ALL)) for x in (ids, changed))
    assert_within(a[:, :40], b[:, :40], F32_BAND)
    assert np.abs(a[:, 40:] - b[:, 40:]).max() > 0.1


def test_generation_follows_the_logits(case: Case) -> None:
    ids = ids_for(12)
    fast, inherited = (list(case.session.generate(ids, sampler, 5)) for sampler in (None, foreign_greedy))
    assert np.array_equal(np.concatenate(fast), np.concatenate(inherited))


def test_nan_in_a_weight_is_not_hidden(case: Case) -> None:
    """The last entry of every tensor: a copy that drops one would be seen."""
    skipped = ("emb.weight", "s_emb.weight", "k_emb.weight", "v_emb.weight")  # rows of tokens that are not fed
    for name in (name for name in case.tensors if not name.endswith(skipped) and not name.startswith("blocks.0.att.v")):
        tensors = dict(case.tensors)
        tensors[name] = tensors[name].clone()
        tensors[name].view(-1)[-1] = float("nan")
        with opened(weights_of(tensors)) as session:
            assert np.isnan(logits_of(session.forward(ids_for(18)))).any(), name


def test_a_state_tuned_file_says_what_comes_before_the_first_token() -> None:
    tensors = random_model("6")
    for layer in range(3):
        tensors[f"blocks.{layer}.att.time_state"] = torch.randn(
            4, 16, 16, generator=torch.Generator().manual_seed(layer)
        )
    weights, ids = weights_of(tensors), ids_for(20)
    with opened(weights) as session, registry.open_session(registry.parse("reference-f64"), weights, 1) as truth:
        want = truth.forward(ids, want=Want(logits="all")).logits
        assert want is not None
        assert_within(logits_of(session.forward(ids, want=ALL)), want, BAND)
        assert np.abs(logits_of(opened(weights_of(random_model("6"))).forward(ids, want=ALL)) - want).max() > 0.1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: replace(s, extra={"tokens": s.extra["tokens"]}), "lacks dea_q, dea_k, dea_v, which RWKV-7b has"),
        (lambda s: replace(s, extra={**s.extra, "more": s.wkv}), "RWKV-7b has no state named 'more'"),
        (lambda s: replace(s, extra={**s.extra, "dea_q": s.wkv}), "state dea_q has shape"),
    ],
)
def test_a_foreign_state_is_refused(change: Callable[[State], State], message: str) -> None:
    with opened(weights_of(random_model("7b"))) as session:
        state = session.export_state(session.forward([1, 2], want=ALL).state)
        with pytest.raises(BackendError, match=message):
            session.import_state(change(state))


@pytest.mark.parametrize("version", ["5.2", "6", "7a"])
def test_the_compiled_step_agrees(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_COMPILE_DISABLE")
    if reason := inductor.obstacle(torch.device("cpu")):
        pytest.skip(f"nothing can be compiled here: {reason}")
    weights, ids = weights_of(random_model(version)), ids_for(6)
    with opened(weights) as session:
        stepped = fed(session, ids, [1] * 6)
        assert session.info.notes[0] == "decode step compiled by inductor at first use"
        assert_close(session, stepped, fed(session, ids, [6]), BAND)


def test_what_grows_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_COMPILE_DISABLE")
    with opened(weights_of(random_model("7b"))) as session:
        assert session.info.notes[0] == "runs uncompiled: the state of this version grows with every token"
