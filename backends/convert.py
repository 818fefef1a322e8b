"""Weights to files that other programs read: `.pth`, safetensors, an HF folder, candle_rwkv7's prepared folder.

Everything is written one tensor at a time, so that a model needs no more memory than its largest tensor takes.
Shapes are those of official files (vectors as (1, 1, C)) where the format does not say otherwise. Nothing half-written
ever stands under the final name: everything is written beside it, checked if the caller has a check, and renamed.
"""

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from backends import detect, model_config, names, pth_writer
from backends.base import ModelFacts
from backends.errors import InputError, UsageError, unknown
from backends.narrowing import Loss, cast
from backends.pieces import SAFETENSORS
from backends.weights import DTYPES, Tensor, Weights

if TYPE_CHECKING:
    from backends.proof import Proof

_SAFETENSORS = {short: name for name, short in SAFETENSORS.items()}

Told = Callable[[int, int], None]
"""Told the bytes that are written and the bytes that will be."""


@dataclass
class Order:
    """One file or folder to write.

    Attributes:
        weights: what to write.
        dest: the final name.
        dtype: number format; empty keeps the stored one.
        config: where config.json goes; None is where the format has it.
        told: progress.
        check: called with the written file or folder, under a temporary name, before it takes the final one.
        loss: what a narrower number format changed.
    """

    weights: Weights
    dest: Path
    dtype: str = ""
    config: Path | None = None
    told: Told = lambda *_: None
    check: Callable[[Path], None] = lambda _: None
    loss: Loss = field(default_factory=Loss)
    done: int = 0

    def tensors(self) -> dict[str, Tensor]:
        """Official names, order and shapes in the wanted number format; still unread."""
        return official_tensors(self.weights, self.dtype, self.loss)

    def wrote(self, total: int, size: int) -> None:
        """Tell of one more tensor, and let go of the memory that reading it took."""
        self.done += size
        self.weights.forget()
        self.told(self.done, total)


def save(weights: Weights, dest: Path, to: str, dtype: str = "", **how: Any) -> Path:
    """Write a checkpoint.

    Args:
        weights: what to write.
        dest: the file ("pth", "safetensors"; replaced if it exists), or a folder that does not exist yet ("hf",
            "prepared").
        to: a key of `FORMATS`.
        dtype: number format; empty keeps the stored one.
        how: further attributes of `Order`.

    Returns:
        `dest`.

    Raises:
        UsageError: another format or number format.
        InputError: `dest` cannot be written, a value is beyond the number format, or the version has no such names.
    """
    if to not in FORMATS:
        raise unknown("format", to, FORMATS)
    if dtype and dtype not in DTYPES:
        raise unknown("number format", dtype, DTYPES)
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        _sweep(dest)
        FORMATS[to](Order(weights, dest, dtype, **how))
    except OSError as error:
        raise InputError(f"{dest} cannot be written: {error.strerror or error}.") from error
    return dest


@dataclass(frozen=True)
class Conversion:
    """What a conversion came to.

    Attributes:
        path: what was written.
        to: its format.
        facts: identity and sizes of the source.
        dtype: number format that was asked for; empty is the stored one.
        size: bytes of all files.
        seconds: for all of it.
        loss: what a narrower number format changed.
        proof: what was checked before the file took its name.
    """

    path: Path
    to: str
    facts: ModelFacts
    dtype: str
    size: int
    seconds: float
    loss: Loss
    proof: "Proof"


def convert(
    source: str, dest: Path, to: str = "", dtype: str = "", config: Path | None = None, told: Told = lambda *_: None
) -> Conversion:
    """Convert a checkpoint and prove it: the new file is read back before it takes its name.

    Args:
        source: anything that `open_checkpoint` takes.
        dest: the file or the folder, see `save`.
        to: format; empty is what the name asks for.
        dtype: number format; empty keeps the stored one.
        config: where config.json goes; None is where the format has it.
        told: progress of writing.

    Raises:
        UsageError, InputError: see `save`, `open_checkpoint`.
        BrokenError: what was written does not read back as the same model; nothing of it is left.
    """
    from backends.checkpoint import open_checkpoint
    from backends.proof import Proof, prove

    to, started, loss = to or format_of(dest), time.monotonic(), Loss()
    wanted = "f32" if to == "prepared" else dtype
    proofs: list[Proof] = []
    with open_checkpoint(source) as weights:

        def check(path: Path) -> None:
            proofs.append(prove(weights, path, wanted))

        save(weights, dest, to, dtype, config=config, told=told, loss=loss, check=check)
    files = [path for path in (dest, *dest.rglob("*")) if path.is_file()]
    size = sum(path.stat().st_size for path in files)
    return Conversion(dest, to, weights.facts, wanted, size, time.monotonic() - started, loss, proofs[0])


def format_of(dest: Path) -> str:
    """The format that a name asks for.

    Raises:
        UsageError: its suffix says nothing.
    """
    if dest.name == "prepared":
        return "prepared"
    known = {".pth": "pth", ".pt": "pth", ".safetensors": "safetensors", ".st": "safetensors", "": "hf"}
    suffix = dest.suffix.lower()
    if suffix not in known and not dest.is_dir():
        raise UsageError(
            f"the name {dest.name!r} does not tell a format: end it in .pth or .safetensors, or say --to "
            f"{', --to '.join(FORMATS)}."
        )
    return known.get(suffix, "hf")


def official_tensors(weights: Weights, dtype: str = "", loss: Loss | None = None) -> dict[str, Tensor]:
    """The tensors in official order and in the shapes that official files have; still unread."""
    shapes = detect.file_shapes(weights.facts, weights.tensors)
    lost = Loss() if loss is None else loss
    return {
        name: cast(name, detect.reshaped(weights.tensors[name], shape), dtype, lost) for name, shape in shapes.items()
    }


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Tensor],
    metadata: Mapping[str, str] | None = None,
    wrote: Callable[[int], None] = lambda _: None,
) -> None:
    """A safetensors file, one tensor in memory at a time.

    The format: the length of the header (u64, little endian), the header as JSON padded with spaces to a
    multiple of 8, then the raw tensors in the order of their offsets.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + pth_writer.size(tensor)
        header[name] = {"dtype": _SAFETENSORS[tensor.dtype], "shape": tensor.shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            for piece in pth_writer.raw(tensor):
                file.write(piece)
            wrote(pth_writer.size(tensor))


def _write_pth(order: Order) -> None:
    tensors = order.tensors()
    with replacing(order.dest) as part:
        pth_writer.write(part, tensors, _telling(order, tensors))
        order.check(part)
    if order.config:
        _write_config(order, order.config)


def _write_safetensors(order: Order) -> None:
    beside = order.config or order.dest.parent / "config.json"
    model_config.refuse_foreign(beside, order.weights.facts)
    tensors = order.tensors()
    with replacing(order.dest) as part:
        write_safetensors(part, tensors, wrote=_telling(order, tensors))
        order.check(part)
    _write_config(order, beside)


def _write_hf(order: Order) -> None:
    _write_folder(order, names.hf, model_config.config)


def _write_prepared(order: Order) -> None:
    order.dtype = "f32"  # the only one that its reader takes
    _write_folder(order, names.prepared, model_config.prepared)


FORMATS: dict[str, Callable[[Order], None]] = {
    "pth": _write_pth,
    "safetensors": _write_safetensors,
    "hf": _write_hf,
    "prepared": _write_prepared,
}
"""Format -> what writes it."""


def _write_folder(
    order: Order, renamed: Callable[[Mapping[str, Tensor]], dict[str, Tensor]], keys: model_config.Keys
) -> None:
    """A folder with model.safetensors and config.json; the two appear together."""
    facts, dest = order.weights.facts, order.dest
    if facts.version != "7":
        raise InputError(f"only RWKV-7 has HF names here; {facts.name} is RWKV-{facts.version}.")
    if dest.exists() and (not dest.is_dir() or any(dest.iterdir())):
        raise InputError(f"{dest} exists already: give the folder a new name or remove it.")
    tensors = renamed(order.tensors())
    with replacing(dest) as part:
        part.mkdir()
        write_safetensors(part / "model.safetensors", tensors, wrote=_telling(order, tensors))
        model_config.write(part / "config.json", facts, order.dtype, keys)
        order.check(part)
    if order.config:
        _write_config(order, order.config, keys)


def _write_config(order: Order, path: Path, keys: model_config.Keys = model_config.config) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as part:
        model_config.write(part, order.weights.facts, order.dtype, keys)


def _telling(order: Order, tensors: Mapping[str, Tensor]) -> Callable[[int], None]:
    """What a writer tells of its progress; the disk must have the room first."""
    total = sum(map(pth_writer.size, tensors.values()))
    free = shutil.disk_usage(order.dest.parent).free
    if total > free:
        raise InputError(f"{order.dest} takes {total / 1e9:.1f} GB, and {free / 1e9:.1f} GB are free there.")
    return lambda size: order.wrote(total, size)


@contextmanager
def replacing(dest: Path) -> Iterator[Path]:
    """A path beside `dest` that takes its place when the block ends well and vanishes when it does not."""
    part = dest.with_name(f".{dest.stem}.{os.getpid()}.part{dest.suffix}")
    try:
        yield part
        for file in [*part.rglob("*"), part]:
            _flush(file)
        part.replace(dest)
    finally:
        _remove(part)


def _sweep(dest: Path) -> None:
    """Remove what killed conversions to the same name left beside it."""
    pattern = re.compile(rf"\.{re.escape(dest.stem)}\.(\d+)\.part{re.escape(dest.suffix)}")
    for path in dest.parent.iterdir():
        match = pattern.fullmatch(path.name)
        if match and not _alive(int(match[1])):
            _remove(path)


def _alive(pid: int) -> bool:
    """Whether a process of that id runs on this machine; in doubt it does."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Onto the disk before the rename, which would otherwise survive a power cut that the content does not."""
    if path.is_file():
        with path.open("rb") as file:
            os.fsync(file.fileno())
