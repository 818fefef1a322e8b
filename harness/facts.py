"""Where a run happened: machine, versions, commit. Plain JSON, works everywhere, imports nothing heavy.

Only product names, sizes, versions and thread settings are collected; never a host name, a user name or a path.
"""

import os
import platform
import re
import subprocess
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

PACKAGES = (
    *("rwkv-harness", "torch", "numpy", "safetensors", "pandas", "jinja2", "huggingface_hub", "pyrwkv-tokenizer"),
    *("rwkv", "triton", "transformers", "llama-cpp-python", "flash-linear-attention"),
)
"""Distributions whose version is recorded where they are installed."""

SETTINGS = (
    *("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "OMP_PLACES"),
    *("OMP_PROC_BIND", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "KMP_BLOCKTIME", "CUDA_VISIBLE_DEVICES"),
    *("CUBLAS_WORKSPACE_CONFIG", "NVIDIA_TF32_OVERRIDE", "TORCHINDUCTOR_MAX_AUTOTUNE"),
)
"""Environment variables that change speed or arithmetic."""

SIMD = ("sse4_2", "avx", "avx2", "fma", "avx512f", "avx512_bf16", "avx512_fp16", "amx_bf16", "asimd", "sve", "bf16")
"""Instruction sets worth knowing, as /proc/cpuinfo spells them."""

_HARMLESS = re.compile(r"[\w.,:;=+(){}\- ]{1,100}")  # no slash: a setting may not carry a path


def environment(root: Path | None = None) -> dict[str, Any]:
    """Facts about this machine and this program.

    Args:
        root: folder of the project, whose commit is looked up; by default the one that this file belongs to.

    Returns:
        `python`, `os`, `cpu`, `cores` (usable by this process), `memory_gib`, `packages` (name -> version),
        `commit` ("" for an installed wheel), `dirty` (None if unknown), and `machine` (architecture, instruction
        sets, limits, load, thread settings). A fact that cannot be had here is left out of `machine`.
    """
    commit, dirty = revision(root or Path(__file__).resolve().parents[1])
    return {
        "python": platform.python_version(),
        "os": f"{platform.system()} {platform.release()}".strip(),
        "cpu": cpu_brand(),
        "cores": usable_cores(),
        "memory_gib": memory_gib(),
        "packages": versions(),
        "commit": commit,
        "dirty": dirty,
        "machine": _machine(),
    }


def versions(names: Sequence[str] = PACKAGES) -> dict[str, str]:
    """Versions of those distributions that are installed; nothing is imported."""
    found = {}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision(root: Path) -> tuple[str, bool | None]:
    """Commit of the checkout at `root` and whether files differ from it; ("", None) where `root` is none."""
    if not (root / ".git").exists():
        return "", None
    commit = _output("git", "-C", str(root), "rev-parse", "HEAD")
    status = _output("git", "-C", str(root), "status", "--porcelain")
    if not commit:
        return "", None
    return commit, None if status is None else bool(status)


def cpu_brand() -> str:
    """Product name of the processor, as good as the system tells."""
    named = re.search(r"^(?:model name|Model|Hardware)\s*:\s*(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)
    if named:
        return named[1].strip()
    brand = _output("sysctl", "-n", "machdep.cpu.brand_string") if platform.system() == "Darwin" else ""
    return (
        brand or os.environ.get("PROCESSOR_IDENTIFIER", "") or platform.processor() or platform.machine() or "unknown"
    )


def usable_cores() -> int:
    """Cores that this process may run on (affinity), which in a container are fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def memory_gib() -> float:
    """Memory that this process may use, in GiB: the machine's, or its container's limit; 0 if unknown."""
    total = re.search(r"^MemTotal:\s+(\d+) kB", _text("/proc/meminfo"), re.MULTILINE)
    sizes = [int(total[1]) * 1024] if total else [int(_output("sysctl", "-n", "hw.memsize") or 0)]
    limit = _text("/sys/fs/cgroup/memory.max").strip()
    sizes += [int(limit)] if limit.isdecimal() else []
    return round(min(sizes) / 2**30, 2)


def read_bandwidth(mib: int = 256, repeats: int = 5, threads: int = 1) -> list[float]:
    """Rate at which memory can be read, probed: the limit of decoding at batch 1.

    Args:
        mib: size of the array in MiB; take several times the last-level cache.
        repeats: number of passes over it.
        threads: cores that read at the same time, each its own part.

    Returns:
        GB/s (10^9 bytes) of every pass, in order.
    """
    parts = np.array_split(np.ones(mib * 2**20 // 8, dtype=np.float64).view(np.int64), threads)
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats):
            start = time.perf_counter()
            list(pool.map(np.bitwise_or.reduce, parts))
            rates.append(mib * 2**20 / (time.perf_counter() - start) / 1e9)
    return rates


def _machine() -> dict[str, Any]:
    flags = set(
        re.findall(
            r"\w+", " ".join(re.findall(r"^(?:flags|Features)\s*:(.+)$", _text("/proc/cpuinfo"), re.MULTILINE)[:1])
        )
    )
    facts = {
        "arch": platform.machine(),
        "simd": " ".join(name for name in SIMD if name in flags),
        "cores_total": os.cpu_count(),
        "cpu_limit": _cpu_limit(),
        "governor": _text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").strip(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
    }
    settings = {name: os.environ[name] for name in SETTINGS if _HARMLESS.fullmatch(os.environ.get(name, ""))}
    return {name: value for name, value in (facts | settings).items() if value not in {None, ""}}


def _cpu_limit() -> float | None:
    """Cores' worth of time that a container is granted; None without a limit."""
    quota, _, period = _text("/sys/fs/cgroup/cpu.max").strip().partition(" ")
    return int(quota) / int(period) if quota.isdecimal() and period.isdecimal() and int(period) else None


def _text(path: str) -> str:
    """A small system file, or nothing where it cannot be read."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _output(*command: str) -> str | None:
    """What a system tool prints; None where it is missing, fails or hangs."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)  # noqa: S603 - fixed words
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return None
    return done.stdout.strip()
