"""What is compiled, and what happens where it cannot be."""

import importlib.util
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from backends.compiled import inductor
from tests.backends.feeding import (
    ALL,
    F32_BAND,
    assert_close,
    assert_within,
    fed,
    foreign_greedy,
    ids_for,
    logits_of,
    opened,
    small_model,
)

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


OFF = "no C program: switched off by RWKV_NATIVE=off"


@pytest.fixture(autouse=True)
def _no_c_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_NATIVE", "off")


@pytest.fixture
def may_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing stands against compiling, whatever this machine has."""
    monkeypatch.setattr(inductor, "obstacle", lambda _: "")


@pytest.mark.parametrize(("dtype", "limit"), [("f32", F32_BAND), ("bf16", 0.15)])
def test_the_compiled_step_agrees(dtype: str, limit: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if reason := inductor.obstacle(CPU):
        pytest.skip(f"nothing can be compiled here: {reason}")
    tensors, ids = small_model(), ids_for(20)
    with opened(tensors, dtype) as session:
        stepped = fed(session, ids, [1] * 20)
        assert session.info.notes == ("decode step compiled by inductor at first use", OFF)
        handle = session.forward(ids, want=ALL).state
        copy = session.export_state(handle)
        fast, inherited = (list(session.generate(ids, sampler, 6)) for sampler in (None, foreign_greedy))
        assert np.array_equal(np.concatenate(fast), np.concatenate(inherited))
        for _ in range(2):
            assert_close(session, fed(session, ids, [1] * 20), stepped, limit=0.0)
            assert_within(logits_of(session.forward([3], handle)), logits_of(session.forward([3], handle)), 0.0)
        assert np.array_equal(session.export_state(handle).wkv, copy.wkv)
    with opened({**tensors, "ln_out.bias": tensors["ln_out.bias"] * float("nan")}, dtype) as broken:
        assert np.isnan(logits_of(broken.forward([1]))).all()
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    assert_close(session, stepped, fed(opened(tensors, dtype), ids, [1] * 20), limit)


def test_one_compilation_serves_states_of_any_origin() -> None:
    if reason := inductor.obstacle(CPU):
        pytest.skip(f"nothing can be compiled here: {reason}")
    session, ids = opened(small_model()), ids_for(140)
    session.forward([1])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for T in (1, 2, 64, 65, 140):
            state = session.forward(ids[:T], want=ALL).state
            state = session.forward([1], session.forward([1], state, ALL).state, ALL).state
        session.forward([1], session.import_state(session.export_state(state)))
        rows = session.forward(ids.reshape(2, 70), want=ALL).state
        session.forward([1], tuple(type(layer)(*(part[1:] for part in layer)) for layer in rows))
        assert len(list(session.generate(ids, None, 4))) == 4


@pytest.mark.usefixtures("may_compile")
def test_only_single_tokens_are_compiled_and_every_session_has_its_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler drops a function after eight sets of shapes, so sessions must not share one."""
    compiled: list[Callable[..., Any]] = []

    def record(function: Callable[..., Any], **_: Any) -> Callable[..., Any]:
        compiled.append(function)
        return function

    monkeypatch.setattr(torch, "compile", record)
    for sessions in (1, 2):
        session = opened(small_model())
        session.forward([1, 2])
        session.forward([[1], [2]])
        assert len(compiled) == 2 * (sessions - 1)
        session.forward([1])
        session.forward([2])
        assert len(compiled) == 2 * sessions  # a layer and the head
    assert len({id(function.__code__) for function in compiled}) == 4


@pytest.mark.usefixtures("may_compile")
def test_a_failing_compiler_leaves_the_plain_program(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any, **__: Any) -> Callable[..., Any]:
        def fail(*_: Any) -> None:
            raise RuntimeError("cannot write the cache\nmore")

        return fail

    monkeypatch.setattr(torch, "compile", broken)
    session = opened(small_model())
    got = logits_of(session.forward([5]))
    assert session.info.notes == ("runs uncompiled: torch.compile failed (RuntimeError: cannot write the cache)", OFF)
    monkeypatch.setattr(inductor, "obstacle", lambda _: "asked for")
    plain = opened(small_model())
    assert plain.info.notes == ("runs uncompiled: asked for", OFF)
    assert_within(got, logits_of(plain.forward([5])), 0.0)
    assert_within(got, logits_of(session.forward([5])), 0.0)


def test_what_stands_against_compiling(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for switch in ("TORCH_COMPILE_DISABLE", "TORCHDYNAMO_DISABLE"):
        monkeypatch.setenv(switch, "1")
        assert inductor.obstacle(CPU) == f"switched off by {switch}=1"
        monkeypatch.delenv(switch)
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"include": str(tmp_path)})
    assert "Python.h" in inductor.obstacle(CPU)
    (tmp_path / "Python.h").touch()
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert "no-such-compiler not found" in inductor.obstacle(CPU)
    monkeypatch.setenv("CXX", sys.executable)
    assert inductor.obstacle(CPU) == ""
    for found in (None, object()):
        monkeypatch.setattr(importlib.util, "find_spec", lambda _, found=found: found)
        assert ("triton" in inductor.obstacle(CUDA)) == (found is None)


@pytest.mark.usefixtures("may_compile")
def test_after_too_many_sets_of_shapes_a_session_goes_on_uncompiled_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A layer is compiled whole; then the compiler raises where otherwise it would fall silent."""
    compiler, ids = torch.compile, ids_for(12)
    monkeypatch.setattr(torch, "compile", lambda f, **how: compiler(f, backend="eager", **how))
    session = opened(small_model())
    plain = logits_of(session.forward(ids))
    handle = session.forward([1], want=ALL).state
    stepped = logits_of(session.forward([2], handle))
    assert session.info.notes[0] == "decode step compiled by inductor at first use"
    other = tuple(layer._replace(wkv=layer.wkv.mT.contiguous().mT) for layer in handle)
    with torch._dynamo.config.patch(recompile_limit=1):
        assert_within(logits_of(session.forward([2], other)), stepped, F32_BAND)
    assert session.info.notes[0].startswith("runs uncompiled by now: ")
    assert_within(logits_of(session.forward([2], handle)), stepped, F32_BAND)
    assert_within(logits_of(session.forward(ids)), plain, 0.0)
