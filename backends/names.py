"""Tensor names of other ecosystems and their official counterparts, as tables.

One table per family and version: official name -> (name there, transposed there). An unknown name is
an error that lists it, so that nothing is dropped in silence. Source of the RWKV-7 table: the layout
that flash-linear-attention and the HF exports of RWKV-7 share.
"""

import re
from collections.abc import Iterator, Mapping

import torch

from backends.detect import listed
from backends.errors import InputError
from backends.weights import Tensor

Table = Mapping[str, tuple[str, bool]]

_MIXES = "rwkvag"
"""Order in which older HF exports stack the six mixes of the time mix in `attn.x_x`."""

HF7_MODEL: Table = {
    "emb.weight": ("model.embeddings.weight", False),
    "ln_out.weight": ("model.norm.weight", False),
    "ln_out.bias": ("model.norm.bias", False),
    "head.weight": ("lm_head.weight", False),
}
"""RWKV-7, outside the blocks."""

HF7_BLOCK: Table = {
    **{f"ln0.{part}": (f"pre_norm.{part}", False) for part in ("weight", "bias")},
    **{f"ln1.{part}": (f"attn_norm.{part}", False) for part in ("weight", "bias")},
    **{f"ln2.{part}": (f"ffn_norm.{part}", False) for part in ("weight", "bias")},
    **{f"att.x_{mix}": (f"attn.x_{mix}", False) for mix in _MIXES},
    # A low-rank pair is a Linear there, applied as W x; here it is applied as x W.
    **{f"att.{pair}1": (f"attn.{pair}_lora.lora.0.weight", True) for pair in "wavg"},
    **{f"att.{pair}2": (f"attn.{pair}_lora.lora.2.weight", True) for pair in "wavg"},
    **{f"att.{pair}0": (f"attn.{pair}_lora.lora.2.bias", False) for pair in "wav"},
    **{f"att.{name}": (f"attn.{name}", False) for name in ("k_k", "k_a", "r_k")},
    **{
        f"att.{name}.weight": (f"attn.{name[0]}_proj.weight", False)
        for name in ("receptance", "key", "value", "output")
    },
    **{f"att.ln_x.{part}": (f"attn.g_norm.{part}", False) for part in ("weight", "bias")},
    "ffn.x_k": ("ffn.x_k", False),
    "ffn.key.weight": ("ffn.key.weight", False),
    "ffn.value.weight": ("ffn.value.weight", False),
}
"""RWKV-7, `blocks.i.` here and `model.layers.i.` there."""

HF7_DROPPED = frozenset(f"blocks.0.att.v{part}" for part in "012")
"""Official tensors that HF files never have: layer 0 has no value residual."""

_HF7_STACKED = "attn.x_x"


def official(name: str, tensors: Mapping[str, Tensor], *, tied: bool = False, head_dim: int = 0) -> dict[str, Tensor]:
    """The same tensors under official names and in official orientation; still unread.

    Args:
        name: what the user asked for.
        tensors: names as the file has them.
        tied: the file's config says that the head is the embedding.
        head_dim: size of a head by the file's config, for bonuses that are stored flat; 0 where it says nothing.

    Raises:
        InputError: HF-like names of which some are in no table.
    """
    if any(key.startswith("rwkv.") for key in tensors):
        raise InputError(
            f"{name} uses the HF names of RWKV-4 to 6 (rwkv.blocks...), which are not read: pass the .pth."
        )
    if not any(key.startswith("model.") for key in tensors):
        return dict(tensors)
    found: dict[str, Tensor] = {}
    strange: list[str] = []
    for key, tensor in tensors.items():
        named = list(_from_hf7(name, key, _by_head(key, tensor, head_dim)))
        found.update(named)
        strange += [] if named else [key]
    if strange:
        raise InputError(f"{name} has HF-like names that RWKV-7 does not know: {listed(strange)}.")
    if tied and "head.weight" not in found and "emb.weight" in found:
        found["head.weight"] = found["emb.weight"]
    return found


def hf(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RWKV-7 tensors under HF names and orientation; inverse of `official`.

    Args:
        tensors: official name -> tensor in the shape that official files have.

    Raises:
        InputError: a name that is in no table.
    """
    renamed: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        if key in HF7_DROPPED:
            continue
        layer, rest = _block(key, "blocks")
        row = HF7_BLOCK.get(rest) if layer else HF7_MODEL.get(rest)
        if row is None:
            raise InputError(f"no HF name is known for the tensor {key}.")
        there, turned = row
        renamed[f"model.layers.{layer}.{there}" if layer else there] = _hf_shape(
            there, transposed(tensor) if turned else tensor
        )
    return renamed


def prepared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """RWKV-7 tensors as candle_rwkv7's prepared folder has them: HF names, every vector flat, layer 0's extra kept.

    Its converter squeezes; its reader wants `r_k` as (H, N) all the same, which is what one head gets here.
    """
    unused = {key: tensor for key, tensor in tensors.items() if key in HF7_DROPPED}
    renamed = hf(tensors)
    for key, tensor in unused.items():
        there, turned = HF7_BLOCK[key.removeprefix("blocks.0.")]
        renamed[f"model.layers.0.{there}"] = transposed(tensor) if turned else tensor
    return {key: _flat(tensor) for key, tensor in renamed.items()}


def transposed(tensor: Tensor) -> Tensor:
    """The transpose of an unread matrix."""
    return Tensor(tensor.shape[::-1], tensor.dtype, lambda device: tensor.read(device).t().contiguous())


_HF7_TO_OFFICIAL = {there: (here, turned) for here, (there, turned) in HF7_BLOCK.items()}
_HF7_TO_OFFICIAL_MODEL = {there: here for here, (there, _) in HF7_MODEL.items()}


def _from_hf7(name: str, key: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """One HF tensor as official ones: none where the name is unknown, six where it is a stack."""
    layer, rest = _block(key, "model.layers")
    if not layer:
        if rest in _HF7_TO_OFFICIAL_MODEL:
            yield _HF7_TO_OFFICIAL_MODEL[rest], tensor
    elif rest == _HF7_STACKED:
        if tensor.shape[:1] != (len(_MIXES),):
            raise InputError(f"{name}: {key} stacks the six mixes, but has the shape {tensor.shape}.")
        yield from ((f"blocks.{layer}.att.x_{mix}", _part(tensor, index)) for index, mix in enumerate(_MIXES))
    elif rest in _HF7_TO_OFFICIAL:
        here, turned = _HF7_TO_OFFICIAL[rest]
        if turned and len(tensor.shape) != 2:
            raise InputError(f"{name}: {key} must be a matrix, but has the shape {tensor.shape}.")
        yield f"blocks.{layer}.{here}", transposed(tensor) if turned else tensor


def _block(key: str, prefix: str) -> tuple[str, str]:
    """Layer number ("" outside the blocks) and the rest of the name."""
    match = re.fullmatch(rf"{re.escape(prefix)}\.(\d+)\.(.+)", key)
    return (match[1], match[2]) if match else ("", key)


def _part(tensor: Tensor, index: int) -> Tensor:
    return Tensor(tensor.shape[1:], tensor.dtype, lambda device: tensor.read(device)[index])


def _hf_shape(there: str, tensor: Tensor) -> Tensor:
    """HF files keep (1, 1, C) for the six mixes only."""
    return tensor if there.startswith("attn.x_") else _flat(tensor)


def _by_head(key: str, tensor: Tensor, head_dim: int) -> Tensor:
    """The bonus as (H, N): squeezing converters store that of a single head as (N,)."""
    if not key.endswith(".attn.r_k") or len(tensor.shape) != 1:
        return tensor
    shape = (tensor.shape[0] // head_dim, head_dim) if head_dim else (1, tensor.shape[0])
    return Tensor(shape, tensor.dtype, lambda device: tensor.read(device).reshape(shape))


def _flat(tensor: Tensor) -> Tensor:
    """(1, 1, C) as (C,); anything else as it is."""
    if tensor.shape[:2] != (1, 1):
        return tensor
    flat = tensor.shape[2:]

    def fetch(device: str) -> torch.Tensor:
        return tensor.read(device).reshape(flat)

    return Tensor(flat, tensor.dtype, fetch)
