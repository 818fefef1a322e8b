"""Which RWKV a checkpoint is, from tensor names and shapes alone, and whether it is complete.

The version follows from names; every size is read from a tensor, never computed from another size,
because the formulas changed over the years. Sizes that many tensors state are settled by majority,
so that one wrongly shaped tensor is named alone and not every tensor but that one.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from math import prod

from backends import layouts
from backends.base import ModelFacts
from backends.errors import InputError
from backends.layouts import Shape
from backends.weights import Tensor

WORLD_VOCAB = 65530
"""Ids of the World tokenizer; heads are padded to 65536."""

_LISTED = 4
"""How many tensors one error message names."""


def detect(name: str, tensors: Mapping[str, Tensor]) -> ModelFacts:
    """Version and sizes of a checkpoint whose tensors have official names.

    Args:
        name: what the user asked for.
        tensors: official name -> tensor, shaped as in official files or already canonical.

    Raises:
        InputError: no RWKV, a refused experiment, or tensors that are missing, unexpected or wrongly shaped.
    """
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    version, evidence = _version(name, shapes)
    n_layer = _layers(name, shapes)
    sizes = _sizes(name, version, shapes)
    _check(name, version, n_layer, sizes, shapes)
    return ModelFacts(
        name=name,
        version=version,
        evidence=f"RWKV-{version}: {evidence}",
        vocab_size=sizes["V"],
        n_embd=sizes["C"],
        n_layer=n_layer,
        n_head=sizes.get("H", 0),
        head_size=sizes.get("N", 0),
        n_ffn=sizes["F"],
        parameters=sum(map(prod, shapes.values())),
        ranks={key[1:]: size for key, size in sizes.items() if key.startswith("R") and key != "Rv0"},
        stored=_stored(tensors.values()),
        tokenizer=tokenizer_for(sizes["V"]),
    )


def canonical(facts: ModelFacts, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors in official order and canonical shapes; still unread."""
    shapes = {key: tensor.shape for key, tensor in tensors.items()}
    sizes = _sizes(facts.name, facts.version, shapes)
    return {
        key: reshaped(tensors[key], layouts.canonical(letters, sizes))
        for key, letters, _ in layouts.shapes(facts.version, facts.n_layer)
        if key in tensors
    }


def file_shapes(facts: ModelFacts, tensors: Mapping[str, Tensor]) -> dict[str, Shape]:
    """Official name -> the shape official files have, in official order; inverse of `canonical`."""
    sizes = _sizes(facts.name, facts.version, {key: tensor.shape for key, tensor in tensors.items()})
    names = layouts.shapes(facts.version, facts.n_layer)
    return {key: layouts.resolve(letters, sizes) for key, letters, _ in names if key in tensors}


def reshaped(tensor: Tensor, shape: Shape) -> Tensor:
    """The same unread tensor under another shape of as many elements."""
    if tensor.shape == shape:
        return tensor
    return Tensor(shape, tensor.dtype, lambda device: tensor.read(device).reshape(shape))


def tokenizer_for(vocab_size: int) -> str:
    """Name of the tokenizer that a vocabulary of this size goes with; "" where none of ours does.

    Small models count bytes (with or without a few extra rows). The Pile models (50277 and their padded forms) use a
    BPE tokenizer that is not served.
    """
    if vocab_size >= WORLD_VOCAB:
        return "world"
    return "bytes" if 256 <= vocab_size < 50254 else ""


def _version(name: str, shapes: Mapping[str, Shape]) -> tuple[str, str]:
    """The version and the names that decided; tested in the order in which one implies the other."""
    if any("att.time_mix_w1" in key or "att.time_mix_x" in key for key in shapes):
        raise InputError(f"{name} uses web-rwkv's names for RWKV-6, which are not read: pass the original .pth.")
    if found := _first(shapes, "att.r_k", "att.k_k", "att.w0"):
        return _version_7(name, shapes, found)
    if any(".att.time_maa_" in key for key in shapes):
        return "6", "att.time_maa_*"
    if found := _first(shapes, "att.ln_x."):
        return _version_5(shapes, found)
    if found := _first(shapes, "att.time_mix_"):
        return "4", f"{found} without att.ln_x"
    raise InputError(f"{name} is no RWKV checkpoint: it holds {listed(shapes) or 'no tensors'}.")


def _version_7(name: str, shapes: Mapping[str, Shape], found: str) -> tuple[str, str]:
    if more := _first(shapes, "qkv."):
        return "7b", f"{found} and {more}"
    if more := _first(shapes, "ffn.s"):
        return "7a", f"{found} and {more}"
    if more := _first(shapes, "ffn.enn."):
        raise InputError(f'{name} is an "RWKV-8 rc" experiment ({more}), which is not supported.')
    return "7", f"{found} {_words(shapes[found])}, and neither qkv.* nor ffn.s_emb"


def _version_5(shapes: Mapping[str, Shape], found: str) -> tuple[str, str]:
    if not _first(shapes, "att.gate.", "att.time_mix_g"):
        return "5.0", f"{found} without att.gate"
    decays = [shape for key, shape in shapes.items() if key.endswith(".att.time_decay")]
    decay = Counter(decays).most_common(1)[0][0] if decays else ()
    if len(decay) < 2 or decay[1] == 1:
        return "5.1", f"att.gate and one decay per head, {_words(decay)}"
    return "5.2", f"att.gate and one decay per channel, {_words(decay)}"


def _first(shapes: Iterable[str], *starts: str) -> str:
    """A tensor of block 0 whose name starts so; any will do, so that a missing one can be named later."""
    for start in starts:
        for key in shapes:
            if key.startswith(f"blocks.0.{start}"):
                return key
    return ""


def _layers(name: str, shapes: Iterable[str]) -> int:
    """Number of blocks; they must be numbered without a gap."""
    found = {int(match[1]) for key in shapes if (match := re.match(r"blocks\.(\d+)\.", key))}
    if found != set(range(len(found))):
        missing = next(layer for layer in range(len(found)) if layer not in found)
        raise InputError(f"{name} has tensors of block {max(found)} but none of block {missing}.")
    return len(found)


# Size -> the tensors that state it and the axis to look at, counted from the end so that vectors of
# shape (1, 1, C) and (C,) read alike. Layer 0 never speaks for Rv: it has no value residual.
_Source = tuple[tuple[str, int], ...]


def _pair(name: str, layers: str = r"\d+") -> _Source:
    """Both halves of a low-rank pair, (C, R) and (R, C)."""
    return ((rf"blocks\.{layers}\.att\.{name}1", -1), (rf"blocks\.{layers}\.att\.{name}2", 0))


_COMMON: dict[str, _Source] = {
    "C": ((r"blocks\.\d+\.ln[12]\.weight|ln_out\.weight", -1),),
    "V": ((r"(emb|head)\.weight|.*_emb\.weight", 0),),
    "F": ((r"blocks\.\d+\.ffn\.key\.weight", 0),),
}
_SOURCES: dict[str, dict[str, _Source]] = {
    "4": _COMMON,
    "5": _COMMON | {"H": ((r"blocks\.\d+\.att\.time_decay", 0),)},
    "6": _COMMON
    | {
        "H": ((r"blocks\.\d+\.att\.time_faaaa", 0),),
        "5Rm": ((r"blocks\.\d+\.att\.time_maa_w1", -1),),
        "Rd": ((r"blocks\.\d+\.att\.time_decay_w1", -1),),
    },
    "7": _COMMON
    | {"H": ((r"blocks\.\d+\.att\.r_k", 0),), "Rw": _pair("w"), "Ra": _pair("a"), "Rg": _pair("g")}
    | {"Rv": _pair("v", r"(?!0\.)\d+")},
}


def _sizes(name: str, version: str, shapes: Mapping[str, Shape]) -> dict[str, int]:
    """Every letter of the version's layout as a number."""
    sizes = {}
    for letter, source in _SOURCES[version[0]].items():
        size = _majority(shapes, source)
        if size is not None:
            sizes[letter] = size
        elif letter != "Rv":  # a single layer has no value residual, so no rank of it
            raise InputError(f"{name} has no usable tensor {_readable(source[0][0])}, from which {letter} is read.")
    if "H" in sizes:
        sizes["N"] = sizes["C"] // max(sizes["H"], 1)
    if "5Rm" in sizes:
        sizes["Rm"] = sizes["5Rm"] // 5
    if version[0] == "7":
        unread = shapes.get("blocks.0.att.v1", ()) or shapes.get("blocks.0.att.v2", ())[::-1]
        sizes["Rv0"] = unread[-1] if unread else 0
    return sizes


def _majority(shapes: Mapping[str, Shape], source: _Source) -> int | None:
    """What most matching tensors say; the first among equals."""
    sizes = [
        shape[axis] for pattern, axis in source for key, shape in shapes.items() if shape and re.fullmatch(pattern, key)
    ]
    return Counter(sizes).most_common(1)[0][0] if sizes else None


def _readable(pattern: str) -> str:
    return pattern.partition("|")[0].replace("(?!0\\.)", "").replace("\\d+", "*").replace("\\", "").replace("[12]", "1")


def _check(name: str, version: str, n_layer: int, sizes: Mapping[str, int], shapes: Mapping[str, Shape]) -> None:
    """Every tensor of the layout is there, nothing else is, and all shapes agree with the sizes."""
    layout = {key: (letters, required) for key, letters, required in layouts.shapes(version, n_layer)}
    missing = [key for key, (_, required) in layout.items() if required and key not in shapes]
    if version[0] == "5" and not missing:
        missing = list(_without_bonus(n_layer, shapes))
    if missing:
        raise InputError(f"{name} (RWKV-{version}, {n_layer} layers) lacks {listed(missing)}.")
    unexpected = [key for key in shapes if key not in layout]
    if unexpected:
        raise InputError(
            f"{name} has tensors that RWKV-{version} with {n_layer} layers does not know: {listed(unexpected)}."
        )
    expected = {key: layouts.canonical(letters, sizes) for key, (letters, _) in layout.items() if key in shapes}
    wrong = [
        _mismatch(key, shapes[key], shape) for key, shape in expected.items() if not _fits(key, shapes[key], shape)
    ]
    if wrong:
        raise InputError(f"{name} (RWKV-{version}) has wrongly shaped tensors: {listed(wrong, '; ')}.")


def _without_bonus(n_layer: int, shapes: Mapping[str, Shape]) -> Iterator[str]:
    """RWKV-5 stores its bonus under one of two names, with different meanings."""
    for layer in range(n_layer):
        names = [f"blocks.{layer}.att.{name}" for name in ("time_first", "time_faaaa")]
        if sum(name in shapes for name in names) != 1:
            yield f"one of {' or '.join(names)}"


def _fits(key: str, shape: Shape, expected: Shape) -> bool:
    """Vectors and RWKV-4 to 6's `time_*` may carry axes of size 1; matrices are taken at their word.

    A blanket squeeze would damage models with one head and pairs of rank 1.
    """
    if len(expected) == 1 or ".time_" in key:
        return [size for size in shape if size != 1] == [size for size in expected if size != 1]
    return shape == expected


def _mismatch(key: str, shape: Shape, expected: Shape) -> str:
    turned = " (transposed)" if shape == expected[::-1] else ""
    return f"{key} is {_words(shape)}, expected {_words(expected)}{turned}"


def _words(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "scalar"


def listed(items: Iterable[str], separator: str = ", ") -> str:
    """The first few in one line and how many more; what a file calls its tensors is not trusted."""
    names = list(items)
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    shown = [name if name.isprintable() else ascii(name) for name in names[:_LISTED]]
    return separator.join(shown) + more


def _stored(tensors: Iterable[Tensor]) -> str:
    """Number formats of the file, the one with most elements first: "bf16", "bf16+f32"."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += prod(tensor.shape)
    return "+".join(dtype for dtype, _ in sizes.most_common())
