"""Honest implementations: the official semantics among them, and a state in another format."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from backends.base import Array, Want
from backends.checkpoint import open_checkpoint
from backends.errors import UsageError
from backends.reference import v7
from backends.reference.honest import Asked, asked
from backends.reference.official import EVERY, decay, every_operation, is_official, official, write
from backends.registry import open_session, parse
from backends.weights import Weights

TOKENS = np.tile(np.arange(7, 31), (8, 1))


@pytest.fixture(scope="module")
def weights() -> Iterator[Weights]:
    with open_checkpoint("conformance") as found:
        yield found


def run(weights: Weights, subject: str) -> Array:
    with open_session(parse(subject), weights, 1) as session:
        logits = session.forward(TOKENS, want=Want(logits="all")).logits
    assert logits is not None
    return logits


def test_one_row_in_a_few_follows_the_official_semantics(weights: Weights) -> None:
    mixed, whole = run(weights, "honest:1@bf16"), run(weights, "honest:1?form=official@bf16")
    alike = [bool(np.array_equal(mixed[row], whole[row])) for row in range(len(TOKENS))]
    assert alike == [is_official(row, 1) for row in range(len(TOKENS))]
    assert sum(alike) == len(TOKENS) // EVERY
    assert all(np.array_equal(whole[0], row) for row in whole)  # rounding to nearest has no chance in it
    plain = run(weights, "honest:1?form=plain@bf16")
    assert not any(np.array_equal(row, whole[0]) for row in plain)


def test_f32_and_f16_have_no_official_rows_unless_asked_for(weights: Weights) -> None:
    np.testing.assert_array_equal(run(weights, "honest:3@f32"), run(weights, "honest:3?form=official@f32"))
    np.testing.assert_array_equal(run(weights, "honest:3@f16"), run(weights, "honest:3?form=plain@f16"))


def test_the_official_error_is_that_of_its_format(weights: Weights) -> None:
    with open_session(parse("reference-f64"), weights, 1) as session:
        truth = session.forward(TOKENS[0], want=Want(logits="all")).logits
    assert truth is not None

    def far(subject: str) -> float:
        return float(np.sqrt(np.mean((run(weights, subject)[0] - truth[0]) ** 2)))

    assert 0.3 < far("honest:0?form=official@bf16") / far("honest:0?form=plain@bf16") < 2


def test_every_operation_rounds() -> None:
    x, y, share = torch.randn(3, 2, 5, 64, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    low = every_operation(v7.xr, torch.bfloat16)(ln1=x, shift=y, x_r=share)
    by_hand = (y - x).bfloat16().float() * share
    assert torch.equal(low, (x + by_hand.bfloat16().float()).bfloat16().float())
    assert not torch.equal(low, v7.xr(x, y, share).bfloat16().float())


def test_decay_and_state_are_accumulated_in_float32() -> None:
    generator = torch.Generator().manual_seed(0)
    raw, w0 = torch.randn(2, 1, 3, 64, generator=generator).bfloat16().float()
    w = decay(torch.bfloat16)(w_raw=raw, w0=w0)
    exponent = (raw + w0).bfloat16().float()
    assert torch.equal(w, (-0.606531 * exponent.sigmoid()).exp())
    values = torch.rand(5, 1, 64, generator=generator).bfloat16().float()
    S = torch.randn(1, 2, 32, 32, generator=generator)
    parts = dict(zip(("w", "kk", "a", "k", "v"), values, strict=True))
    low = write(torch.bfloat16)(S, heads=2, **parts)
    assert not torch.equal(low, low.bfloat16().float())
    wide = v7.state(S, heads=2, **parts)
    assert 0 < float((low - wide).abs().max()) < 0.1
    assert official(v7.emb, torch.bfloat16, kept=True) is v7.emb


def test_a_state_in_another_format_lies_on_its_grid(weights: Weights) -> None:
    for subject, low in (("honest:0?state=bf16@bf16", torch.bfloat16), ("honest:2?state=f16@bf16", torch.float16)):
        with open_session(parse(subject), weights, 1) as session:
            assert session.info.state_dtype == subject.partition("=")[2].partition("@")[0]
            handle = session.forward(TOKENS, want=Want(logits="none", state=True)).state
            wkv = torch.from_numpy(session.export_state(handle).wkv)
        assert torch.equal(wkv, wkv.to(low).float())


@pytest.mark.parametrize("argument", ["x", "-1", "1?form=odd", "1?state=f64", "1?seed=3", "?form"])
def test_what_cannot_be_asked_for(argument: str) -> None:
    with pytest.raises(UsageError, match="takes an integer seed"):
        asked(argument)


def test_what_can_be_asked_for() -> None:
    assert asked("") == Asked()
    assert asked("7?state=bf16&form=official") == Asked(7, "official", "bf16")
