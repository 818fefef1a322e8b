"""The recurrence in Triton against a loop in float64, and as an operator of torch."""

import warnings
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from backends.compiled import block, recurrence, triton_ops, wkv
from backends.torch_compiled import open_torch_compiled
from tests.backends.feeding import small_model
from tests.backends.program_checks import check_one_graph
from tests.backends.random_model import as_weights
from tests.backends.triton_here import DEVICE, triton_runs

__all__ = ["triton_runs"]

BAND = 1e-6
"""Of the largest value, as for the chunks in torch."""


def inputs(B: int, T: int, H: int, N: int, seed: int = 0) -> wkv.Inputs:
    draw = torch.Generator().manual_seed(seed + T)
    r, w, k, v, kk, a = (torch.randn(B, T, H, N, generator=draw) for _ in range(6))
    log_w = -block.DECAY * torch.sigmoid(3 * w)
    return wkv.Inputs(r, log_w, k, v, normalize(kk, dim=-1), torch.sigmoid(a)).map(lambda z: z.to(DEVICE))


def state(B: int, H: int, N: int) -> Tensor:
    return torch.randn(B, H, N, N, generator=torch.Generator().manual_seed(N)).to(DEVICE)


def truth(x: wkv.Inputs, S: Tensor) -> tuple[Tensor, Tensor]:
    S, y = S.double(), []
    for t in range(x.r.shape[1]):
        out, S = wkv.wkv_step(x.map(lambda z, t=t: z[:, t].double()), S)  # type: ignore[misc]
        y.append(out)
    return torch.stack(y, dim=1), S


def assert_equal(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor], band: float = BAND) -> None:
    for mine, true in zip(got, want, strict=True):
        assert mine.shape == true.shape
        assert mine.dtype == torch.float32
        assert (mine - true).abs().max() <= band * true.abs().max()


def by_chunks(x: wkv.Inputs, S: Tensor, L: int, exact: bool = True) -> tuple[Tensor, Tensor]:
    found: tuple[Tensor, Tensor] = triton_ops.module("triton_wkv").chunks(tuple(x), S, exact, L)
    return found


@pytest.mark.parametrize(("B", "T", "H", "N"), [(2, 1, 3, 16), (1, 33, 2, 32), (2, 20, 1, 64)])
def test_the_scan_equals_float64(B: int, T: int, H: int, N: int) -> None:
    x, S = inputs(B, T, H, N), state(B, H, N)
    before = S.clone()
    assert_equal(triton_ops.module("triton_wkv").scan(tuple(x), S), truth(x, S))
    assert torch.equal(S, before)


@pytest.mark.parametrize("L", [16, 32, 64])
@pytest.mark.parametrize(("B", "T", "H", "N"), [(2, 5, 2, 16), (1, 64, 1, 32), (2, 70, 2, 16), (1, 129, 1, 64)])
def test_chunks_equal_float64(L: int, B: int, T: int, H: int, N: int) -> None:
    x, S = inputs(B, T, H, N), state(B, H, N)
    before = S.clone()
    assert_equal(by_chunks(x, S, L), truth(x, S))
    assert torch.equal(S, before)


@pytest.mark.parametrize("L", [16, 32, 64])
@pytest.mark.parametrize("log_w", [-block.DECAY, -1e-9], ids=["forgets", "keeps"])
def test_extremes_of_the_decay_and_a_key_that_repeats(L: int, log_w: float) -> None:
    """With one key over and over, powers of M invert I - M badly; with the fastest decay, quotients are huge."""
    x, S = inputs(1, 96, 1, 32), state(1, 1, 32)
    same = x.kk[:, :1].expand_as(x.kk).contiguous()
    x = x._replace(log_w=torch.full_like(x.log_w, log_w), kk=same, a=torch.full_like(x.a, 0.9999))
    assert_equal(by_chunks(x, S, L), truth(x, S), band=3e-6)


def test_zero_keys_and_what_is_split_into_tensor_core_formats() -> None:
    x, S = inputs(1, 70, 2, 16), state(1, 2, 16)
    x = x._replace(kk=torch.where(x.kk[..., :1] > 0, x.kk, 0.0), k=torch.zeros_like(x.k))
    assert_equal(by_chunks(x, S, 32, exact=False), truth(x, S), band=1e-5)  # 21 bits, six products one after another


def test_nan_is_not_hidden_and_stays_in_its_head() -> None:
    x, S = inputs(2, 40, 2, 16), state(2, 2, 16)
    x.v[1, 37, 0, 3] = float("nan")
    y, after = by_chunks(x, S, 16)
    assert y[1, 37, 0, 3].isnan()
    assert after[1, 0, 3].isnan().all()
    assert after[0].isfinite().all()
    assert after[1, 1].isfinite().all()


@pytest.mark.parametrize("T", [2, triton_ops.FEW, triton_ops.FEW + 1])
def test_the_layer_takes_triton_for_prompts_and_torch_for_what_it_does_not_serve(
    T: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, S = inputs(1, T, 2, 16), state(1, 2, 16)
    assert triton_ops.serves(S)
    assert_equal(recurrence.seven(x, S), truth(x, S))
    assert not triton_ops.serves(S.double())
    assert not triton_ops.serves(state(1, 1, 8))
    monkeypatch.setenv("RWKV_TRITON", "0")
    assert not triton_ops.serves(S)
    monkeypatch.setenv("RWKV_TRITON", "never")
    assert not triton_ops.serves(S)
    assert_equal(recurrence.seven(x, S), truth(x, S))


@pytest.mark.parametrize("T", [3, 60])
def test_the_operator_keeps_torchs_rules(T: int) -> None:
    x = inputs(2, T, 2, 16)
    turned = x.map(lambda z: z.transpose(0, 1).contiguous().transpose(0, 1))  # other strides than the answer's
    for given in (x, turned):
        arguments = (*given, state(2, 2, 16), True)
        torch.library.opcheck(triton_ops.wkv7, arguments, test_utils=("test_schema", "test_faketensor"))


def test_a_layer_is_compiled_once_for_prompts_of_every_length(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = as_weights(small_model())
    check_one_graph(lambda: open_torch_compiled(weights, device=DEVICE, dtype="f32", threads=0), DEVICE, monkeypatch)


def test_a_compiler_that_warns_has_not_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where warnings are errors, as they are here."""
    real = triton_ops.module

    def warning(name: str) -> ModuleType:
        warnings.warn("fp-fusion is off", stacklevel=2)
        return real(name)

    monkeypatch.setattr(triton_ops, "module", warning)
    assert triton_ops.tried.__wrapped__(DEVICE) == ""
