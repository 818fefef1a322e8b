"""The C program is built once, kept, and missed in words."""

import ctypes
import platform
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backends.errors import UsageError
from backends.native import build, library
from tests.backends.feeding import ids_for, logits_of, needs_compiler, opened, small_model

AVX512 = frozenset(build.SETS["avx512"])


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    """What this process has loaded so far is not remembered."""
    library.typed.cache_clear()
    yield
    library.typed.cache_clear()


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An empty cache."""
    monkeypatch.setenv("RWKV_NATIVE_CACHE", str(tmp_path / "kept"))
    return tmp_path / "kept"


@pytest.fixture
def has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RWKV_NATIVE", raising=False)
    monkeypatch.setattr(build, "processor_flags", lambda: AVX512)


@pytest.mark.usefixtures("has")
def test_the_best_instruction_set_unless_another_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    assert build.chosen() == "avx512"
    for name in build.SETS:
        monkeypatch.setenv("RWKV_NATIVE", name)
        assert build.chosen() == name
    monkeypatch.delenv("RWKV_NATIVE")
    monkeypatch.setattr(build, "processor_flags", lambda: frozenset(build.SETS["avx2"]))
    assert build.chosen() == "avx2"
    monkeypatch.setattr(build, "processor_flags", frozenset)
    assert build.chosen() == "c"


@pytest.mark.usefixtures("has")
def test_what_cannot_be_asked_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_NATIVE", "sse9")
    with pytest.raises(UsageError, match="RWKV_NATIVE=sse9 is unknown; use avx512, avx2, c or off"):
        build.chosen()
    monkeypatch.setattr(build, "processor_flags", frozenset)
    monkeypatch.setenv("RWKV_NATIVE", "avx2")
    with pytest.raises(UsageError, match="this processor lacks it; it serves c"):
        opened(small_model())
    monkeypatch.setenv("RWKV_NATIVE", "off")
    with pytest.raises(build.NoProgramError, match="switched off"):
        build.chosen()


def test_processors_are_read_only_where_they_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    build.processor_flags.cache_clear()
    monkeypatch.setattr(platform, "machine", lambda: "riscv64")
    assert build.processor_flags() == frozenset()
    build.processor_flags.cache_clear()
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(Path, "exists", lambda _: True)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: "model name : x\nflags : fpu avx2 fma\nflags : none\n")
    assert build.processor_flags() == {"fpu", "avx2", "fma"}
    build.processor_flags.cache_clear()


def test_the_compiler_is_cc_or_the_first_that_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "sh -c")
    assert build.compiler() == ["sh", "-c"]
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(build.NoProgramError, match="CC=no-such-compiler not found"):
        build.compiler()
    monkeypatch.delenv("CC")
    monkeypatch.setattr(shutil, "which", lambda name: "/bin/clang" if name == "clang" else None)
    assert build.compiler() == ["clang"]
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(build.NoProgramError, match="cc, gcc, clang not found"):
        build.compiler()


def test_one_build_serves_everybody(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs_compiler()
    commands: list[list[str]] = []
    run = build._run

    def counted(command: list[str]) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        return run(command)

    monkeypatch.setattr(build, "_run", counted)
    found: list[ctypes.CDLL] = []
    threads = [threading.Thread(target=lambda: found.append(build.library("c", "f32"))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len([command for command in commands if "-o" in command]) == 1
    assert [lib.lanes() for lib in found] == [4, 4, 4]
    assert build.library("c", "bf16").step() == 2
    assert len(list(kept.glob("*.so"))) == 2
    assert {path.suffix for path in kept.iterdir()} == {".so", ".lock"}  # nothing half-made stays


def test_a_name_tells_everything_that_a_library_is_made_of(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "rwkv7.c").write_text("int a;")
    keys = {build._key(["sh", "-O3"], tmp_path), build._key(["sh", "-O2"], tmp_path)}
    (tmp_path / "rwkv7.c").write_text("int b;")
    keys.add(build._key(["sh", "-O3"], tmp_path))
    monkeypatch.setattr(build, "_run", lambda _: subprocess.CompletedProcess([], 0, "sh 9", ""))
    keys.add(build._key(["sh", "-O3"], tmp_path))
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'rwkv7.c:1: error: no such option' >&2; exit 1", "refuses native/rwkv7.c: rwkv7.c:1: error: no such"),
        ("exit 3", "refuses native/rwkv7.c"),
        ('for last; do :; done; shift; while [ "$1" != -o ]; do shift; done; echo x > "$2"', "kept or loaded"),
    ],
)
def test_a_compiler_that_fails_leaves_torch(
    script: str, message: str, kept: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It refuses, says nothing, or makes rubbish."""
    (tmp_path / "broken").write_text(f'#!/bin/sh\n[ "$1" = --version ] && exit 0\n{script}\n')
    (tmp_path / "broken").chmod(0o700)
    monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")
    monkeypatch.setenv("CC", str(tmp_path / "broken"))
    monkeypatch.delenv("RWKV_NATIVE", raising=False)
    with opened(small_model()) as session:
        assert message in session.info.notes[1]
        assert session.info.attention == "chunked WKV-7 (chunk 64)"
        assert np.isfinite(logits_of(session.forward(ids_for(5)))).all()


def test_no_room_for_the_library_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    needs_compiler()
    (tmp_path / "file").touch()
    monkeypatch.setenv("RWKV_NATIVE_CACHE", str(tmp_path / "file"))
    with pytest.raises(build.NoProgramError, match="cannot be kept or loaded"):
        build.library("c", "f32")


def test_a_compiler_that_does_not_run_is_said(tmp_path: Path, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cc").write_text("no program")
    (tmp_path / "cc").chmod(0o700)
    monkeypatch.setenv("CC", str(tmp_path / "cc"))
    with pytest.raises(build.NoProgramError, match="does not run"):
        build.library("c", "f32")


def test_libraries_are_kept_where_caches_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RWKV_NATIVE_CACHE", "/here")
    assert build.cache_folder() == Path("/here")
    monkeypatch.delenv("RWKV_NATIVE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/there")
    assert build.cache_folder() == Path("/there/rwkv-harness/native")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert build.cache_folder() == Path.home() / ".cache" / "rwkv-harness" / "native"
