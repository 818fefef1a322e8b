"""What stands in for the equations in honest runs is them, bit for bit: recurrences, and random rounding in C.

Products with vectors are so where the library beneath torch sums both layouts in one order, as MKL does; elsewhere
they are to within rounding.
"""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from backends.native import build
from backends.reference import forms, honest, noise, rounding, v5, v7
from backends.reference.quick import QUICK, answer, flipped
from backends.reference.rows import in_time
from backends.reference.walk import Equation, parameters
from tests.backends.feeding import needs_compiler
from tests.backends.random_model import as_weights, random_rwkv7

B, H, N = 4, 2, 64
RECURRENT = [equation for equation in QUICK if equation not in (v7.y, v5.y)]


def inputs(equation: Equation, seed: int, dtype: torch.dtype) -> dict[str, Tensor | int]:
    """Something for every vector that an equation reads, decays below 1."""
    generator = torch.Generator().manual_seed(seed)
    found: dict[str, Tensor | int] = {"heads": H}
    for name in parameters(equation):
        if name not in ("heads", "state", "state_prev"):
            vector = torch.randn(B, H * N, generator=generator, dtype=torch.float64).to(dtype) * 0.3
            found[name] = vector.sigmoid() if name == "w" else vector
    return {name: found[name] for name in parameters(equation) if name in found}


def assert_same(got: Tensor, want: Tensor, rtol: float | None = None, atol: float | None = None) -> None:
    """Bit for bit where the library sums in one order, elsewhere within a tolerance."""
    S, x = torch.randn(B, H, N, N, dtype=got.dtype), torch.randn(B, H, N, dtype=got.dtype)
    if torch.equal(answer(S, x), (S @ x.unsqueeze(-1)).squeeze(-1)):
        assert torch.equal(got, want)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def apart(S: Tensor) -> Tensor:
    """The same with gaps between the rows of the batch, as in a slice of many tokens."""
    return torch.stack([S, S], dim=1)[:, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("equation", RECURRENT, ids=lambda e: e.__name__)
def test_a_recurrence_token_by_token(equation: Equation, dtype: torch.dtype) -> None:
    S = quick = torch.randn(B, H, N, N, dtype=dtype)
    for token in range(5):
        vectors = inputs(equation, token, dtype)
        given_state = quick.clone()
        S = equation(state_prev=apart(S.contiguous()), **vectors)
        after = QUICK[equation](state_prev=quick, **vectors)
        assert_same(after, S)
        assert torch.equal(quick, given_state)  # added in place, but not into what was given
        quick = after


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("equation", "state"), [(v7.y, "state"), (v5.y, "state_prev")])
def test_what_reads_a_state(equation: Equation, state: str, dtype: torch.dtype) -> None:
    S = torch.randn(B, H, N, N, dtype=dtype)
    for laid in (S, flipped(S).mT, apart(S)):
        vectors = inputs(equation, 0, dtype)
        assert_same(QUICK[equation](**{state: laid}, **vectors), equation(**{state: S}, **vectors))


def test_every_form_of_a_recurrence_has_one() -> None:
    states = {other for pattern, _, other in forms.FORMS.values() if pattern.endswith(".state")}
    assert states | {v7.state, v5.state} == set(RECURRENT)
    assert all(parameters(equation) == parameters(quick) for equation, quick in QUICK.items())


def test_states_are_put_together_as_they_lie() -> None:
    S = torch.randn(3, B, H, N, N)
    for laid in (list(S), [flipped(one).mT for one in S]):
        together = in_time(laid)
        assert torch.equal(together, S.transpose(0, 1))
        assert together.is_contiguous() == laid[0].is_contiguous()
        assert together.mT.is_contiguous() != laid[0].is_contiguous()
    assert torch.equal(in_time([torch.ones(2, 3), torch.zeros(2, 3)])[:, 0], torch.ones(2, 3))


def test_a_matrix_times_a_vector() -> None:
    S, x = torch.randn(B, H, 5, N, dtype=torch.float64), torch.randn(B, H, N, dtype=torch.float64)
    assert torch.allclose(answer(S, x), torch.einsum("bhij,bhj->bhi", S, x), rtol=1e-12)


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_honest_runs_are_those_of_the_equations(dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = as_weights(random_rwkv7(C=128, N=64, L=2, V=50))
    tokens = torch.randint(0, 50, (16, 40)).numpy()
    quick = honest.open_honest(weights, dtype=dtype, threads=1).forward(tokens).logits
    monkeypatch.setenv("RWKV_NATIVE", "off")
    plain = honest.open_honest(weights, dtype=dtype, threads=1)
    rest = {e: QUICK[e] for e in (forms.state_transposed,)}  # whose rows sum in an order that hangs on their layout
    plain.model.arranged = rest
    want = plain.forward(tokens).logits
    assert quick is not None
    assert want is not None
    assert_same(torch.from_numpy(quick), torch.from_numpy(want), rtol=0.1, atol=0.1)


@pytest.mark.usefixtures("instructions")
@pytest.mark.parametrize("form", list(noise.FORMATS))
@given(st.lists(st.integers(0, 1500), min_size=1, max_size=4), st.integers(0, 2**40))
def test_rounding_in_c_draws_and_rounds_as_torch_does(form: str, sizes: list[int], seed: int) -> None:
    generator, rounded = torch.Generator().manual_seed(seed), noise.stream(seed)[form]
    for size in sizes:
        x = torch.randn(size) * torch.tensor(10.0).pow(torch.randint(-40, 38, (size,)))
        x[::7] = torch.tensor([torch.inf, -torch.inf, torch.nan, 0.0, -0.0, 1.0, 3e38]).repeat(size)[: len(x[::7])]
        assert rounded(x).view(torch.int32).equal(rounding.ROUNDED[form](x, generator).view(torch.int32))


@pytest.mark.usefixtures("instructions")
def test_rounding_in_c_takes_any_layout() -> None:
    x = torch.randn(30, 50)
    for given_x in (x.mT, x[:, ::2], x[:0]):
        found = noise.stream(1)["f32"](given_x)
        assert torch.equal(found, rounding.jitter(given_x, torch.Generator().manual_seed(1)))
    with pytest.raises(AssertionError):
        noise.stream(1)["f32"](x.double())


def test_without_a_compiler_torch_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2000)
    in_c = rounding.honest("bf16", 3, {"w"})("att.k", x)
    for told in ("off", "of nobody's making"):
        monkeypatch.setenv("RWKV_NATIVE", told)
        assert noise.stream(3) == {}
        assert torch.equal(in_c, rounding.honest("bf16", 3, {"w"})("att.k", x))


def test_formats_that_c_does_not_know_draw_from_one_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """A state in float16 beside activations in bfloat16 is left to torch as a whole."""
    needs_compiler()
    monkeypatch.delenv("RWKV_NATIVE", raising=False)
    x = torch.randn(100)
    assert set(noise.stream(0)) == {"f32", "bf16"}
    monkeypatch.setattr(build, "chosen", lambda: pytest.fail("C was asked"))
    rounded = rounding.honest("bf16", 0, {"state"}, {"state": "f16"})
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(rounded("att.k", x), rounding.to_bf16(x, generator))
    assert torch.equal(rounded("att.state", x), rounding.to_f16(x, generator))
