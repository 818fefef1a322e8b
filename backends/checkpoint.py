"""One `--model` string for everything that can be opened: a file, a folder, a hub id, or a model made by code.

    PATH                               .pth, .safetensors, rwkv.cpp's .bin, a folder as the hub has it
    owner/repo[/file][@revision]       on a hub, through huggingface_hub
    rwkv7-g1d-0.1b, eagle7b, ...       a release by name, from the hub (see `catalogue`)
    demo                               a small trained RWKV-7 over bytes, part of this package
    conformance[-vX][?seed=N]          the designed checkpoint of RWKV-7, or of version X (5.2, 6, 7a, 7b)
    synthetic:rwkv7-SIZE[?seed=N&zeros=S]
                                       official shapes, random weights; S: share of zeros behind the squared ReLU

Opening reads names and shapes, not values. A tensor read from a memory-mapped .pth may share its
memory with the mapping: treat what `Weights.get` returns as read-only.
"""

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from backends import catalogue, detect, hub, names, readers, synthetic, tokenizer
from backends.base import ModelFacts
from backends.errors import InputError
from backends.readers import Source
from backends.sizes import SIZES
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
        made = assemble(model, BUILTIN[name].make(**_options(model, query)), BUILTIN[name].note)
        return _speechless(made) if name.startswith("synthetic:") else made
    path = _existing(model)
    return assemble(model, readers.read(path or fetch(model)))


def fetch(model: str) -> Path:
    """The files of a release or a hub id, downloaded where they are not cached.

    Raises:
        InputError: no such thing, or out of reach.
    """
    return hub.fetch(hub.resolve(model) if catalogue.is_name(model) else _hub_id(model))


@dataclass(frozen=True)
class Pulled:
    """What a download came to.

    Attributes:
        ident: the hub id, with the file.
        path: the file or folder.
        size: bytes of all its files.
        checked: whether every file's hash is the hub's.
    """

    ident: str
    path: Path
    size: int
    checked: bool


def pull(name: str, told: Callable[[str], None] = lambda _: None) -> Pulled:
    """Download a release or a hub id and check it, cached or not.

    Args:
        name: of the catalogue, by its rule, or a hub id.
        told: progress.

    Raises:
        InputError: no such thing, out of reach, or not what the hub says it is.
    """
    told(f"looking for {name}")
    ident = hub.resolve(name) if catalogue.is_name(name) else _hub_id(name)
    path = hub.fetch(ident)
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    checked = True
    for file in files:
        told(f"checking {file.name}")
        checked &= hub.verify(file)
    return Pulled(str(ident), path, sum(file.stat().st_size for file in files), checked)


def assemble(name: str, source: Source, note: str = "") -> Weights:
    """Names made official, version and sizes detected, every shape checked and made canonical."""
    try:
        tied = source.config.get("tie_word_embeddings") is True
        head_dim = source.config.get("head_dim")
        tensors = names.official(
            name, source.tensors, tied=tied, head_dim=head_dim if isinstance(head_dim, int) and head_dim > 0 else 0
        )
        facts = detect.detect(name, tensors)
    except InputError:
        source.close()
        raise
    remarks = [note, source.remark, *_contradictions(facts, source.config)]
    facts = replace(facts, evidence="; ".join([facts.evidence, *filter(None, remarks)]))
    return Weights(facts, detect.canonical(facts, tensors), source.path, source.close, source.forget)


def _speechless(made: Weights) -> Weights:
    """Random weights need no words: where no vocabulary is installed, they open without a tokenizer."""
    try:
        if made.facts.tokenizer == "world":
            tokenizer.find_vocabulary()
    except InputError:
        made.facts = replace(made.facts, tokenizer="")
    return made


def not_finite(weights: Weights) -> list[str]:
    """Names of the tensors that hold NaN or infinity; legal, but worth a note. Reads everything once."""
    return [name for name in weights if not bool(torch.isfinite(weights.get(name)).all())]


class _Builtin:
    """A row of `BUILTIN`: how to make the tensors, a remark for the evidence; the list's line is in `sizes.MADE`."""

    def __init__(self, make: Callable[..., Source], note: str) -> None:
        self.make, self.note = make, note


def _conformance(seed: int = 0) -> Source:
    from backends.reference import conformance

    return readers.in_memory(conformance.tensors(seed))


def _conformance_of(version: str) -> _Builtin:
    def make(seed: int = 0) -> Source:
        from backends.reference import conformance_deep, conformance_finch

        of = conformance_deep if version.startswith("7") else conformance_finch
        return readers.in_memory(of.tensors(version, seed))

    return _Builtin(make, "made by code")


def _synthetic(size: str) -> _Builtin:
    row = SIZES[size]
    note = "generated: official shapes, random weights" + (f" ({row.note})" if row.note else "")
    return _Builtin(partial(synthetic.source, size), note)


def _demo(seed: int = 0) -> Source:
    from backends.demo import export

    if seed:
        raise InputError("demo is one trained file and has no seed; `python -m backends.demo` trains another.")
    return readers.read(export.checked())


BUILTIN: dict[str, _Builtin] = {
    "demo": _Builtin(_demo, "trained on the Python standard library by backends/demo"),
    "conformance": _Builtin(_conformance, "made by code"),
    **{f"conformance-v{version}": _conformance_of(version) for version in ("5.2", "6", "7a", "7b")},
    **{f"synthetic:{size}": _synthetic(size) for size in SIZES},
}


_OPTIONS: dict[str, tuple[str, Callable[[str], Any], str]] = {
    "seed": (r"-?[0-9]{1,18}", int, "seed=N with an integer N"),
    "zeros": (
        r"0?\.(?!0+$)[0-9]{1,6}",
        float,
        "zeros=S with the share S, between 0 and 1 with up to six digits, of zeros behind the squared ReLU",
    ),
}
"""What stands behind a "?" -> how its value is written, read, and described."""


def _options(model: str, query: str) -> dict[str, Any]:
    """The options of a model that is made by code."""
    able = list(_OPTIONS) if model.startswith("synthetic:") else ["seed"]
    found = {}
    for part in query.split("&") if query else ():
        key, _, value = part.partition("=")
        if key not in able or not re.fullmatch(_OPTIONS[key][0], value):
            known = "the only one is" if len(able) == 1 else "there are"
            described = " and ".join(_OPTIONS[name][2] for name in able)
            raise InputError(f"{model!r} has the option {part!r}; {known} {described}.")
        found[key] = _OPTIONS[key][1](value)
    return found


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
    near = _near(name, [*BUILTIN, *catalogue.ENTRIES])
    raise InputError(
        f"unknown model {model!r}.{near} Known: {', '.join(BUILTIN)}, the releases that `models` lists, a path, or a "
        "hub id owner/repo."
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
