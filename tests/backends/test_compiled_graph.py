"""Greedy generation on the device: the same tokens as the inherited loop."""

import numpy as np
import pytest
import torch

from backends.base import Session, greedy
from backends.compiled import net
from backends.compiled.graph import GreedySteps
from tests.backends.feeding import ALL, foreign_greedy, ids_for, logits_of, opened, small_model
from tests.backends.random_model import as_weights


@pytest.fixture(autouse=True)
def _uncompiled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    monkeypatch.setenv("RWKV_NATIVE", "off")


@pytest.fixture
def small() -> Session:
    return opened(small_model())


def test_greedy_generation_equals_the_inherited_one(small: Session) -> None:
    prompt = ids_for(10).reshape(2, 5)
    mine = list(small.generate(prompt, None, 12))
    assert all(ids.shape == (2,) and ids.dtype == np.int64 for ids in mine)
    inherited = list(small.generate(prompt, foreign_greedy, 12))
    assert np.array_equal(np.stack(mine), np.stack(inherited))
    assert np.array_equal(np.stack(mine), np.stack(list(small.generate(prompt, greedy, 12))))
    assert list(small.generate(prompt, None, 0)) == []


def test_generation_ends_when_every_row_has_stopped(small: Session) -> None:
    prompt = ids_for(10).reshape(2, 5)
    full = np.stack(list(small.generate(prompt, None, 12)))
    stop = [int(full[3, 0]), int(full[6, 1])]
    mine = list(small.generate(prompt, None, 12, stop))
    inherited = list(small.generate(prompt, foreign_greedy, 12, stop))
    assert len(mine) == len(inherited) < 12
    assert np.array_equal(np.stack(mine), np.stack(inherited))


def test_greedy_steps_own_their_buffers() -> None:
    session = opened(small_model())
    handle = session.forward([1, 2, 3], want=ALL).state
    before = session.export_state(handle)
    ids = torch.tensor([[4]])
    program = net.load(as_weights(small_model()), "f32", "cpu")
    steps = GreedySteps(program, ids, handle)
    place = steps.state[0].wkv.data_ptr()
    steps.advance()
    out = session.forward([4], handle, ALL)
    assert steps.ids.item() == greedy(logits_of(out)[:, -1])[0]
    assert steps.state[0].wkv.data_ptr() == place
    assert torch.equal(steps.state[2].wkv, out.state[2].wkv)
    assert ids.item() == 4
    for mine, theirs in zip(session.export_state(handle).parts().values(), before.parts().values(), strict=True):
        assert np.array_equal(mine, theirs)
