"""Models that do not fit: converted as they are used, every layer read once for all prompts, memory given back."""

import mmap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import linear

from backends import convert
from backends.base import Want
from backends.checkpoint import open_checkpoint
from backends.errors import BackendError
from backends.reference import onread, session
from backends.reference.onread import OnRead
from backends.reference.session import EquationSession
from backends.registry import open_session, parse
from backends.resident import give_back

ALL = Want(logits="all", state=True, trace=("*",))


def _matrix(rows: int = 11) -> tuple[torch.Tensor, Any]:
    """A matrix, and the same one on read: Any, since torch's functions are typed for tensors alone."""
    stored = torch.randn(rows, 6, dtype=torch.bfloat16)
    return stored.double(), OnRead(lambda: stored, torch.Tensor.double, 8)


def test_a_matrix_that_is_converted_as_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onread, "SLICE", 4 * 6 * 8)  # four rows at a time, three in the last slice
    whole, matrix = _matrix()
    ids, x = torch.tensor([[3, 0], [10, 3]]), torch.randn(2, 3, 6, dtype=torch.float64)
    assert torch.equal(matrix[ids], whole[ids])
    torch.testing.assert_close(linear(x, matrix), linear(x, whole), rtol=1e-14, atol=1e-14)


def test_anything_else_sees_the_whole_matrix() -> None:
    whole, matrix = _matrix()
    x = torch.randn(2, 6, dtype=torch.float64)
    assert torch.equal(x @ matrix.t(), x @ whole.t())
    assert torch.equal(matrix.roll(1, 0), whole.roll(1, 0))
    assert torch.equal(torch.cat([matrix, matrix]), torch.cat([whole, whole]))
    assert torch.equal(linear(input=x, weight=matrix), linear(x, whole))
    with pytest.raises(AttributeError):
        _ = matrix.__array__


@pytest.mark.parametrize("version", ["-v5.2", "-v6", "", "-v7a", "-v7b"])
def test_streamed_is_the_same(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint(f"conformance{version}") as weights:
        kept = EquationSession(weights, "kept", "f64")
        monkeypatch.setattr(session, "KEEP_SHARE", 0.0)
        streamed = EquationSession(weights, "streamed", "f64")
        assert (kept.streams, streamed.streams) == (False, True)
        prompts = [np.arange(5), np.array([[3, 1, 2], [7, 8, 9]])]
        alone = [kept.forward(tokens, want=ALL) for tokens in prompts]
        together = streamed.forward_together([(tokens, None, ALL) for tokens in prompts])
        for a, b in zip(alone, together, strict=True):
            assert a.logits is not None
            assert b.logits is not None
            np.testing.assert_allclose(b.logits, a.logits, rtol=1e-12, atol=1e-12)
            assert all(np.array_equal(a.trace[name], b.trace[name]) for name in a.trace if name != "head")
        more, expected = streamed.forward([4], together[0].state).logits, kept.forward([4], alone[0].state).logits
        assert more is not None
        assert expected is not None
        np.testing.assert_allclose(more, expected, rtol=1e-12, atol=1e-12)


def test_every_tensor_is_read_once_for_all_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "KEEP_SHARE", 0.0)
    with open_checkpoint("conformance") as weights:
        streamed = EquationSession(weights, "streamed", "f64")
        read: list[str] = []
        original = weights.get

        def counted(name: str, *rest: Any) -> torch.Tensor:
            read.append(name)
            return original(name, *rest)

        monkeypatch.setattr(weights, "get", counted)
        streamed.forward_together([([n], None, None) for n in range(4)])
    blocks = [name for name in read if name.startswith("blocks.")]
    assert len(blocks) == len(set(blocks))


@pytest.mark.parametrize("fault", ["emb-row-shift", "head-row-shift", "head-row-zero"])
def test_a_fault_that_wants_the_whole_matrix_gets_it(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_checkpoint("conformance") as weights:
        kept = open_session(parse(f"fault:{fault}"), weights, 1).forward([1, 2, 3])
        monkeypatch.setattr(session, "KEEP_SHARE", 0.0)
        streamed = open_session(parse(f"fault:{fault}"), weights, 1).forward([1, 2, 3])
    assert kept.logits is not None
    assert streamed.logits is not None
    np.testing.assert_allclose(streamed.logits, kept.logits, rtol=1e-5, atol=1e-5)


def test_one_bad_call_answers_none() -> None:
    opened = EquationSession(open_checkpoint("conformance"), "x", "f32")
    with pytest.raises(BackendError, match="token ids must lie in"):
        opened.forward_together([([1], None, None), ([-1], None, None)])


def _resident(path: Path) -> int:
    """Kilobytes of a file that are mapped into this process and resident."""
    found, inside = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.split(" ")[0]:
            inside = line.endswith(str(path))
        elif inside and line.startswith("Rss:"):
            found += int(line.split()[1])
    return found


@pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="this system has no /proc")
@pytest.mark.parametrize("to", ["pth", "safetensors"])
def test_memory_of_a_mapped_file_is_given_back(tmp_path: Path, to: str) -> None:
    path = convert.save(open_checkpoint("conformance"), tmp_path / f"m.{to}", to)
    with open_checkpoint(str(path)) as weights:
        held = weights.get("emb.weight")
        before = held.clone()
        for name in weights:
            weights.get(name).sum()
        assert _resident(path) > 1000
        weights.forget()
        assert _resident(path) < 100
        assert torch.equal(held, before)  # read again from the file


def test_a_system_without_proc_does_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("backends.resident._madvise", lambda: None)
    give_back(tmp_path)
    assert mmap.PAGESIZE > 0
