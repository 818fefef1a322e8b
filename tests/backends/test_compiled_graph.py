"""Greedy generation on the device: the same tokens as the inherited loop."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from backends import torch_compiled
from backends.base import Ids, Session, greedy
from backends.compiled import graph, net
from backends.compiled.graph import GreedySteps, Mailbox, replayed
from backends.compiled.state import LayerState
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


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_tokens_on_their_way_change_nothing(small: Session, ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = ids_for(10).reshape(2, 5)
    plain = np.stack(list(small.generate(prompt, None, 9)))
    monkeypatch.setattr(torch_compiled, "AHEAD", {"cpu": ahead})
    assert np.array_equal(np.stack(list(small.generate(prompt, None, 9))), plain)
    assert [len(list(small.generate(prompt, None, count))) for count in (0, 1, 2)] == [0, 1, 2]
    stop = [int(plain[3, 0]), int(plain[6, 1])]
    monkeypatch.setattr(torch_compiled, "AHEAD", {"cpu": 0})
    expected = list(small.generate(prompt, None, 9, stop))
    monkeypatch.setattr(torch_compiled, "AHEAD", {"cpu": ahead})
    assert np.array_equal(np.stack(list(small.generate(prompt, None, 9, stop))), np.stack(expected))


def test_the_device_is_never_further_ahead_than_it_may_be() -> None:
    class Counting:
        ids = torch.zeros(1, 1, dtype=torch.int64)

        def advance(self) -> None:
            self.ids += 1

        def newest(self) -> Ids:
            raise AssertionError

    steps = Counting()
    for at, new in enumerate(torch_compiled.delivered(steps, Mailbox(1, torch.device("cpu"), 2), 6), start=1):
        assert new == at
        assert steps.ids.item() == min(at + 2, 6)
    assert at == 6


def test_the_mailbox_keeps_order_and_gives_copies() -> None:
    box, ids = Mailbox(2, torch.device("cpu"), 1), torch.zeros(2, 1, dtype=torch.int64)
    got = []
    for at in range(6):
        box.post(ids.fill_(at))
        if not box.room:
            got.append(box.take())
    got.append(box.take())
    assert box.waiting == 0
    assert [list(new) for new in got] == [[at, at] for at in range(6)]


def test_without_cuda_or_when_switched_off_a_step_is_itself() -> None:
    def step() -> None:
        raise AssertionError

    assert replayed(step, torch.device("cpu"), graph=True) is step
    assert replayed(step, torch.device("cuda"), graph=False) is step


def no_capture(step: Callable[[], None], device: torch.device) -> Callable[[], None]:
    raise RuntimeError("operation not permitted when stream is capturing\nand much more")


def test_where_a_capture_fails_the_step_is_itself_and_it_is_said_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def step() -> None:
        raise AssertionError

    told: list[str] = []
    monkeypatch.setattr(graph, "_captured", no_capture)
    assert replayed(step, torch.device("cuda"), True, told.append) is step
    reason = "RuntimeError: operation not permitted when stream is capturing"
    assert told == [f"launch by launch: capture failed ({reason})"]
    assert replayed(step, torch.device("cuda"), False, told.append) is step
    assert len(told) == 1


def test_a_session_whose_capture_fails_decodes_without(small: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = ids_for(10).reshape(2, 5)
    plain = np.stack(list(small.generate(prompt, None, 6)))
    monkeypatch.setattr(graph, "capturable", lambda device: True)
    monkeypatch.setattr(graph, "_captured", no_capture)
    session = opened(small_model())
    assert np.array_equal(np.stack(list(session.generate(prompt, None, 6))), plain)
    list(session.generate(prompt[:1], None, 3))
    said = [note for note in session.info.notes if "capture failed" in note]
    assert len(said) == 1, "once, however many batch sizes"
    assert said[0].startswith("decode launch by launch: capture failed (RuntimeError: operation not permitted")


def test_states_are_copied_whatever_their_formats() -> None:
    draw = torch.Generator().manual_seed(0)

    def layer(kind: torch.dtype) -> LayerState:
        shapes = ((2, 8), (2, 1, 8, 8), (2, 8))
        att, wkv, ffn = (torch.randn(*shape, generator=draw) for shape in shapes)
        return LayerState(att.to(kind), wkv, ffn.to(kind))

    for kind in (torch.float32, torch.bfloat16):
        mine, new = (tuple(layer(kind) for _ in range(3)) for _ in range(2))
        places = [part.data_ptr() for one in mine for part in one]
        graph.overwrite(mine, new)
        for one, other in zip(mine, new, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))
        assert [part.data_ptr() for one in mine for part in one] == places


def test_everything_is_set_up_before_the_first_token(small: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that starts at the first token must not see buffers made, states copied or a step captured."""
    program, made = small._opened, []  # type: ignore[attr-defined]
    steps = program.steps

    def counted(*arguments: Any) -> Any:
        made.append(1)
        return steps(*arguments)

    monkeypatch.setattr(program, "steps", counted)
    next(small.generate([1, 2], None, 3))
    assert made == [1]
    assert len(list(small.generate([1, 2], None, 1))) == 1
    assert made == [1], "a single token needs none of it"
