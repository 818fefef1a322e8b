"""What holds for the program for CUDA whatever its kernels are made of: Triton, or the same in torch."""

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from backends.base import Session
from backends.compiled import inductor
from backends.compiled.parts import Across
from tests.backends.feeding import ALL, assert_close


def check_handles(session: Session) -> None:
    """A handle is never written to, and no state is a view of a buffer."""
    handle = session.forward([1, 2, 3], want=ALL).state
    before = session.export_state(handle)
    first = session.forward([4], handle, ALL)
    kept = session.export_state(first.state)
    again = session.forward([4], handle, ALL)
    list(session.generate([1], None, 4))
    session.forward([5], first.state, ALL)
    assert_close(session, again, first, limit=0.0)
    for state, same in ((handle, before), (first.state, kept)):
        for one, other in zip(session.export_state(state).parts().values(), same.parts().values(), strict=True):
            assert np.array_equal(one, other)


def check_buffers(session: Session, steps: int, made: int, between: Callable[[], Any] = lambda: None) -> None:
    """Buffers of a batch size are used again, but not by two at once.

    Args:
        session: with an idle program.
        steps: that two generators go side by side.
        made: how many buffers that takes.
        between: what else is asked of the session at every step.
    """
    pool = session._opened._pool  # type: ignore[attr-defined]
    alone = [[int(new[0]) for new in session.generate([start], None, steps)] for start in (3, 7)]
    one, other = (session.generate([start], None, steps) for start in (3, 7))
    together: tuple[list[int], list[int]] = ([], [])
    for _ in range(steps):
        together[0].append(int(next(one)[0]))
        between()
        together[1].append(int(next(other)[0]))
    assert list(together) == alone
    del one, other
    gc.collect()
    assert len(pool.idle[1]) == made
    list(session.generate([3], None, 3))
    gc.collect()
    assert len(pool.idle[1]) == made


def check_one_graph(opened: Callable[[], Session], device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer is traced whole, with the recurrence as a call: no break, no second graph for another length."""
    torch.compiler.reset()
    calls: list[int] = []

    def look(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        calls.append(sum("wkv7_triton" in str(node.target) for node in graph.graph.nodes))
        return graph

    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **how: compiler(f, backend=look, **how))
    session = opened()
    net = session._opened._stepper.net  # type: ignore[attr-defined]
    fast = inductor._for_any_length(net.block)
    for T in (60, 75, 130):
        x = torch.randn(1, T, 64).to(device)
        across = Across(torch.zeros(1, T, dtype=torch.int64, device=device), x, torch.randn(1, T, 64).to(device))
        before = net.start(session.info.model, 1)[1]
        with torch.no_grad():
            got, want = fast(x, across, before, net.layers[1]), net.block(x, across, before, net.layers[1])
        assert torch.allclose(got[0], want[0], atol=1e-5)
        assert torch.allclose(got[2].wkv, want[2].wkv, atol=1e-5)
    assert calls == [1]
