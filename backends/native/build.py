"""Builds the C program once per source, instruction set and number format, and loads it.

`RWKV_NATIVE` forces an instruction set (avx512, avx2, c) or switches all of it off (off). Libraries are kept under
names that depend on everything they are made of, in `RWKV_NATIVE_CACHE` or `$XDG_CACHE_HOME/rwkv-harness/native`.
"""

import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from backends.errors import HarnessError, UsageError

SOURCES = Path(__file__).parent
SETS = {
    "avx512": ("avx512f", "avx512bw", "avx512vl", "avx512dq", "avx2", "fma"),
    "avx2": ("avx2", "fma"),
    "c": (),
}
"""Instruction set -> flags that the processor must have, as /proc/cpuinfo and compilers spell them; best first."""

OPTIONS = ("-O3", "-std=gnu11", "-fno-math-errno", "-fno-trapping-math", "-fPIC", "-shared", "-pthread")


class NoProgramError(HarnessError):
    """The C program cannot be had here; the message says why, and torch computes instead."""


def chosen() -> str:
    """The instruction set to build for.

    Raises:
        NoProgramError: it is switched off.
        UsageError: `RWKV_NATIVE` names one that does not exist, or that this processor lacks.
    """
    asked = os.environ.get("RWKV_NATIVE", "")
    if asked == "off":
        raise NoProgramError("switched off by RWKV_NATIVE=off")
    has = processor_flags()
    able = [name for name, needed in SETS.items() if has.issuperset(needed)]
    if asked and asked not in SETS:
        raise UsageError(f"RWKV_NATIVE={asked} is unknown; use {', '.join(SETS)} or off.")
    if asked and asked not in able:
        raise UsageError(f"RWKV_NATIVE={asked}: this processor lacks it; it serves {', '.join(able)}.")
    return asked or able[0]


@cache
def processor_flags() -> frozenset[str]:
    """Instruction sets of this processor; empty where the system does not list them."""
    cpuinfo = Path("/proc/cpuinfo")
    if platform.machine() not in ("x86_64", "AMD64") or not cpuinfo.exists():
        return frozenset()
    lines = cpuinfo.read_text(errors="replace").splitlines()
    return frozenset(next((line.partition(":")[2].split() for line in lines if line.startswith("flags")), ()))


def compiler() -> list[str]:
    """The command of the C compiler: `CC`, or the first of cc, gcc and clang.

    Raises:
        NoProgramError: there is none.
    """
    if named := os.environ.get("CC"):
        command = shlex.split(named)
        if shutil.which(command[0]):
            return command
        raise NoProgramError(f"no C compiler (CC={named} not found)")
    for name in ("cc", "gcc", "clang"):
        if shutil.which(name):
            return [name]
    raise NoProgramError("no C compiler (cc, gcc, clang not found)")


def options(instructions: str, dtype: str) -> list[str]:
    """Compiler options of one variant."""
    flags = list(SETS[instructions])
    if instructions == "avx512":
        flags += ["prefer-vector-width=512", *(["avx512bf16"] if "avx512_bf16" in processor_flags() else [])]
    return [*OPTIONS, *(f"-m{flag}" for flag in flags), *(["-DBF16"] if dtype == "bf16" else [])]


def library(instructions: str, dtype: str) -> ctypes.CDLL:
    """The program for an instruction set and weights in "f32" or "bf16", built now if it is not kept.

    Raises:
        NoProgramError: there is no compiler, it refuses, or there is no room to keep what it makes.
    """
    return loaded(SOURCES / "rwkv7.c", f"{instructions}-{dtype}", options(instructions, dtype))


def loaded(source: Path, variant: str, told: list[str]) -> ctypes.CDLL:
    """A C program, built now if it is not kept.

    Args:
        source: its file; others beside it may be included.
        variant: what its kept name says besides.
        told: options of the compiler.

    Raises:
        NoProgramError: there is no compiler, it refuses, or there is no room to keep what it makes.
    """
    try:
        return ctypes.CDLL(str(_built(source, variant, [*compiler(), *told])))
    except OSError as error:
        raise NoProgramError(f"the C program cannot be kept or loaded ({error})") from error


def _built(source: Path, variant: str, command: list[str]) -> Path:
    folder = cache_folder()
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    kept = folder / f"{source.stem}-{variant}-{_key(command, source.parent)}.so"
    if not kept.exists():
        with _locked(kept.with_suffix(".lock")):
            if not kept.exists():
                _compile(command, source, kept)
    return kept


def cache_folder() -> Path:
    """Where libraries are kept."""
    if named := os.environ.get("RWKV_NATIVE_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "rwkv-harness" / "native"


def _key(command: list[str], sources: Path) -> str:
    """Of a folder's sources, options and the compiler's version."""
    digest = hashlib.sha256("\0".join(command).encode())
    for source in sorted(sources.glob("*.[ch]")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    digest.update(_run([command[0], "--version"]).stdout.encode())
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """One process at a time; the file stays, since removing it would let two in."""
    try:
        import fcntl
    except ImportError:  # pragma: no cover - systems without flock build twice, which is harmless
        yield
        return
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _compile(command: list[str], source: Path, kept: Path) -> None:
    """Build beside `kept` and move it there in one step."""
    with tempfile.TemporaryDirectory(dir=kept.parent) as folder:
        made = Path(folder) / kept.name
        done = _run([*command, str(source), "-o", str(made), "-lm"])
        if done.returncode:
            said = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines() or [""]
            raise NoProgramError(f"{command[0]} refuses {source.parent.name}/{source.name}: {said[0].strip()}"[:200])
        made.replace(kept)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)  # noqa: S603
    except (OSError, subprocess.SubprocessError) as error:
        raise NoProgramError(f"{command[0]} does not run ({error})") from error
