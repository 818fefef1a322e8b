"""What the registry learns of engines: whether they are installed, and what an argument says."""

import sys
from pathlib import Path

import numpy as np
import pytest

from backends import gguf, registry
from backends.engines import interpreter, known
from backends.errors import BackendError, UsageError


@pytest.mark.parametrize(
    ("strategy", "device", "dtype"),
    [
        ("cpu fp32", "cpu", "f32"),
        ("cuda fp16", "cuda", "f16"),
        ("cuda:1 bf16", "cuda:1", "bf16"),
        ("cuda fp16i8 *10 -> cuda fp16 *5+ -> cpu fp32", "cuda", "f16"),
    ],
)
def test_a_strategy_says_device_and_format(strategy: str, device: str, dtype: str) -> None:
    assert known.strategy_says(strategy) == {"device": device, "dtype": dtype}
    spec = registry.parse(f"official:{strategy}")
    assert (spec.argument, spec.device, spec.dtype) == (strategy, device, dtype)
    assert registry.parse(spec.id) == spec


@pytest.mark.parametrize("strategy", ["fp32", "cpu", "cpu fp64", "cpu fp32 -> ", "gpu fp16", "cuda fp16 * 3"])
def test_what_is_no_strategy_is_told_in_words(strategy: str) -> None:
    with pytest.raises(UsageError, match="is no strategy of the rwkv package; write"):
        registry.parse(f"official:{strategy}")


def test_what_contradicts_the_argument_is_refused() -> None:
    with pytest.raises(UsageError, match="computes with dtype bf16; it cannot be asked for f32"):
        registry.parse("official:cpu bf16@f32")
    assert registry.parse("official:cpu bf16", device="cuda", dtype="f32").dtype == "bf16"
    with pytest.raises(UsageError, match="serves device"):
        registry.parse("official:dml fp16")


@pytest.mark.parametrize(
    ("kind", "dtype"), [("F32", "f32"), ("BF16", "bf16"), ("F16", "f16"), ("Q4_K", "f16"), ("Q8_0", "f16")]
)
def test_a_gguf_says_its_format(tmp_path: Path, kind: str, dtype: str) -> None:
    path = tmp_path / "m.gguf"
    many, few = (
        gguf.Entry(n, (s,), k, 4, lambda: memoryview(bytes(4))) for n, s, k in (("a", 9, kind), ("b", 1, "F32"))
    )
    gguf.write(path, {}, [few, many])
    assert known.gguf_says(str(path)) == {"dtype": dtype}
    assert registry.parse(f"llama-cpp:{path}").dtype == dtype


def test_a_gguf_that_is_missing_is_complained_about_later() -> None:
    assert known.gguf_says("missing.gguf") == {}
    assert registry.parse("llama-cpp:missing.gguf").dtype == "f32"


def test_the_interpreter_of_an_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interpreter.variable("llama-cpp") == "RWKV_HARNESS_LLAMA_CPP_PYTHON"
    monkeypatch.delenv("RWKV_HARNESS_HF_PYTHON", raising=False)
    assert interpreter.python_of("hf") == sys.executable
    monkeypatch.setenv("RWKV_HARNESS_HF_PYTHON", "no-such-python")
    with pytest.raises(BackendError, match="RWKV_HARNESS_HF_PYTHON names 'no-such-python', which is no program"):
        interpreter.python_of("hf")
    assert "no-such-python" in known.hf_missing()


def test_what_is_missing_is_told_with_the_remedy(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RWKV_HARNESS_HF_PYTHON", raising=False)
    assert interpreter.missing("hf", ("json", "numpy"), "pip install x") == ""
    words = interpreter.missing("hf", ("json", "no_such_module"), "pip install x")
    assert words == (
        "the Python package 'no_such_module' is not installed here: pip install x, or name an interpreter that has it "
        "in RWKV_HARNESS_HF_PYTHON"
    )
    other = tmp_path / "python"  # another interpreter, as far as the name tells
    other.symlink_to(sys.executable)
    monkeypatch.setenv("RWKV_HARNESS_HF_PYTHON", str(other))
    assert interpreter.missing("hf", ("json",), "pip install x") == ""
    assert "'no_such_module' is not installed in" in interpreter.missing("hf", ("no_such_module",), "pip install x")
    broken = tmp_path / "broken"
    broken.write_text("#!/bin/sh\nexit 3\n")
    broken.chmod(0o755)
    monkeypatch.setenv("RWKV_HARNESS_HF_PYTHON", str(broken))
    assert "'json' is not installed in" in interpreter.missing("hf", ("json",), "pip install x")


def test_a_plain_run_takes_the_engines_that_are_installed() -> None:
    from harness.job import left_out, make_job

    there = {name for name in ("official", "llama-cpp", "hf") if not registry.find(name).available()}
    assert {"official", "llama-cpp", "hf"} & set(make_job("conformance").subjects) == there
    assert {"official", "llama-cpp", "hf"} - set(left_out()) == there


def test_types_are_counted_by_parameters() -> None:
    header = gguf.Header({}, {"a": ((2, 3), "F32"), "b": ((9,), "Q4_K"), "c": ((1,), "F32")})
    assert header.types() == {"Q4_K": 9, "F32": 7}
    assert np.prod((2, 3)) == 6
