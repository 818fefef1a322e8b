"""The network for training: the reference's numbers, and gradients that are slopes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from backends import registry
from backends.base import Ids, Session, Want
from backends.demo import network
from backends.demo.network import Carried, Params
from tests.backends.demo import tiny
from tests.backends.random_model import as_weights, random_rwkv7

V, C, H, N, L = 97, 64, 4, 16, 3
WEIGHTS = as_weights(random_rwkv7(C=C, N=N, L=L, V=V))
IDS = np.random.default_rng(0).integers(0, V, (2, 64))


@pytest.fixture(scope="module")
def params() -> Params:
    return {name: WEIGHTS.get(name, "f64") for name in WEIGHTS}


@pytest.fixture(scope="module")
def truth() -> Session:
    return registry.open_session(registry.parse("reference-f64"), WEIGHTS)


def _fresh() -> list[Carried]:
    return [Carried(*(z.double() for z in carried)) for carried in network.fresh(L, 2, H, N)]


def _run(params: Params, ids: Ids, carried: list[Carried]) -> tuple[Tensor, list[Carried]]:
    return network.run(params, torch.from_numpy(ids), carried, torch.float64, network.wkv)


def test_logits_and_state_are_the_reference_s(params: Params, truth: Session) -> None:
    logits, carried = _run(params, IDS, _fresh())
    want = truth.forward(IDS, want=Want(logits="all", state=True))
    assert want.logits is not None
    assert tiny.far(logits, torch.from_numpy(want.logits)) < 1e-11
    state = truth.export_state(want.state)
    for layer, (att, S, ffn) in enumerate(carried):
        assert tiny.far(att, torch.from_numpy(state.att_shift[layer])) < 1e-11
        assert tiny.far(S.view(2, H, N, N), torch.from_numpy(state.wkv[layer])) < 1e-11
        assert tiny.far(ffn, torch.from_numpy(state.ffn_shift[layer])) < 1e-11


def test_a_segment_continues_the_one_before(params: Params) -> None:
    whole, end = _run(params, IDS, _fresh())
    first, carried = _run(params, IDS[:, :16], _fresh())
    second, carried = _run(params, IDS[:, 16:], [c.detached() for c in carried])
    assert tiny.far(torch.cat([first, second], dim=1), whole) < 1e-11
    for mine, theirs in zip(carried, end, strict=True):
        assert max(map(tiny.far, mine, theirs)) < 1e-11


def test_rows_that_are_not_kept_begin_anew(params: Params) -> None:
    _, carried = _run(params, IDS, _fresh())
    after, _ = _run(params, IDS, [c.kept(torch.tensor([1.0, 0.0], dtype=torch.float64)) for c in carried])
    on, _ = _run(params, IDS, carried)
    anew, _ = _run(params, IDS, _fresh())
    assert torch.equal(after[0], on[0])
    assert tiny.far(after[1], anew[1]) < 1e-11
    assert tiny.far(on[1], anew[1]) > 1e-3


@settings(max_examples=25, deadline=None)
@given(
    B=st.integers(1, 2), n=st.integers(1, 3), H=st.integers(1, 3), N=st.sampled_from([2, 4, 8]),
    L=st.sampled_from([1, 2, 4, 8, 16]), seed=st.integers(0, 1000),
)  # fmt: skip
def test_chunks_are_the_sequential_form(B: int, n: int, H: int, N: int, L: int, seed: int) -> None:
    z = tiny.inputs(B, n * L, H, N, seed)
    for got, want in zip(tiny.chunks(*z, L=L), tiny.sequential(*z), strict=True):
        assert tiny.far(got, want) < 1e-11


def test_chunks_in_float32_at_the_fastest_decay() -> None:
    z = tiny.inputs(1, 64, 2, 8)
    z[1] = torch.full_like(z[1], -network.DECAY)
    for got, want in zip(tiny.chunks(*(x.float() for x in z)), tiny.sequential(*z), strict=True):
        assert tiny.far(got.double(), want) < 2e-5


def test_chunks_need_whole_chunks() -> None:
    with pytest.raises(RuntimeError, match="shape"):
        tiny.chunks(*tiny.inputs(1, 15, 1, 4))


def test_gradients_are_slopes() -> None:
    z = [x.requires_grad_() for x in tiny.inputs(1, 8, 1, 3)]
    assert torch.autograd.gradcheck(lambda *x: tiny.chunks(*x, L=4), z, eps=1e-6, atol=1e-7)


def test_gradients_are_the_sequential_form_s() -> None:
    z = [x.requires_grad_() for x in tiny.inputs(2, 48, 2, 8)]
    mine, theirs = (tiny.gradients(form(*z), z) for form in (tiny.chunks, tiny.sequential))
    for name, got, want in zip(tiny.NAMES, mine, theirs, strict=True):
        assert tiny.far(got, want) < 1e-10, name


def test_the_network_s_gradient_is_a_slope(params: Params) -> None:
    names = ["emb.weight", "blocks.0.att.w2", "blocks.1.att.v1", "blocks.2.ffn.key.weight", "blocks.1.att.r_k"]
    leaves = {name: params[name].clone().requires_grad_() for name in names}

    def cost(weights: Params) -> Tensor:
        return _run({**params, **weights}, IDS[:, :16], _fresh())[0].square().mean()

    found = torch.autograd.grad(cost(leaves), list(leaves.values()))
    for (name, at), gradient in zip(leaves.items(), found, strict=True):
        way = torch.randn(at.shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 1e-5
        slope = (cost({name: at + way}) - cost({name: at - way})).item() / 2
        assert slope == pytest.approx((gradient * way).sum().item(), rel=1e-5), name


def test_products_round_their_factors_and_nothing_else() -> None:
    x, W = torch.tensor([[1.0 + 2**-10, 2.0]]), torch.tensor([[3.0, 1.0 + 2**-7]])
    assert network.linear(x, W, torch.float32).item() == 3 * (1 + 2**-10) + 2 + 2**-6
    rounded = network.linear(x, W, torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert rounded.item() == torch.tensor(3.0 + 2 + 2**-6).bfloat16().item()


def test_the_compiled_layer_computes_the_same(params: Params, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler, asked = torch.compile, []

    def traced(function: object, **how: object) -> object:
        asked.append(how)
        return compiler(function, backend="eager", **how)  # type: ignore[call-overload]

    monkeypatch.setattr(torch, "compile", traced)
    layer = network.compiled()
    single = {name: tensor.float() for name, tensor in params.items()}
    ids, fresh = torch.from_numpy(IDS[:, :16]), network.fresh(2, 2, H, N)
    with torch.no_grad():
        got, _ = network.run(single, ids, fresh, torch.float32, network.wkv, layer)
        want, _ = network.run(single, ids, fresh, torch.float32, network.wkv)
    assert asked == [{"dynamic": False}]
    assert tiny.far(got, want) < 1e-5


def test_both_ways_to_evaluate_the_recurrence_have_a_name() -> None:
    assert network.scan("chunks") is network.wkv
    assert network.scan("native").__module__ == "backends.demo.scan"
