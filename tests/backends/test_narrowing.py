"""What a narrower number format costs is counted, and a value that it cannot hold is refused."""

import math

import pytest
import torch

from backends.errors import InputError
from backends.narrowing import Loss, cast
from backends.readers import in_memory
from backends.weights import DTYPES


def _narrowed(value: torch.Tensor, dtype: str) -> tuple[torch.Tensor, Loss]:
    loss = Loss()
    tensor = cast("t", in_memory({"t": value}).tensors["t"], dtype, loss)
    return tensor.read("cpu"), loss


def test_counted_by_hand() -> None:
    got, loss = _narrowed(torch.tensor([1.0, 1 + 2**-9, 3.0, -(1 + 2**-8 + 2**-9)]), "bf16")
    assert got.tolist() == [1.0, 1.0, 3.0, -(1 + 2**-7)]
    assert (loss.values, loss.changed, loss.where) == (4, 2, "t")
    assert loss.largest == pytest.approx(2**-9 / (1 + 2**-9))
    assert loss.sentence() == "2 of 4 values changed, by at most 0.00195 of themselves (t)"


@pytest.mark.parametrize(
    ("source", "dtype"), [("bf16", "f32"), ("f16", "f32"), ("f32", "f64"), ("bf16", "bf16"), ("f32", "")]
)
def test_nothing_is_lost_on_the_way_up(source: str, dtype: str) -> None:
    value = torch.randn(100).to(DTYPES[source])
    got, loss = _narrowed(value, dtype)
    assert torch.equal(got.double(), value.double())
    assert (loss.values, loss.changed) == (0, 0)


def test_no_value_changed() -> None:
    _, loss = _narrowed(torch.tensor([0.5, -2.0, 0.0]), "f16")
    assert loss.sentence() == "no value changed"
    assert loss.values == 3


def test_more_than_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.narrowing._PIECE", 7)
    value = torch.rand(100) + 1
    _, loss = _narrowed(value, "bf16")
    assert loss.changed == int((value.bfloat16().float() != value).sum())


@pytest.mark.parametrize("value", [1e6, -7e4])
def test_a_value_beyond_the_format_is_refused(value: float) -> None:
    with pytest.raises(
        InputError, match=r"1 values of t \(up to .*\) are beyond the number format: choose bf16 or f32"
    ):
        _narrowed(torch.tensor([1.0, value]), "f16")


def test_what_is_not_finite_stays_what_it_is() -> None:
    got, loss = _narrowed(torch.tensor([math.nan, math.inf, -math.inf, 1e-40]), "f16")
    assert math.isnan(got[0])
    assert got[1:].tolist() == [math.inf, -math.inf, 0.0]
    assert (loss.changed, loss.largest) == (1, 1.0)
