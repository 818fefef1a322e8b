"""One `--model` string for everything that can be opened: a file, a folder, a hub id, or a model made by code.

    PATH                               .pth, .safetensors, a folder as the hub has it
    owner/repo[/file][@revision]       on a hub, through huggingface_hub
    conformance[?seed=N]               the designed checkpoint
    synthetic:rwkv7-SIZE[?seed=N]      official shapes, random weights

Opening reads names and shapes, not values. A tensor read from a memory-mapped .pth may share its
memory with the mapping: treat what `Weights.get` returns as read-only.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from backends import detect, hub, names, readers, synthetic
from backends.base import ModelFacts
from backends.errors import InputError
from backends.readers import Source
from backends.weights import Weights


def open_checkpoint(model: str) -> Weights:
    """Open a checkpoint.

    Args:
        model: path, hub id or name, as in the module's docstring.

    Returns:
        The weights, unread; close them, or use them in a `with`.

    Raises:
        InputError: nothing of that name, unreadable, damaged, incomplete, or no RWKV.
    """
    name, _, query = model.partition("?")
    if name in BUILTIN:
        return assemble(model, BUILTIN[name].make(_seed(model, query)), BUILTIN[name].note)
    path = _existing(model)
    return assemble(model, readers.read(path or hub.fetch(_hub_id(model))))


def assemble(name: str, source: Source, note: str = "") -> Weights:
    """Names made official, version and sizes detected, every shape checked and made canonical."""
    try:
        tied = source.config.get("tie_word_embeddings") is True
        tensors = names.official(name, source.tensors, tied=tied)
        facts = detect.detect(name, tensors)
    except InputError:
        source.close()
        raise
    remarks = [note, *_contradictions(facts, source.config)]
    facts = replace(facts, evidence="; ".join([facts.evidence, *filter(None, remarks)]))
    return Weights(facts, detect.canonical(facts, tensors), source.path, source.close)


def not_finite(weights: Weights) -> list[str]:
    """Names of the tensors that hold NaN or infinity; legal, but worth a note. Reads everything once."""
    return [name for name in weights if not bool(torch.isfinite(weights.get(name)).all())]


def known() -> dict[str, str]:
    """The models that are made by code: name -> one line about it."""
    return {name: row.summary for name, row in BUILTIN.items()}


class _Builtin:
    """A row of `BUILTIN`: how to make the tensors, one line for the list, a remark for the evidence."""

    def __init__(self, make: Callable[[int], Source], summary: str, note: str) -> None:
        self.make, self.summary, self.note = make, summary, note


def _conformance(seed: int) -> Source:
    from backends.reference import conformance

    return readers.in_memory(conformance.tensors(seed))


def _synthetic(size: str) -> _Builtin:
    row = synthetic.SIZES[size]
    note = "generated: official shapes, random weights" + (f" ({row.note})" if row.note else "")
    return _Builtin(
        lambda seed: synthetic.source(size, seed), f"{row.L} layers of {row.C}, random weights, for speed", note
    )


BUILTIN: dict[str, _Builtin] = {
    "conformance": _Builtin(_conformance, "small designed RWKV-7 in which every mechanism matters", "made by code"),
    **{f"synthetic:{size}": _synthetic(size) for size in synthetic.SIZES},
}


def _seed(model: str, query: str) -> int:
    """The one option that models made by code have."""
    seed = "0"
    for part in query.split("&") if query else ():
        key, _, seed = part.partition("=")
        if key != "seed" or not re.fullmatch(r"-?[0-9]{1,18}", seed):
            raise InputError(f"{model!r} has the option {part!r}; the only one is seed=N with an integer N.")
    return int(seed)


def _existing(model: str) -> Path | None:
    """The path, if there is something at it."""
    try:
        path = Path(model).expanduser()
        return path if model and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # too long, a NUL, "~" of an unknown user
        return None


def _hub_id(model: str) -> hub.HubId:
    """The hub id that a string which names no path and no builtin must be, or words about it."""
    name, path = model.partition("?")[0], Path(model)
    if "?" in model and (_existing(name) or hub.parse(name)):
        raise InputError(f"{model!r} has options behind '?', which only models made by code take.")
    ident = hub.parse(model)
    local = model.startswith(("/", ".", "~")) or (path.suffix.lower() in readers.READERS and model.count("/") < 2)
    if ident and not local:
        return ident
    if local:
        raise InputError(f"there is no file or folder {model!r}.{_near(path.name, _siblings(path))}")
    raise InputError(
        f"unknown model {model!r}.{_near(name, BUILTIN)} Known: {', '.join(BUILTIN)}, a path, or a hub id owner/repo."
    )


def _siblings(path: Path) -> list[str]:
    parent = _existing(str(path.parent))
    return [entry.name for entry in parent.iterdir()] if parent and parent.is_dir() else []


def _near(name: str, known_names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(known_names), n=3, cutoff=0.5)
    return f" Did you mean {' or '.join(near)}?" if near else ""


_CONFIG = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "head_dim": "head_size", "vocab_size": "vocab_size"}
"""Keys of config.json and the facts they state."""


def _contradictions(facts: ModelFacts, config: Mapping[str, Any]) -> list[str]:
    """Where config.json disagrees with the tensors, which win; exports with wrong configs circulate."""
    told = [
        f"config.json says {key} {config[key]}, the tensors say {getattr(facts, fact)}"
        for key, fact in _CONFIG.items()
        if isinstance(config.get(key), int) and config[key] != getattr(facts, fact)
    ]
    if isinstance(config.get("norm_eps"), float) and config["norm_eps"] != 1e-5:
        told.append(f"config.json says norm_eps {config['norm_eps']}, RWKV is computed with 1e-05")
    return told
