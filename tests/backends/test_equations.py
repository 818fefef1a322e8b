"""The named equations: against published logits, an independent transcription, and themselves."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from backends import registry
from backends.base import Array, Ids, Session, Want
from backends.checkpoint import open_checkpoint
from backends.errors import InputError, UsageError
from backends.reference import conformance, session, v7
from backends.reference.equations import Model
from backends.reference.replay import replay
from backends.reference.rounding import ROUNDED, honest
from backends.weights import Weights
from tests.backends import numpy_rwkv7
from tests.backends.random_model import as_weights, random_rwkv7

SHARED = Path(__file__).parents[3] / "shared"
TINY = SHARED / "models" / "tiny-rwkv-7v0-834K.pth"
ALL = Want(logits="all", state=True, trace=("*",))


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    return random_rwkv7(C=128, N=32, L=3, V=97)


@pytest.fixture(scope="module")
def weights(tensors: dict[str, torch.Tensor]) -> Weights:
    return as_weights(tensors)


@pytest.fixture(scope="module")
def truth(weights: Weights) -> Session:
    return registry.open_session(registry.parse("reference-f64"), weights)


@pytest.fixture(scope="module")
def ids() -> Ids:
    return np.random.default_rng(0).integers(0, 97, 150)


@pytest.mark.skipif(not TINY.exists(), reason="the trained tiny checkpoint is not beside this checkout")
@pytest.mark.parametrize(
    ("backend", "limit"), [("reference-f64", 2e-6), ("torch-cpu-f32", 1e-5), ("torch-compile", 1e-5)]
)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_published_logits_of_a_trained_model(backend: str, limit: float, suffix: str) -> None:
    expected = json.loads(TINY.with_suffix(".expected.json").read_text())
    with (
        open_checkpoint(str(TINY.with_suffix(suffix))) as weights,
        registry.open_session(registry.parse(backend), weights) as session,
    ):
        logits = session.forward(expected["token_ids"]).logits
    assert logits is not None
    assert np.abs(logits[0, 0] - expected["expected_logits_f32"]).max() < limit


def test_the_reference_equals_an_independent_transcription(
    truth: Session, tensors: dict[str, torch.Tensor], ids: Ids
) -> None:
    logits, state = numpy_rwkv7.run(tensors, ids)
    out = truth.forward(ids, want=Want(logits="all", state=True))
    assert out.logits is not None
    np.testing.assert_allclose(out.logits[0], logits, atol=1e-12)
    np.testing.assert_allclose(truth.export_state(out.state).wkv[:, 0], state, atol=1e-11)


def test_f32_is_f64_within_its_own_error(truth: Session, weights: Weights, ids: Ids) -> None:
    single = registry.open_session(registry.parse("torch-cpu-f32"), weights)
    got, want = single.forward(ids, want=Want(logits="all")).logits, truth.forward(ids, want=Want(logits="all")).logits
    assert got is not None
    assert want is not None
    assert got.dtype == np.float32
    assert 1e-8 < np.abs(got - want).max() < 5e-5


def test_a_trace_names_every_tensor_once(truth: Session, ids: Ids) -> None:
    trace = truth.forward(ids[:70], want=ALL).trace
    model = truth.model  # type: ignore[attr-defined]
    assert list(trace) == model.names()
    assert len(trace) == 2 + 2 + len(v7.TIME_MIX_LAYER0) + 2 * len(v7.TIME_MIX) + 3 * len(v7.CHANNEL_MIX)
    assert {value.shape[:2] for value in trace.values()} == {(1, 70)}
    assert trace["blocks.1.att.state"].shape == (1, 70, 4, 32, 32)
    assert trace["blocks.2.ffn.act"].shape == (1, 70, 512)
    assert 0.545239 < trace["blocks.0.att.w"].min() <= trace["blocks.0.att.w"].max() < 1
    norms = np.linalg.norm(trace["blocks.2.att.kk"].reshape(70, 4, 32), axis=-1)
    np.testing.assert_allclose(norms, 1, atol=1e-12)


def recorded(session: Session, ids: Ids) -> dict[str, torch.Tensor]:
    return {name: torch.from_numpy(value) for name, value in session.forward(ids, want=ALL).trace.items()}


def contributed(truth: Session, trace: dict[str, torch.Tensor], ids: Ids) -> dict[str, float]:
    model: Model = truth.model  # type: ignore[attr-defined]
    return {
        name: float((value - trace[name]).abs().max())
        for name, value in replay(model, trace, torch.from_numpy(ids)[None])
    }


def test_replay_of_an_honest_trace_finds_nothing(truth: Session, ids: Ids) -> None:
    errors = contributed(truth, recorded(truth, ids[:80]), ids[:80])
    assert list(errors) == truth.model.names()  # type: ignore[attr-defined]
    assert max(errors.values()) < 1e-12


def test_replay_names_the_faulty_tensor_and_no_other(weights: Weights, truth: Session, ids: Ids) -> None:
    def decay_on_the_value_axis(state_prev, w, kk, a, k, v, heads):  # type: ignore[no-untyped-def] # noqa: ANN001, ANN202
        right = v7.state(state_prev, w, kk, a, k, v, heads)
        decay = v7.split(w, heads)
        return right - state_prev * decay.unsqueeze(-2) + state_prev * decay.unsqueeze(-1)

    planted = session.EquationSession(
        weights, "planted", "f64", overrides={"blocks.1.att.state": decay_on_the_value_axis}
    )
    errors = contributed(truth, recorded(planted, ids[:80]), ids[:80])
    assert {name for name, error in errors.items() if error > 1e-9} == {"blocks.1.att.state"}


def test_replay_of_a_partial_trace_judges_what_it_can(truth: Session, ids: Ids) -> None:
    trace = recorded(truth, ids[:20])
    partial = {
        name: trace[name] for name in ("blocks.1.att.k_raw", "blocks.1.att.a", "blocks.1.att.k", "blocks.1.att.kk")
    }
    found = replay(truth.model, partial, torch.from_numpy(ids[:20])[None])  # type: ignore[attr-defined]
    assert [name for name, _ in found] == ["blocks.1.att.kk", "blocks.1.att.k"]


def test_layer_0_never_reads_its_value_residual(tensors: dict[str, torch.Tensor]) -> None:
    extra = {f"blocks.0.att.v{i}": torch.full_like(tensors[f"blocks.1.att.v{i}"], torch.nan) for i in range(3)}
    with registry.open_session(registry.parse("reference-f64"), as_weights({**tensors, **extra})) as session:
        logits = session.forward([1, 2, 3]).logits
    assert logits is not None
    assert np.isfinite(logits).all()


def test_a_missing_tensor_is_named() -> None:
    tensors = random_rwkv7(C=64, N=16, L=2, V=97)
    weights = as_weights(tensors)
    del weights.tensors["ln_out.bias"]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"no tensor 'ln_out.bias', which RWKV-7 needs"):
        registry.open_session(registry.parse("reference-f64"), weights).forward([1])


def test_weights_that_do_not_fit_are_streamed_with_the_same_result(
    weights: Weights, truth: Session, ids: Ids, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "_memory", lambda: 1)
    streamed = registry.open_session(registry.parse("reference-f64"), weights)
    assert "read again" in streamed.info.notes[0]
    a, b = streamed.forward(ids[:9]).logits, truth.forward(ids[:9]).logits
    assert a is not None
    np.testing.assert_array_equal(a, b)
    assert streamed.model._kept is None  # type: ignore[attr-defined]


def test_memory_is_guessed_where_the_system_does_not_tell(monkeypatch: pytest.MonkeyPatch) -> None:
    def silent(name: str) -> int:
        raise ValueError(name)

    monkeypatch.setattr("os.sysconf", silent)
    assert session._memory() == 8 << 30


@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_random_rounding_is_unbiased_and_at_most_a_step(dtype: str) -> None:
    x = torch.linspace(-3, 3, 7).repeat(20000) * 0.7123
    generator = torch.Generator().manual_seed(0)
    rounded = ROUNDED[dtype](x, generator)
    step = {"bf16": 2.0**-7, "f16": 2.0**-10, "f32": 2.0**-23}[dtype]
    assert ((rounded - x).abs() <= step * x.abs() + 1e-30).all()
    means = (rounded - x).double().view(20000, 7).mean(0)
    assert means.abs().max() < 4 * step * 3 / 20000**0.5
    if dtype != "f32":
        kind = {"bf16": torch.bfloat16, "f16": torch.float16}[dtype]
        assert torch.equal(rounded, rounded.to(kind).float())
    broken = ROUNDED[dtype](torch.tensor([torch.inf, -torch.inf, torch.nan, 1.0]), generator)
    assert not broken[:3].isfinite().any()
    assert broken[3].isfinite()


def test_honest_rounding_leaves_decay_and_state_in_f32() -> None:
    rounding = honest("bf16", 0, v7.KEPT_F32)
    x = torch.full((4,), 1 / 3)
    assert torch.equal(rounding("blocks.0.att.w", x), x)
    assert torch.equal(rounding("blocks.0.att.state", x), x)
    assert not torch.equal(rounding("blocks.0.att.k", x), x)


def test_honest_runs_are_seeded(weights: Weights) -> None:
    def run(text: str) -> Array:
        logits = registry.open_session(registry.parse(text), weights).forward([[1, 2, 3]] * 2).logits
        assert logits is not None
        return logits

    np.testing.assert_array_equal(run("honest:5@bf16"), run("honest:5@bf16"))
    assert not np.array_equal(run("honest:5@bf16"), run("honest:6@bf16"))
    rows = run("honest@bf16")
    assert not np.array_equal(rows[0], rows[1])
    with pytest.raises(UsageError, match="integer seed"):
        run("honest:x@bf16")


def test_the_designed_checkpoint_is_exact_in_bf16_and_seeded() -> None:
    tensors = conformance.tensors()
    assert all(torch.equal(t, t.bfloat16().float()) for t in tensors.values())
    assert all(torch.equal(t, conformance.tensors()[name]) for name, t in tensors.items())
    assert not torch.equal(tensors["emb.weight"], conformance.tensors(1)["emb.weight"])
    assert sum(t.numel() for t in tensors.values()) * 2 < 2_000_000
    assert "blocks.0.att.v0" not in tensors


def test_the_designed_checkpoint_reaches_what_it_was_designed_to_reach() -> None:
    with (
        open_checkpoint("conformance") as weights,
        registry.open_session(registry.parse("reference-f64"), weights) as session,
    ):
        ids = np.frombuffer(b"def fibonacci(n):\n    if n < 2:\n        return n\n" * 4, dtype=np.uint8).astype(
            np.int64
        )
        out = session.forward(ids, want=ALL)
    trace = out.trace
    assert trace["ln0"].var(axis=-1).min() < 10 * v7.LN_EPS
    assert trace["blocks.0.att.w"].min() < 0.56
    assert trace["blocks.0.att.w"].max() > 0.999
    per_head = trace["blocks.1.att.y"].reshape(len(ids), conformance.H, conformance.N).var(axis=-1)
    assert np.median(per_head[:, 1]) < 100 * v7.GROUP_NORM_EPS < np.median(per_head[:, 0])
    assert np.abs(trace["blocks.2.att.w_lora"]).max() > 0.9
    assert np.isfinite(out.logits).all()  # type: ignore[arg-type]
    assert 0.5 < np.std(out.logits) < 2  # type: ignore[arg-type]
