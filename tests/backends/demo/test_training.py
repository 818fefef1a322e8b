"""The loop: it learns, it repeats bit by bit also when interrupted, and its checkpoints are whole or not there."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional

from backends.demo import initial, network, optim, scan, training
from backends.demo.training import Plan, Trainer
from backends.errors import InputError
from tests.backends.demo import tiny
from tests.backends.demo.tiny import FILES, PLAN, SHAPE

NATIVE = pytest.param(
    "native", marks=pytest.mark.skipif(bool(scan.obstacle()), reason=f"scan.c is not compiled here: {scan.obstacle()}")
)


def _quiet(trainer: Trainer, seconds: float) -> None:
    assert seconds >= 0


def _same(one: Trainer, two: Trainer) -> bool:
    return one.step == two.step and all(torch.equal(p, two.weights[name]) for name, p in one.weights.items())


@pytest.mark.parametrize("how", ["chunks", NATIVE])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_a_few_steps_lower_the_loss(how: str, dtype: str) -> None:
    trainer = Trainer(replace(PLAN, steps=40, finish=5, scan=how, dtype=dtype), FILES)
    assert math.isnan(trainer.loss)
    losses = []
    for _ in range(45):
        trainer.advance()
        losses.append(trainer.loss)
    assert 7.9 < losses[0] < 8.1  # bits: nothing is known of a byte
    assert np.mean(losses[-5:]) < 5.5
    assert trainer.step == 45


@pytest.mark.parametrize("how", ["chunks", NATIVE])
@pytest.mark.parametrize("cut", [1, 4, 6])  # in the first rows, after an odd number of segments, in the finish
def test_interrupted_and_resumed_is_uninterrupted(tmp_path: Path, cut: int, how: str) -> None:
    plan, file = replace(PLAN, scan=how), tmp_path / "training.pt"

    def interrupt(trainer: Trainer, seconds: float) -> None:
        if trainer.step == cut:
            raise KeyboardInterrupt

    whole = Trainer(plan, FILES)
    training.train(whole, tmp_path / "whole.pt", _quiet)
    first, second = Trainer(plan, FILES), Trainer(plan, FILES)
    with pytest.raises(KeyboardInterrupt):
        training.train(first, file, interrupt)
    second.load(file)
    assert _same(first, second)
    assert second.loss == first.loss
    training.train(second, file, _quiet)
    assert _same(second, whole)
    assert second.loss == whole.loss
    assert sorted(path.name for path in tmp_path.iterdir()) == ["training.pt", "whole.pt"]


def test_interrupted_within_an_update_goes_on_from_the_checkpoint_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, file = Trainer(PLAN, FILES), tmp_path / "training.pt"
    whole, again = Trainer(PLAN, FILES), Trainer(PLAN, FILES)
    for _ in range(2):
        trainer.advance()
    trainer.save(file)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optim.Optimiser, "_adam", interrupted)  # the matrices are already updated
        with pytest.raises(KeyboardInterrupt):
            training.train(trainer, file, _quiet)
    again.load(file)
    assert again.step == 2
    training.train(again, file, _quiet)
    training.train(whole, tmp_path / "whole.pt", _quiet)
    assert _same(again, whole)


def test_states_are_carried_until_a_row_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate, given_states = network.run, []

    def spy(weights: network.Params, ids: torch.Tensor, carried: list[network.Carried], *how: Any) -> Any:
        given_states.append(carried)
        return evaluate(weights, ids, carried, *how)

    monkeypatch.setattr(network, "run", spy)
    trainer = Trainer(PLAN, FILES)
    # All rows begin anew at first, then every second segment in turn; in the finish, which has 3, all at once.
    for fresh in ([1, 1], [0, 1], [1, 0], [0, 1], [1, 0], [1, 1], [0, 0], [1, 1]):
        before = trainer._carried
        trainer.advance()
        for state, last in zip(given_states[-1], before, strict=True):
            for row in range(2):
                kept = 0.0 if fresh[row] else 1.0
                assert torch.equal(state.att[row], last.att[row] * kept)
                assert torch.equal(state.wkv.view(2, -1)[row], last.wkv.view(2, -1)[row] * kept)


def test_another_seed_is_another_run() -> None:
    one, other = Trainer(PLAN, FILES), Trainer(replace(PLAN, seed=1), FILES)
    one.advance()
    other.advance()
    assert not _same(one, other)


@pytest.mark.parametrize(("every", "count"), [(0.0, 9), (3600.0, 1)])
def test_checkpoints_are_written_every_so_often_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: float, count: int
) -> None:
    written: list[int] = []
    monkeypatch.setattr(Trainer, "save", lambda self, path: written.append(self.step))
    training.train(Trainer(PLAN, FILES), tmp_path / "training.pt", _quiet, every)
    assert written == [*range(1, 9), 8][-count:]


def test_a_checkpoint_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, file = Trainer(PLAN, FILES), tmp_path / "training.pt"

    def full(state: object, path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            trainer.save(file)
        assert not list(tmp_path.iterdir())
    trainer.save(file)
    before = file.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(torch, "save", full)
        with pytest.raises(OSError, match="No space left"):
            trainer.save(file)
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["training.pt"]


@pytest.mark.parametrize("content", ["noise", "cut", "other"])
def test_what_is_no_checkpoint_is_told(tmp_path: Path, content: str) -> None:
    trainer, file = Trainer(PLAN, FILES), tmp_path / "training.pt"
    trainer.save(file)
    if content == "other":
        torch.save({"emb.weight": torch.zeros(3)}, file)
    else:
        file.write_bytes(file.read_bytes()[:5000] if content == "cut" else b"noise")
    with pytest.raises(
        InputError, match=r"training\.pt is no checkpoint of a training run; delete it to start anew\.$"
    ):
        trainer.load(file)


def test_a_checkpoint_of_another_plan_is_told(tmp_path: Path) -> None:
    Trainer(PLAN, FILES).save(tmp_path / "training.pt")
    other = Trainer(replace(PLAN, steps=9, seed=3), FILES)
    with pytest.raises(
        InputError, match=r"is of a run with another steps, seed; use another --out or the same plan\.$"
    ):
        other.load(tmp_path / "training.pt")


def test_layers_are_compiled_where_the_plan_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []

    def layer(*arguments: Any) -> Any:
        calls.append(1)
        return network.block(*arguments)

    monkeypatch.setattr(network, "compiled", lambda: layer)
    compiled, plain = Trainer(replace(PLAN, compile=True), FILES), Trainer(PLAN, FILES)
    compiled.advance()
    assert len(calls) == SHAPE.L
    plain.advance()
    assert len(calls) == SHAPE.L
    assert _same(compiled, plain)


def test_what_orthogonalised_momentum_updates() -> None:
    names = [name for name in initial.weights(SHAPE, 0) if training._is_matrix(name)]
    assert len(names) == 6 * SHAPE.L
    assert all(name.startswith("blocks.") and name.count(".") == 4 for name in names)


def test_rates_rise_fall_to_zero_and_again() -> None:
    plan = Plan(steps=10, finish=4, warm=2, finish_share=0.2)
    shares = [plan.share(step) for step in range(plan.total)]
    assert shares[:3] == [0.5, 1.0, 1.0]
    assert np.diff(shares[2:10]) == pytest.approx(-1 / 8)
    assert shares[10:] == pytest.approx([0.2, 0.15, 0.1, 0.05])
    assert plan.total == 14


@given(steps=st.integers(1, 50), finish=st.integers(0, 9), warm=st.integers(1, 60))
def test_rates_are_a_share(steps: int, finish: int, warm: int) -> None:
    plan = Plan(steps=steps, finish=finish, warm=warm)
    assert all(0 < plan.share(step) <= 1 for step in range(plan.total))


def test_a_model_that_knows_nothing_takes_eight_bits() -> None:
    weights = initial.weights(SHAPE, 0)
    weights["head.weight"] = torch.zeros(256, SHAPE.C)
    files = [b"x" * size for size in (1, 511, 512, 513, 1025)] * 4
    assert training.bits_per_byte(weights, SHAPE, files, "chunks") == pytest.approx(8.0, abs=1e-4)


@pytest.mark.parametrize("limit", [0, 70])
def test_the_cost_is_that_of_each_file_alone(limit: int) -> None:
    draw = torch.Generator().manual_seed(0)
    weights = {name: p + 0.1 * torch.randn(p.shape, generator=draw) for name, p in initial.weights(SHAPE, 0).items()}
    files = [bytes((i * j * j) % 251 for j in range(1, 60 * i)) for i in range(1, 19)]  # more than one group
    bits = [_bits(weights, text[: limit or None]) for text in files]
    want = sum(bits) / sum(len(text[: limit or None]) for text in files)
    assert training.bits_per_byte(weights, SHAPE, files, "chunks", limit) == pytest.approx(want, rel=1e-5)


def _bits(weights: dict[str, torch.Tensor], text: bytes) -> float:
    """Of one file behind byte 0, all at once, through the sequential form."""
    ids = torch.frombuffer(bytearray(b"\0" + text), dtype=torch.uint8).long()
    carried = network.fresh(SHAPE.L, 1, SHAPE.H, SHAPE.N)
    with torch.no_grad():
        logits, _ = network.run(weights, ids[None, :-1], carried, torch.float32, tiny.sequential)
    return functional.cross_entropy(logits[0], ids[1:], reduction="sum").item() / math.log(2)
