"""Files and folders with tensors, opened without reading them and without running anything in them.

A reader turns a path into a `Source`: names, shapes and formats as the file has them, values read on
demand. What the names mean is the business of `names` and `detect`. A new file format is one function
here and one row in `READERS`.
"""

import json
import re
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from backends import pieces, rwkvcpp
from backends.errors import InputError
from backends.resident import give_back
from backends.weights import SHORT, Tensor


@dataclass(frozen=True)
class Source:
    """The tensors of a file or folder as they are stored.

    Attributes:
        tensors: name in the file -> unread tensor in the shape of the file.
        path: the file or folder; None when the tensors are made by code.
        config: `config.json` of a folder; empty elsewhere.
        close: gives the file back.
        forget: gives back the memory of mapped pages; they are read again when needed.
        remark: what the reader has to say about the values.
    """

    tensors: Mapping[str, Tensor]
    path: Path | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    close: Callable[[], None] = field(default=lambda: None)
    forget: Callable[[], None] = field(default=lambda: None)
    remark: str = ""


def read(path: Path) -> Source:
    """Open a checkpoint file or folder.

    Raises:
        InputError: missing, empty, damaged, of an unknown format, or holding what is no plain floating-point tensor.
    """
    try:
        if path.is_dir():
            return _folder(path)
        reader = READERS.get(path.suffix.lower())
        if reader is None:
            raise InputError(
                f"{path} has no known checkpoint extension; readable are {', '.join(READERS)}, HF folders."
            )
        _refuse_placeholder(path)
        return reader(path)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}.") from error


def in_memory(tensors: Mapping[str, torch.Tensor], path: Path | None = None) -> Source:
    """Tensors that are already there (memory-mapped ones too) as a source.

    Raises:
        InputError: a tensor that is sparse, without data, or of a format that no checkpoint has.
    """
    return Source({name: _held(path, name, tensor) for name, tensor in tensors.items()}, path)


def _refuse_placeholder(path: Path) -> None:
    """Refuse what stands where a checkpoint should be after a download that went wrong."""
    with path.open("rb") as file:
        head = file.read(64)
    if not head:
        raise InputError(f"{path} is empty (0 bytes): download or copy it again.")
    if head.startswith(b"version https://git-lfs"):
        raise InputError(f"{path} is a git-lfs pointer and not the checkpoint: run `git lfs pull`.")
    if head.lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise InputError(f"{path} is an HTML page and not a checkpoint: download the file itself.")


def _pth(path: Path) -> Source:
    """A state dict written by `torch.save`; memory-mapped, so that opening reads the index only."""
    loaded = _state_dict(path, _load(path))
    tensors = {name: held if isinstance(held, Tensor) else _held(path, name, held) for name, held in loaded.items()}
    return Source(tensors, path, forget=partial(give_back, path))


def _bin(path: Path) -> Source:
    """rwkv.cpp's format; or, under the same extension, what older HF exports write with `torch.save`."""
    if not rwkvcpp.is_one(path):
        return _pth(path)
    tensors, remark = rwkvcpp.tensors(path)
    return Source(tensors, path, forget=partial(give_back, path), remark=remark)


def _load(path: Path) -> Any:
    """Unpickle with torch's restricted unpickler, which builds tensors and calls nothing else."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols; what is unreadable raises
            return torch.load(path, map_location="cpu", weights_only=True, mmap=_can_map(path))
    except Exception as error:
        if pieces.refused(error):
            return pieces.pth(path)  # whose pickle has passed already
        raise InputError(f"{path} is no readable PyTorch checkpoint: {_reason(error)}.") from error


def _can_map(path: Path) -> bool:
    """Zip archives with uncompressed members can be mapped; the format before torch 1.6 is no zip."""
    with path.open("rb") as file:
        if file.read(2) != b"PK":
            return False
    with zipfile.ZipFile(path) as archive:
        return all(member.compress_type == zipfile.ZIP_STORED for member in archive.infolist())


def _reason(error: Exception) -> str:
    """Torch's paragraphs in a few words."""
    text = str(error)
    asked = re.search(r"GLOBAL ([\w.]+)", text)
    if asked:
        return f"its pickle asks for {asked[1]}; only tensors are read from it, nothing in it was run"
    if isinstance(error, zipfile.BadZipFile) or "central directory" in text:
        return "the archive is cut short or damaged"
    if "Unpickl" in type(error).__name__ or "Unpickl" in text:
        return "its pickle is damaged or holds more than tensors; nothing in it was run"
    words = first_line(error)[:120]
    return f"it was not written by torch.save, or is damaged ({type(error).__name__}: {words})"


def _state_dict(path: Path, loaded: Any) -> dict[str, torch.Tensor | Tensor]:
    """What was loaded, if it is a flat dict of tensors."""
    if not isinstance(loaded, dict):
        raise InputError(f"{path} holds a {type(loaded).__name__}, not a state dict of named tensors.")
    if not loaded:
        raise InputError(f"{path} holds an empty state dict.")
    for name, value in loaded.items():
        if isinstance(value, dict) and any(isinstance(inner, torch.Tensor | Tensor) for inner in value.values()):
            raise InputError(f"{path} nests its state dict under {name!r}: save that entry alone with torch.save.")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor | Tensor):
            raise InputError(f"{path} holds {name!r}, of type {type(value).__name__}, where only named tensors belong.")
    return loaded


def _held(path: Path | None, name: str, tensor: torch.Tensor) -> Tensor:
    if tensor.layout != torch.strided or tensor.is_meta or tensor.dtype not in SHORT:
        kind = "without data" if tensor.is_meta else f"{tensor.dtype} {tensor.layout}".replace("torch.", "")
        where = f" in {path}" if path else ""
        raise InputError(f"tensor {name!r}{where} is {kind}; dense tensors in {', '.join(SHORT.values())} are read.")
    return Tensor(tuple(tensor.shape), SHORT[tensor.dtype], tensor.detach().to)


def _safetensors(path: Path) -> Source:
    """One safetensors file; each tensor is read from the file when asked for."""
    try:
        stack = ExitStack()
        handle = stack.enter_context(safe_open(path, framework="pt"))
        tensors = {name: _sliced(path, name, handle) for name in handle.keys()}  # noqa: SIM118 - a handle is no dict
    except InputError:
        raise
    except Exception as error:  # SafetensorError derives from Exception only
        if pieces.refused(error):
            return _in_pieces(path)
        raise InputError(f"{path} is no readable safetensors file: {first_line(error)}.") from error
    if not tensors:
        raise InputError(f"{path} holds no tensors.")
    return Source(tensors, path, close=stack.close, forget=partial(give_back, path))


def _in_pieces(path: Path) -> Source:
    try:
        return Source(pieces.safetensors(path), path)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no readable safetensors file: {first_line(error)}.") from error


def _sliced(path: Path, name: str, handle: Any) -> Tensor:
    view = handle.get_slice(name)
    stored = view.get_dtype()
    if stored not in pieces.SAFETENSORS:
        raise InputError(f"tensor {name!r} in {path} is {stored}; {', '.join(pieces.SAFETENSORS)} are read.")

    def fetch(device: str) -> torch.Tensor:
        tensor: torch.Tensor = handle.get_tensor(name)
        return tensor.to(device)

    return Tensor(tuple(view.get_shape()), pieces.SAFETENSORS[stored], fetch)


def _folder(path: Path) -> Source:
    """An HF folder (one safetensors file, or shards and their index), or a folder with one checkpoint file."""
    config = read_json(path / "config.json") if (path / "config.json").exists() else {}
    index = path / "model.safetensors.index.json"
    if index.exists():
        return _sharded(path, index, config)
    files = [path / "model.safetensors"]
    if not files[0].exists():
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in READERS)
    if len(files) != 1:
        names = ", ".join(file.name for file in files[:8])
        what = f"{len(files)} checkpoint files ({names}): name one of them" if files else "no checkpoint file"
        raise InputError(f"the folder {path} holds {what}.")
    source = read(files[0])
    return replace(source, path=path if config else files[0], config=config)


def _sharded(path: Path, index: Path, config: Mapping[str, Any]) -> Source:
    """All shards as one, checked against the index."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise InputError(f"{index} has no weight_map.")
    tensors: dict[str, Tensor] = {}
    forgets: list[Callable[[], None]] = []
    with ExitStack() as stack:
        for shard in sorted({str(place) for place in places.values()}):
            source = _shard(path, index, shard)
            stack.callback(source.close)
            tensors |= source.tensors
            forgets.append(source.forget)
        lost = [name for name in places if name not in tensors]
        if lost:
            raise InputError(f"{path} lacks {len(lost)} tensors that its index names, {lost[0]} first.")
        return Source(tensors, path, config, stack.pop_all().close, partial(_each, forgets))


def _each(calls: Iterable[Callable[[], None]]) -> None:
    for call in calls:
        call()


def _shard(path: Path, index: Path, shard: str) -> Source:
    if Path(shard).name != shard:
        raise InputError(f"{index} names the shard {shard!r}, which does not lie in its folder.")
    if not (path / shard).exists():
        raise InputError(f"{path} lacks the shard {shard} that its index names: download it too.")
    return read(path / shard)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file; InputError where it is none."""
    try:
        value = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no readable JSON: {first_line(error)}.") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} holds a JSON {type(value).__name__}, not an object.")
    return value


def first_line(error: Exception) -> str:
    """The first line of what an exception says."""
    line = (str(error).strip() or type(error).__name__).partition("\n")[0].rstrip(".")
    return "".join(letter if letter.isprintable() else "?" for letter in line)


READERS: dict[str, Callable[[Path], Source]] = {
    ".pth": _pth,
    ".pt": _pth,
    ".safetensors": _safetensors,
    ".st": _safetensors,
    ".bin": _bin,
}
"""File extension -> reader."""
