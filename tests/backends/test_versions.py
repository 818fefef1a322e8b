"""Every version as named equations: against independent transcriptions, and the properties that all of them share."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps

import numpy as np
import pytest
import torch
from torch import Tensor

from backends import registry
from backends.base import Array, Ids, Session, State, Want
from backends.checkpoint import assemble
from backends.errors import BackendError
from backends.readers import in_memory
from backends.reference import session as module
from backends.reference import v4, v5, v6, v7a, v7b
from backends.reference.session import VERSIONS, EquationSession
from backends.weights import Weights
from tests.backends import numpy_deep, numpy_eagle
from tests.backends.feeding import F32_BAND, assert_close, assert_within, fed, ids_for, logits_of
from tests.backends.random_family import Shape, StateDict, random_model

ALL = Want(logits="all", state=True, trace=("*",))
IDS: Ids = ids_for(70)  # more than one block of the recurrence
DEEP = ("7a", "7b")


def weights_of(tensors: StateDict) -> Weights:
    return assemble("random", in_memory(tensors))


def opened(weights: Weights, backend: str = "reference-f64") -> Session:
    return registry.open_session(registry.parse(backend), weights, threads=1)


@dataclass(frozen=True)
class Case:
    """A version's random model and its truth."""

    version: str
    tensors: StateDict
    weights: Weights
    truth: EquationSession


@pytest.fixture(scope="module", params=VERSIONS)
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    tensors = random_model(request.param)
    weights = weights_of(tensors)
    with opened(weights) as truth:
        assert isinstance(truth, EquationSession)
        yield Case(request.param, tensors, weights, truth)


def transcribed(version: str, tensors: StateDict, ids: Ids) -> tuple[Array, dict[str, Array]]:
    """Logits and state from the numpy transcriptions, in the agreed layout without a batch axis."""
    if version.startswith("7"):
        return numpy_deep.run(version, tensors, ids)
    logits, state = numpy_eagle.run(version, tensors, ids)
    if version == "4":
        return logits, {"att_shift": state["att_shift"], "ffn_shift": state["ffn_shift"], "memory": state["wkv"]}
    return logits, {**state, "wkv": state["wkv"].swapaxes(-1, -2)}


def test_the_registry_serves_what_has_equations() -> None:
    for backend in ("reference-f64", "torch-cpu-f32", "honest"):
        assert registry.find(backend).versions == tuple(VERSIONS)


@pytest.mark.parametrize(("backend", "limit"), [("reference-f64", 1e-11), ("torch-cpu-f32", F32_BAND)])
def test_equals_an_independent_transcription(case: Case, backend: str, limit: float) -> None:
    logits, state = transcribed(case.version, case.tensors, IDS)
    with opened(case.weights, backend) as session:
        out = session.forward(IDS, want=ALL)
        parts = session.export_state(out.state).parts()
    assert_within(logits_of(out)[0], logits, limit)
    assert parts.keys() == state.keys()
    for name, part in parts.items():
        assert_within(part[:, 0], state[name], limit)
    assert logits.std() > 0.8


def test_every_weight_matters(case: Case) -> None:
    """Whatever a file has is read by some equation, but for what training code saves in vain."""
    small = random_model(case.version, Shape(C=32, N=16, L=2, V=20))
    unused = []
    for name, tensor in small.items():
        with opened(weights_of({**small, name: torch.full_like(tensor, torch.nan)})) as session:
            out = session.forward([1, 2, 3], want=Want(logits="all"))
        unused += [] if np.isnan(logits_of(out)).any() else [name]
    assert unused == []


def test_a_trace_names_every_tensor_once(case: Case) -> None:
    trace = case.truth.forward(IDS[:9], want=ALL).trace
    assert list(trace) == case.truth.model.names()
    assert {value.shape[:2] for value in trace.values()} == {(1, 9)}
    states = [name for name in trace if name.endswith("att.state")]
    assert len(states) == 3


@pytest.mark.parametrize("size", [1, 7, 64])
def test_chunks_are_one_shot(case: Case, size: int) -> None:
    sizes = [size] * (70 // size) + [70 % size] * (70 % size > 0)
    assert_close(case.truth, fed(case.truth, IDS, sizes), fed(case.truth, IDS, [70]), 1e-11)


def test_logits_depend_on_earlier_tokens_only(case: Case) -> None:
    other = np.concatenate([IDS[:40], (IDS[40:] + 1) % 97])
    one, two = (logits_of(case.truth.forward(ids, want=ALL))[0] for ids in (IDS, other))
    assert_within(one[:40], two[:40], 1e-12)
    assert (np.abs(one[40:] - two[40:]).max(axis=1) > 1e-3).all()


def test_rows_of_a_batch_are_single_rows(case: Case) -> None:
    rows = np.stack([IDS, IDS[::-1], np.roll(IDS, 5)])
    together = fed(case.truth, rows, [30, 40])
    state = case.truth.export_state(together.state).parts()
    for row, ids in enumerate(rows):
        alone = fed(case.truth, ids, [30, 40])
        assert_within(logits_of(together)[row], logits_of(alone)[0], 1e-11)
        for name, part in case.truth.export_state(alone.state).parts().items():
            assert_within(state[name][:, row], part[:, 0], 1e-11)


@pytest.mark.parametrize("backend", ["reference-f64", "torch-cpu-f32"])
def test_an_exported_state_goes_on_with_the_same_bits(case: Case, backend: str) -> None:
    with opened(case.weights, backend) as session:
        handle = fed(session, np.stack([IDS, IDS[::-1]]), [33, 1, 36]).state
        before = {name: part.copy() for name, part in session.export_state(handle).parts().items()}
        restored = session.import_state(session.export_state(handle))
        step = np.array([[5], [6]])
        one, two = (session.forward(step, z, Want(state=True)) for z in (handle, restored))
        np.testing.assert_array_equal(logits_of(one), logits_of(two))
        session.forward(step, handle, Want(state=True))
        for name, part in session.export_state(handle).parts().items():
            np.testing.assert_array_equal(part, before[name], err_msg=name)  # a handle is never written to


def test_no_state_is_a_state_of_zeros(case: Case) -> None:
    shape = case.truth.export_state(case.truth.forward(IDS, want=Want(state=True)).state)
    zero = case.truth.import_state(shape.zeros())
    fresh, imported = (case.truth.forward(IDS[:9], z, Want(logits="all")) for z in (None, zero))
    np.testing.assert_array_equal(logits_of(fresh), logits_of(imported))


def test_a_state_of_another_model_is_refused(case: Case) -> None:
    state = case.truth.export_state(case.truth.forward(IDS[:3], want=Want(state=True)).state)
    with pytest.raises(
        BackendError, match=r"state part 'ffn_shift' is \(2, 1, 64\), where this model has \(3, 1, 64\)"
    ):
        case.truth.import_state(State(state.att_shift, state.wkv, state.ffn_shift[:2], state.extra))
    with pytest.raises(BackendError, match=r"'more' is .*, where this model has nothing"):
        case.truth.import_state(State(state.att_shift, state.wkv, state.ffn_shift, {**state.extra, "more": np.ones(3)}))
    for name in state.extra:
        rest = {key: part for key, part in state.extra.items() if key != name}
        with pytest.raises(BackendError, match="state part"):
            case.truth.import_state(State(state.att_shift, state.wkv, state.ffn_shift, rest))


@pytest.mark.parametrize("shape", [Shape(C=32, N=32), Shape(C=32, N=8, L=1), Shape(C=32, N=16, L=14)], ids=str)
def test_one_head_one_layer_many_layers(case: Case, shape: Shape) -> None:
    tensors = random_model(case.version, shape)
    logits, _ = transcribed(case.version, tensors, IDS[:12])
    with opened(weights_of(tensors)) as session:
        assert session.info.model.n_layer == shape.L
        assert_within(logits_of(fed(session, IDS[:12], [5, 1, 6]))[0], logits, 1e-11)


def test_weights_that_are_streamed_give_the_same(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_memory", lambda: 1)
    with opened(case.weights) as session:
        assert session.streams
        assert_close(session, fed(session, IDS[:20], [13, 7]), fed(case.truth, IDS[:20], [20]), 1e-11)


@pytest.mark.parametrize("text", ["honest:1@f32", "honest:2@bf16", "honest:3@bf16", "honest:4@f16"])
def test_honest_runs_stay_near(case: Case, text: str) -> None:
    rows = np.stack([IDS[:30]] * 4)  # one row in four follows the official semantics in bf16
    want = logits_of(case.truth.forward(rows, want=ALL))
    with opened(case.weights, text) as session:
        off = np.abs(logits_of(session.forward(rows, want=ALL)) - want)
        again = logits_of(session.forward(rows, want=ALL))
    rms = float(np.sqrt((off**2).mean()))
    low, high = {"f32": (1e-8, 1e-5), "bf16": (3e-3, 0.2), "f16": (3e-4, 3e-2)}[text.partition("@")[2]]
    assert low < rms < high
    assert np.isfinite(again).all()


# ---- replay -------------------------------------------------------------------------------------


def off(truth: Session, trace: dict[str, Array], ids: Ids, state: object = None) -> dict[str, float]:
    found = truth.replay(trace, ids, state)
    return {name: float(np.abs(value - trace[name]).max()) for name, value in found.items()}


@pytest.mark.parametrize("start", [0, 30])
def test_replay_of_an_honest_trace_finds_nothing(case: Case, start: int) -> None:
    before = case.truth.forward(IDS[:start], want=Want(state=True)).state if start else None
    trace = dict(case.truth.forward(IDS[start:], before, ALL).trace)
    errors = off(case.truth, trace, IDS[start:], before)
    assert list(errors) == case.truth.model.names()
    assert max(errors.values()) < 1e-12


@pytest.mark.parametrize("start", [0, 30])
def test_the_streams_alone_test_every_sublayer(case: Case, start: int) -> None:
    before = case.truth.forward(IDS[:start], want=Want(state=True)).state if start else None
    trace = dict(case.truth.forward(IDS[start:], before, ALL).trace)
    kept = {n: z for n, z in trace.items() if n.endswith(("res", "qkv.out")) or n in ("ln0", "blocks.0.att.v", "head")}
    errors = off(case.truth, kept, IDS[start:], before)
    assert list(errors) == list(kept)
    assert max(errors.values()) < 1e-12


def test_replay_names_the_faulty_tensor_and_no_other(case: Case) -> None:
    """Every equation of the second block in turn is 1% off; token ids, norms' fixed points and all."""
    for part in case.truth.model.sublayers():
        for name, equation in part.table.items() if part.prefix.startswith("blocks.1.") else ():
            wrong = EquationSession(case.weights, "wrong", "f64", overrides={part.prefix + name: _scaled(equation)})
            trace = dict(wrong.forward(IDS[:12], want=ALL).trace)
            found = {n for n, error in off(case.truth, trace, IDS[:12]).items() if error > 1e-9}
            assert found == {part.prefix + name}


def _scaled(equation: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(equation)
    def wrong(**arguments: object) -> Tensor:
        return 1.01 * equation(**arguments)

    return wrong


# ---- what single versions have ------------------------------------------------------------------


def test_bonus_is_stored_under_two_names_with_two_meanings() -> None:
    for version in ("5.0", "5.1", "5.2"):
        tensors = random_model(version, dtype=torch.float64)
        for layer in range(3):
            name = f"blocks.{layer}.att.time_"
            if f"{name}first" in tensors:
                tensors[f"{name}faaaa"] = tensors.pop(f"{name}first").exp()
            else:
                tensors[f"{name}faaaa"] = tensors[f"{name}faaaa"].abs() + 0.1
        logarithmic = {n.replace("faaaa", "first"): t.log() if n.endswith("faaaa") else t for n, t in tensors.items()}
        with opened(weights_of(tensors)) as one, opened(weights_of(logarithmic)) as two:
            assert_close(one, fed(one, IDS, [70]), fed(two, IDS, [70]), 1e-12)


@pytest.mark.parametrize("version", ["4", "5.0", "5.1", "5.2", "6"])
@pytest.mark.parametrize("heads", [1, 4])
def test_time_tensors_may_carry_axes_of_one(version: str, heads: int) -> None:
    tensors = random_model(version, Shape(C=64, N=64 // heads))
    wide = {
        name: t.reshape(*t.shape, 1)
        if ".time_decay" in name or ".time_f" in name
        else t.reshape(-1)
        if ".time_" in name and t.shape[:2] == (1, 1)
        else t
        for name, t in tensors.items()
    }
    wide = {name: tensors[name] if name.endswith(("_w1", "_w2")) else t for name, t in wide.items()}
    assert any(wide[name].shape != t.shape for name, t in tensors.items())
    with opened(weights_of(tensors)) as one, opened(weights_of(wide)) as two:
        assert two.info.model.version == version
        np.testing.assert_array_equal(logits_of(one.forward(IDS)), logits_of(two.forward(IDS)))


def test_v6_begins_with_a_tuned_state() -> None:
    tensors = random_model("6", dtype=torch.float64)
    draw = torch.Generator().manual_seed(3)
    tuned = {
        f"blocks.{i}.att.time_state": torch.randn(4, 16, 16, generator=draw, dtype=torch.float64) for i in range(3)
    }
    with opened(weights_of({**tensors, **tuned})) as session, opened(weights_of(tensors)) as plain:
        logits, state = numpy_eagle.run("6", {**tensors, **tuned}, IDS)
        out = fed(session, IDS, [30, 40])
        assert_within(logits_of(out)[0], logits, 1e-11)
        empty = plain.export_state(plain.forward([1], want=Want(state=True)).state).zeros()
        begun = State(empty.att_shift, np.stack([t[None].numpy() for t in tuned.values()]), empty.ffn_shift)
        assert_within(logits_of(plain.forward(IDS, plain.import_state(begun), ALL))[0], logits, 1e-11)
        trace = dict(session.forward(IDS[:9], want=ALL).trace)
        assert max(off(session, trace, IDS[:9]).values()) < 1e-12
    assert state["wkv"].shape == (3, 4, 16, 16)


def test_v4_survives_exponents_that_overflow() -> None:
    tensors = random_model("4")
    tensors = {name: 60 * t if name.endswith(("att.key.weight", "time_first")) else t for name, t in tensors.items()}
    logits, _ = numpy_eagle.run("4", tensors, IDS)
    for backend in ("reference-f64", "torch-cpu-f32"):
        with opened(weights_of(tensors), backend) as session:
            got = logits_of(session.forward(IDS, want=ALL))[0]
            trace = session.forward(IDS, want=ALL).trace
        assert np.abs(trace["blocks.0.att.k"]).max() > 100  # e^100 is beyond float32
        assert_within(got, logits, 1e-9 if backend == "reference-f64" else 1e-2)


@pytest.mark.parametrize("version", ["5.0", "5.1", "5.2", "6"])
def test_decays_are_in_reach_and_the_bonus_reads_the_current_token(version: str) -> None:
    with opened(weights_of(random_model(version))) as session:
        trace = session.forward(IDS, want=ALL).trace
    w = trace["blocks.1.att.w"]
    assert 0 <= w.min() < 0.4
    assert 0.9 < w.max() <= 1
    np.testing.assert_allclose(trace["blocks.1.att.y"][:, 0], trace["blocks.1.att.bonus"][:, 0], atol=1e-12)


@pytest.mark.parametrize("version", DEEP)
def test_layer_0_never_reads_its_value_residual(version: str) -> None:
    tensors = random_model(version)
    extra = {f"blocks.0.att.v{i}": torch.full_like(tensors[f"blocks.1.att.v{i}"], torch.nan) for i in range(3)}
    with opened(weights_of({**tensors, **extra})) as session:
        assert np.isfinite(logits_of(session.forward([1, 2, 3]))).all()


@pytest.mark.parametrize("version", DEEP)
def test_deep_embed_reads_the_current_token_alone(version: str) -> None:
    weights = weights_of(random_model(version))
    with opened(weights) as truth:
        want = logits_of(truth.forward(IDS, want=ALL))
    misread: dict[str, Callable[..., Tensor]] = {
        "s_lora": lambda xk, s1: xk @ s1,
        "s_mid": lambda s_lora, s_emb: v7a.s_mid(s_lora, s_emb.unflatten(-1, (32, 32)).mT.flatten(-2)),
        "s_emb": lambda tokens, ln0, s_emb_weight, s_emb_x_weight: s_emb_weight[tokens],
        "s": lambda s_mid, s2, s0: s_mid @ s2,
    }
    for name, equation in misread.items():
        wrong = EquationSession(weights, "wrong", "f64", overrides={f"blocks.*.ffn.{name}": equation})
        assert np.abs(logits_of(wrong.forward(IDS, want=ALL)) - want).max() > 0.3, name


def test_dea_matters_and_grows_by_64_numbers_a_token_and_layer() -> None:
    weights = weights_of(random_model("7b"))
    with opened(weights) as truth:
        out, longer = fed(truth, IDS, [70]), fed(truth, IDS[:69], [69])
        long, short = (truth.export_state(z.state).nbytes for z in (out, longer))
        assert long - short == 8 * (3 * 64 + 1)
    none = EquationSession(weights, "none", "f64", overrides={"blocks.*.qkv.out": lambda vn: 0 * vn})
    assert np.abs(logits_of(none.forward(IDS, want=ALL)) - logits_of(out)).max() > 2
    blind = EquationSession(weights, "blind", "f64", overrides={"blocks.*.qkv.out": lambda vn: vn})
    assert np.abs(logits_of(blind.forward(IDS, want=ALL)) - logits_of(out)).max() > 0.5


def test_dea_scores_are_bent_and_masked() -> None:
    draw = torch.Generator().manual_seed(0)
    q, k, v = (30 * torch.randn(1, n, 256, generator=draw, dtype=torch.float64) for n in (2, 5, 5))
    got = v7b.dea(q, k, v)
    for t, last in enumerate((4, 5)):  # three tokens lie before these two
        score = 64 * torch.tanh(k[0, :last] @ q[0, t] / 1024)
        torch.testing.assert_close(got[0, t], score.softmax(0) @ v[0, :last])
        assert score.abs().max() > 60


def test_misreadings_reach_what_comes_from_outside() -> None:
    with opened(weights_of(random_model("7b"))) as truth:
        trace = dict(truth.forward(IDS[:9], want=ALL).trace)
        found = truth.misread(trace, IDS[:9], "blocks.1.att.res")
        assert {"dea is left out", "out and dea are exchanged", "dea has the wrong sign"} <= found.keys()
        np.testing.assert_allclose(
            found["dea is left out"], trace["blocks.1.att.res"] - trace["blocks.1.qkv.out"], atol=1e-12
        )
        assert truth.misread(trace, IDS[:9], "blocks.1.att.nonsense") == {}


def test_gaps_tell_what_lies_between_sublayers() -> None:
    with opened(weights_of(random_model("7b"))) as truth:
        names = truth.model.names()  # type: ignore[attr-defined]
        gaps = truth.gaps([name for name in names if name not in ("blocks.1.qkv.out", "blocks.1.qkv.kn", "ln0")])
    assert gaps["blocks.1.att.res"].lacking == ("blocks.1.qkv.out",)
    assert gaps["blocks.2.ffn.s_emb"].lacking == ("ln0",)
    assert gaps["blocks.2.qkv.out"] == gaps["blocks.2.att.res"]  # nothing between


def test_equations_have_names_of_their_own() -> None:
    """What versions share is one function, so that a form or a fault of it counts for all of them."""
    assert v5.VERSION.block["ffn"]["act"] is v6.VERSION.block["ffn"]["act"]
    assert v4.VERSION.block["ffn"] is v5.VERSION.block["ffn"]
    assert v6.VERSION.block["att"]["state"] is v5.VERSION.block["att"]["state"]
