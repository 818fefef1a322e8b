"""The recurrence in C: the same numbers and gradients as the sequential form, and words where it cannot be had."""

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from backends.demo import scan
from backends.errors import BackendError
from tests.backends.demo import tiny

compiler = pytest.mark.skipif(bool(scan.obstacle()), reason=f"scan.c is not compiled here: {scan.obstacle()}")


@pytest.fixture
def nothing_compiled() -> Iterator[None]:
    scan._library.cache_clear()
    yield
    scan._library.cache_clear()


@compiler
@pytest.mark.parametrize(("T", "N"), [(1, 8), (16, 8), (37, 8), (64, 32)])
def test_values_are_the_sequential_form_s(T: int, N: int) -> None:
    z = tiny.inputs(2, T, 3, N)
    for got, want in zip(scan.wkv(*(x.float() for x in z)), tiny.sequential(*z), strict=True):
        assert tiny.far(got.double(), want) < 2e-6


@compiler
@pytest.mark.parametrize("T", [1, 16, 37])
def test_gradients_are_the_sequential_form_s(T: int) -> None:
    z = [x.requires_grad_() for x in tiny.inputs(2, T, 2, 8)]
    single = [x.detach().float().requires_grad_() for x in z]
    mine = tiny.gradients(scan.wkv(*single), single)
    theirs = tiny.gradients(tiny.sequential(*z), z)
    for name, got, want in zip(tiny.NAMES, mine, theirs, strict=True):
        assert tiny.far(got.double(), want) < 1e-5, name


@compiler
def test_both_ways_agree() -> None:
    z = [x.requires_grad_() for x in tiny.inputs(1, 64, 2, 8, dtype=torch.float32)]
    ours, chunks = (form(*z) for form in (scan.wkv, tiny.chunks))
    for got, want in zip([*ours, *tiny.gradients(ours, z)], [*chunks, *tiny.gradients(chunks, z)], strict=True):
        assert tiny.far(got, want) < 5e-5


@compiler
def test_inputs_stay_as_they_are_and_may_be_views() -> None:
    z = tiny.inputs(2, 20, 2, 8, dtype=torch.float32)
    views = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in z]
    before = [x.clone() for x in views]
    for got, want in zip(scan.wkv(*views), scan.wkv(*z), strict=True):
        assert torch.equal(got, want)
    assert all(torch.equal(x, y) for x, y in zip(views, before, strict=True))


@compiler
def test_the_library_leaves_denormal_numbers_alone(nothing_compiled: None) -> None:
    assert isinstance(scan._library(8), ctypes.CDLL)
    assert (torch.full((8,), 1e-39) * 0.5).min() > 0


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch, nothing_compiled: None) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert scan.obstacle() == "no C compiler (cc not found)"
    with pytest.raises(BackendError, match=r"^no C compiler \(cc not found\); train with --scan chunks\.$"):
        scan.wkv(*tiny.inputs(1, 4, 1, 4, dtype=torch.float32))


@compiler
@pytest.mark.parametrize("machine", ["x86_64", "other"])
def test_what_the_compiler_refuses_is_told_in_one_line(
    machine: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nothing_compiled: None
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(scan, "SOURCE", tmp_path / "broken.c")
    (tmp_path / "broken.c").write_text("int forward(void) { return nothing; }\n")
    with pytest.raises(BackendError, match=r"^cc refuses broken\.c: .*error.*nothing.*; train with --scan chunks\.$"):
        scan._library(4)
