"""Which backends exist: one table, one entry-point group, near matches on an unknown name.

A subject is written `NAME`, `NAME:ARGUMENT`, and either with `@OPTION,...` behind it, where an option
is a number format or a device: `torch-compile@bf16`, `torch-compile@cuda,bf16`, `honest:7@bf16`.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from backends import fault_list, recorded
from backends.base import DTYPES, Session
from backends.engines import known
from backends.errors import BackendError, Unsupported, UsageError, unknown

if TYPE_CHECKING:
    from backends.weights import Weights

GROUP = "rwkv_harness.backends"
"""Entry-point group in which other packages offer their own `Backend` rows."""

Opener = Callable[..., Session]


def _cuda_missing() -> str:
    """Why CUDA cannot be used, without importing torch unless a driver is there; "" when it can."""
    import ctypes

    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no NVIDIA driver on this machine (libcuda.so.1 not found)"
    import torch

    if torch.version.cuda is None:
        return f"torch {torch.__version__} is a build without CUDA"
    return "" if torch.cuda.is_available() else "torch finds no usable CUDA device"


@dataclass(frozen=True)
class Backend:
    """One row of the table.

    Attributes:
        name: what `--backend` takes.
        summary: one line for the list.
        opener: "module:function", or the function itself; called as
            `opener(weights, device=..., dtype=..., threads=..., argument=...)`.
        requires: importable modules it needs, checked without importing them.
        devices, dtypes: what it serves, its default first.
        versions: RWKV versions it serves; empty is all.
        argument: what stands behind "NAME:", in words; empty if it takes none.
        probe: further reason why it is not available; "" if it is.
        reads: forms of checkpoint ("pth", "safetensors", "hf") that its engine opens itself, where it must be one of
            them; generate and chat convert others once. Empty takes opened weights.
        implied: argument -> the device and number format ("device", "dtype") that it says by itself.
    """

    name: str
    summary: str
    opener: str | Opener
    requires: tuple[str, ...] = ()
    devices: tuple[str, ...] = ("cpu",)
    dtypes: tuple[str, ...] = ("f32",)
    versions: tuple[str, ...] = ()
    argument: str = ""
    probe: Callable[[], str] = lambda: ""
    reads: tuple[str, ...] = ()
    implied: Callable[[str], Mapping[str, str]] = lambda _: {}

    def available(self) -> str:
        """Empty when the backend can run here, else the reason in words. Imports nothing heavy."""
        for module in self.requires:
            if importlib.util.find_spec(module) is None:
                return f"the Python package {module!r} is not installed"
        return self.probe()

    def load(self) -> Opener:
        """The opener itself, imported now."""
        if not isinstance(self.opener, str):
            return self.opener
        module, _, attribute = self.opener.partition(":")
        found: Opener = getattr(importlib.import_module(module), attribute)
        return found


@dataclass(frozen=True)
class Spec:
    """A subject as written, taken apart.

    Attributes:
        backend: registry name.
        argument: what stood behind "NAME:".
        device, dtype: as written behind "@", else the backend's defaults.
    """

    backend: str
    argument: str
    device: str
    dtype: str

    @property
    def id(self) -> str:
        """The shortest text that says the same; unique among the subjects of a run."""
        name = f"{self.backend}:{self.argument}" if self.argument else self.backend
        row = find(self.backend)
        extra = [v for v, default in ((self.device, row.devices[0]), (self.dtype, row.dtypes[0])) if v != default]
        return name + ("@" + ",".join(extra) if extra else "")


EQUATIONS = ("4", "5.0", "5.1", "5.2", "6", "7", "7a", "7b")
"""RWKV versions that are written as named equations, `backends.reference.session.VERSIONS`."""

_TABLE = (
    Backend(
        "reference-f64",
        "RWKV as named equations in float64: the truth that everything is compared with",
        "backends.reference.session:open_reference",
        requires=("torch",),
        dtypes=("f64",),
        versions=EQUATIONS,
    ),
    Backend(
        "torch-cpu-f32",
        "the same equations in float32, sequential, pure PyTorch",
        "backends.torch_cpu:open_torch_cpu",
        requires=("torch",),
        versions=EQUATIONS,
    ),
    Backend(
        "torch-cuda-bf16",
        "PyTorch on CUDA: bf16 weights and activations, float32 state",
        "backends.torch_cuda:open_torch_cuda",
        requires=("torch",),
        devices=("cuda",),
        dtypes=("bf16", "f32", "f16"),
        versions=("7",),
        probe=_cuda_missing,
    ),
    Backend(
        "torch-compile",
        "written apart: one C program on CPUs, chunked WKV and a compiled step elsewhere; CPU and CUDA",
        "backends.torch_compiled:open_torch_compiled",
        requires=("torch",),
        devices=("cpu", "cuda"),
        dtypes=("f32", "bf16", "f16"),
        versions=EQUATIONS[1:],
        argument="SWITCH=VALUE[,...]: sparse=0|1; for CUDA graph=0|1, embedding=host|device",
    ),
    Backend(
        "honest",
        "the equations with every named tensor randomly rounded: what honest arithmetic may do",
        "backends.reference.honest:open_honest",
        requires=("torch",),
        dtypes=("bf16", "f32", "f16"),
        versions=EQUATIONS,
        argument="SEED[?form=official|plain][&state=bf16|f16|f32]",
    ),
    Backend(
        "fault",
        "the equations with a known porting mistake planted: what a gate must catch",
        "backends.reference.faults:open_fault",
        requires=("torch",),
        dtypes=("f32", "bf16", "f16", "f64"),
        versions=fault_list.EVERY,
        argument="NAME[+NAME...][?seed=N], names of backends/fault_list.py",
    ),
    Backend(
        "process",
        "a program in any language that speaks docs/protocol.md on stdin and stdout",
        "backends.process.session:open_process",
        requires=("torch",),
        devices=("cpu", "cuda", "mps"),
        dtypes=("f32", "bf16", "f16", "f64"),
        argument="COMMAND, its program and arguments",
        probe=lambda: "" if os.name == "posix" else "it needs POSIX pipes and process groups",
    ),
    Backend(
        "official",
        "the rwkv package in a child process, with any strategy it has; opens the .pth by itself",
        "backends.engines.official:open_official",
        devices=("cpu", "cuda", "mps"),
        dtypes=("f32", "bf16", "f16"),
        versions=("4", "5.0", "5.1", "5.2", "6", "7", "7a"),
        argument="STRATEGY of the package, as in 'cuda fp16'",
        probe=known.official_missing,
        reads=("pth",),
        implied=known.strategy_says,
    ),
    Backend(
        "llama-cpp",
        "llama.cpp in a child process, on a GGUF that is written here from the official tensors, or on your own",
        "backends.engines.llama_cpp:open_llama_cpp",
        devices=("cpu", "cuda"),
        dtypes=("f32", "bf16", "f16"),
        versions=("6", "7"),
        argument="GGUF, a file of yours; --model stays the original",
        probe=known.llama_missing,
        implied=known.gguf_says,
    ),
    Backend(
        "recorded",
        "what `record` kept of a backend, or a port dumped: the same answers to the same calls, on any machine",
        "backends.recorded:open_recorded",
        requires=("torch",),
        devices=("cpu", "cuda", "mps"),
        dtypes=("f32", "bf16", "f16", "f64"),
        argument="DIR, a recording or a dump",
        implied=recorded.says,
    ),
    Backend(
        "hf",
        "Hugging Face Transformers with the package rwkv7-hf in a child process; converts the .pth by itself",
        "backends.engines.hf:open_hf",
        devices=("cpu", "cuda", "mps"),
        dtypes=("f32", "bf16", "f16"),
        versions=("7",),
        probe=known.hf_missing,
        reads=("pth", "hf"),
    ),
)


@cache
def table() -> dict[str, Backend]:
    """Every backend by name: ours, then what other packages offer in the entry-point group."""
    rows = {row.name: row for row in _TABLE}
    for point in entry_points(group=GROUP):
        row = point.load()
        if not isinstance(row, Backend):
            raise BackendError(f"entry point {point.name!r} ({point.value}) is no backends.registry.Backend.")
        rows.setdefault(row.name, row)
    return rows


def find(name: str) -> Backend:
    """The row of that name, or a UsageError with near matches."""
    rows = table()
    if name not in rows:
        raise unknown("backend", name, rows)
    return rows[name]


def parse(text: str, device: str = "", dtype: str = "") -> Spec:
    """Take a written subject apart.

    Args:
        text: `NAME[:ARGUMENT][@OPTION,...]`.
        device: for what the text leaves open; empty takes the backend's own default. Left aside where
            the backend does not serve it.
        dtype: likewise.

    Raises:
        UsageError: unknown backend, or a device or number format that it does not serve.
    """
    head, _, tail = text.rpartition("@")
    options = tail.split(",")
    if not head or not all(_is_option(option) for option in options):
        head, options = text, []
    name, _, argument = head.partition(":")
    row = find(name)
    written = {("dtype" if option in DTYPES else "device"): option for option in options}
    said = row.implied(argument) if argument else {}
    for kind, told in said.items():
        if written.get(kind, told) != told:
            raise UsageError(f"{head} computes with {kind} {told}; it cannot be asked for {written[kind]}.")
    written = {**written, **said}
    checks = (("dtype", written.get("dtype"), row.dtypes), ("device", written.get("device"), row.devices))
    for kind, value, served in checks:
        if value is not None and value.partition(":")[0] not in served:
            raise UsageError(f"backend {name} serves {kind} {', '.join(served)}, not {value}.")
    if argument and not row.argument:
        raise UsageError(f"backend {name} takes no argument, got {argument!r}.")
    chosen_device = written.get("device") or (device if device.partition(":")[0] in row.devices else row.devices[0])
    chosen_dtype = written.get("dtype") or (dtype if dtype in row.dtypes else row.dtypes[0])
    return Spec(name, argument, chosen_device, chosen_dtype)


def open_session(spec: Spec, weights: "Weights", threads: int = 0) -> Session:
    """Open a backend on a checkpoint.

    Raises:
        BackendError: it is not available here, or broke.
        Unsupported: it does not serve this RWKV version.
    """
    row = find(spec.backend)
    reason = row.available()
    if reason:
        raise BackendError(f"backend {row.name} is not available: {reason}.")
    version = weights.facts.version
    if row.versions and version not in row.versions:
        raise Unsupported(f"backend {row.name} serves RWKV {', '.join(row.versions)}, not {version}.")
    options: dict[str, Any] = {"device": spec.device, "dtype": spec.dtype, "threads": threads}
    if row.argument:
        options["argument"] = spec.argument
    return row.load()(weights, **options)


def _is_option(text: str) -> bool:
    return text in DTYPES or text.partition(":")[0] in ("cpu", "cuda", "mps")
