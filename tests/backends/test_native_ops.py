"""The C scans against a loop in float64, and as operators of torch."""

import numpy as np
import pytest
import torch
from torch import Tensor

from backends.compiled import linear, recurrence, wkv, wkv_diagonal
from backends.native import library, ops
from tests.backends.feeding import needs_compiler

BAND = 1e-6
"""Of the largest value, as for the chunks."""


def vectors(B: int, T: int, H: int, N: int, count: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(T)
    return [torch.randn(B, T, H, N, generator=draw) for _ in range(count)]


def seven(B: int, T: int, H: int, N: int) -> wkv.Inputs:
    r, w, k, v, kk, a = vectors(B, T, H, N, 6)
    kk = torch.nn.functional.normalize(kk, dim=-1)
    return wkv.Inputs(r, -0.6 * torch.sigmoid(w), k, v, kk, torch.sigmoid(a))


def diagonal(B: int, T: int, H: int, N: int) -> tuple[wkv_diagonal.Inputs, Tensor]:
    r, w, k, v = vectors(B, T, H, N, 4)
    return wkv_diagonal.Inputs(r, torch.sigmoid(w + 2), k, v), torch.randn(H, N)


def assert_equal(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> None:
    for mine, truth in zip(got, want, strict=True):
        assert mine.shape == truth.shape
        assert (mine - truth).abs().max() <= BAND * truth.abs().max()


@pytest.mark.parametrize("N", [8, 16, 20, 64, 128])
@pytest.mark.parametrize("T", [1, 63, 64, 130])
def test_scans_equal_the_steps_in_float64(instructions: str, T: int, N: int) -> None:
    S = torch.randn(2, 3, N, N)
    x = seven(2, T, 3, N)
    y, state = [], S.double()
    for t in range(T):
        out, state = wkv.wkv_step(x.map(lambda z, t=t: z[:, t].double()), state)  # type: ignore[misc]
        y.append(out)
    before = S.clone()
    assert_equal(recurrence.seven(x, S), (torch.stack(y, dim=1), state))
    assert torch.equal(S, before)
    z, u = diagonal(2, T, 3, N)
    y, state = [], S.double()
    for t in range(T):
        part = wkv_diagonal.Inputs(*(part[:, t : t + 1].double() for part in z))
        out, state = wkv_diagonal.wkv_step(part, u.double(), state)
        y.append(out)
    assert_equal(recurrence.diagonal(z, u, S), (torch.cat(y, dim=1), state))


def test_a_split_changes_no_bit() -> None:
    needs_compiler()
    x, S = seven(2, 70, 3, 16), torch.randn(2, 3, 16, 16)
    y, after = recurrence.seven(x, S)
    first, middle = recurrence.seven(x.map(lambda z: z[:, :33]), S)
    second, last = recurrence.seven(x.map(lambda z: z[:, 33:]), middle)
    assert torch.equal(torch.cat([first, second], dim=1), y)
    assert torch.equal(last, after)


def test_what_the_scans_do_not_serve_goes_through_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    def unused(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr(library, "scan", unused)
    for S in (torch.zeros(1, 2, 6, 6), torch.zeros(1, 2, 8, 8, dtype=torch.float64), torch.zeros(1, 1, 132, 132)):
        assert not ops.serves(S)
    x, S = seven(1, 5, 2, 6), torch.zeros(1, 2, 6, 6)
    assert_equal(recurrence.seven(x, S), wkv.wkv(x, S))
    z, u = diagonal(1, 5, 2, 6)
    assert_equal(recurrence.diagonal(z, u, S), wkv_diagonal.wkv(z, u, S))
    monkeypatch.setenv("RWKV_NATIVE", "off")
    assert not ops.serves(torch.zeros(1, 2, 8, 8))


def test_operators_keep_torchs_rules() -> None:
    needs_compiler()
    S = torch.randn(2, 3, 8, 8)
    x, (z, u) = seven(2, 4, 3, 8), diagonal(2, 4, 3, 8)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(ops.wkv7, (*x, S), test_utils=tests)
    torch.library.opcheck(ops.wkv6, (*z, u, S), test_utils=tests)
    torch.library.opcheck(ops.linear, (torch.randn(2, 3, 8), torch.randn(5, 8)), test_utils=tests)


def test_the_compiler_goes_through_without_a_break() -> None:
    """Traced whole, scans and products stay calls; a single token stays in torch."""
    needs_compiler()
    called: list[str] = []

    def look(graph: torch.fx.GraphModule, _: list[Tensor]) -> torch.fx.GraphModule:
        called.extend(str(node.target) for node in graph.graph.nodes if "rwkv_harness" in str(node.target))
        return graph

    def both(x: wkv.Inputs, z: wkv_diagonal.Inputs, u: Tensor, S: Tensor, W: Tensor) -> Tensor:
        y, S = recurrence.seven(x, S)
        return linear.linear(y + recurrence.diagonal(z, u, S)[0], W)

    for T, count in ((5, 3), (1, 0)):
        called.clear()
        torch.compiler.reset()
        x, (z, u) = seven(1, T, 1, 8), diagonal(1, T, 1, 8)
        arguments = (x, z, u, torch.randn(1, 1, 8, 8), torch.randn(4, 8))
        got = torch.compile(both, backend=look, fullgraph=True)(*arguments)
        assert torch.allclose(got, both(*arguments), atol=1e-5)
        assert len(called) == count


def test_the_probe_reads_memory() -> None:
    needs_compiler()
    probe = library.MemoryProbe(2)
    probe.read()
    assert probe.nbytes == 1 << 28
    assert np.isfinite(probe._memory[0].item())
