"""Random checkpoints of every version in the official sizes, for speed: nothing is downloaded and nothing is stored.

A tensor is drawn when it is read, on the device it is read to, from (seed, name) alone. The draws come
from an integer hash of the element's index, so every device makes bit-identical values in any order.
The values are what RWKV needs to have activations of order 1 at any depth: dense asymmetric
projections, low-rank pairs with outputs of order 1, and mixes that all differ.

With random weights half of what comes out of the channel mix's squared ReLU is zero; training makes it more. Where
kernels skip zeros that matters to speed, so that the share can be chosen: the norm in front of the channel mix gets a
bias, which the key matrix turns into a shift of all inputs of the ReLU.
"""

import hashlib
import math
import re
from statistics import NormalDist

import torch

from backends import layouts
from backends.errors import InputError
from backends.readers import Source
from backends.sizes import SIZES, Size
from backends.weights import Tensor


def source(size: str, seed: int = 0, zeros: float = 0.5) -> Source:
    """An RWKV of an official size with random weights, stored as bf16.

    Args:
        size: a key of `SIZES`.
        seed: any integer of 64 bits or fewer.
        zeros: share of the channel mix's inner activations that are zero, about.

    Raises:
        InputError: an unknown size.
    """
    if size not in SIZES:
        raise InputError(f"there is no synthetic model {size!r}; there are {', '.join(SIZES)}.")
    return of_sizes(SIZES[size], seed, zeros=zeros)


def of_sizes(size: Size, seed: int = 0, vocab: int = 0, head_size: int = 0, zeros: float = 0.5) -> Source:
    """The same for any size, and another vocabulary or head size than its own."""
    N = head_size or size.N
    letters = {"V": vocab or size.V, "C": size.C, "F": _inner(size), "H": size.C // N, "N": N}
    letters |= dict(zip(_RANKS.get(size.version[0], ()), size.ranks, strict=True))
    letters |= {"Rv0": letters.get("Rv", 0), "5Rm": 5 * letters.get("Rm", 0)}
    shapes = {
        name: layouts.resolve(text, letters)
        for name, text, _ in layouts.shapes(size.version, size.L)
        if not name.endswith(_LEFT_OUT.get(size.version, "-"))
    }
    return Source({name: _unread(seed, name, shape, zeros) for name, shape in shapes.items()})


_RANKS = {"6": ("Rm", "Rd"), "7": ("Rw", "Ra", "Rv", "Rg")}

_LEFT_OUT = {"5.0": ".time_faaaa", "5.1": ".time_faaaa", "5.2": ".time_first", "6": ".time_state"}
"""What files of a version may have and these have not."""


def _inner(size: Size) -> int:
    """F, the inner width of the channel mix."""
    return int(3.5 * size.C) // 32 * 32 if size.version[0] in "56" else 4 * size.C


def _unread(seed: int, name: str, shape: tuple[int, ...], zeros: float) -> Tensor:
    return Tensor(shape, "bf16", lambda device: draw(seed, name, shape, device, _shift(name, shape, zeros)))


def _shift(name: str, shape: tuple[int, ...], zeros: float) -> float:
    """What moves the centre of a tensor's draw so that a squared ReLU leaves that share of zeros.

    What meets the key matrix is two thirds of a normed token's variance (the token shift averages) and the bias; its
    rows have the length 1.
    """
    if zeros == 0.5:
        return 0.0
    if name.endswith(".ln2.bias"):
        return _BIAS
    if name.endswith(".ffn.key.weight"):
        return -NormalDist(0.0, math.sqrt(2 / 3 + _BIAS**2)).inv_cdf(zeros) / (_BIAS * shape[-1])
    return 0.0


_BIAS = 0.5


# Name of a tensor -> centre and half width of its uniform draw, where these are no matter of fan-in.
# w0, a0, v0 reach the bend of the sigmoid on both sides; k_k, k_a, r_k and the norms vary enough for
# every element to matter.
_SPREADS = (
    (r".*ln\w*\.weight", 1.0, 0.17),
    (r".*ln\w*\.bias", 0.0, 0.17),
    (r".*\.(x|time_mix|time_maa)_[rwkvagqx]", 0.5, 0.5),
    (r".*\.[wav]0", 0.0, 2.6),
    (r".*\.k_k", 0.8, 0.35),
    (r".*\.k_a", 1.0, 0.17),
    (r".*\.r_k", 0.0, 0.17),
    (r"emb\.weight", 0.0, 0.87),
    (r".*\.time_decay", -1.5, 2.6),
    (r".*\.time_(first|faaaa)", 0.0, 0.87),
    (r".*\.s0", 1.0, 0.5),
    (r".*\.s_emb\.weight", 0.0, math.sqrt(3 / 32)),
    (r".*\.[kv]_emb\.weight", 0.0, math.sqrt(3)),
)


def _spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Centre and half width; a matrix keeps the variance of its input (fan-in)."""
    for pattern, centre, width in _SPREADS:
        if re.fullmatch(pattern, name):
            return centre, width
    if name.endswith(".s_emb_x.weight"):  # half of what the token itself brings into a 32 x 32 matrix
        return 0.0, math.sqrt(3 / 32 / shape[-1]) / 2
    if name.endswith(".time_maa_w2"):  # moves the shares, does not drown them
        return 0.0, math.sqrt(3 / shape[1]) / 3
    pair = re.fullmatch(r".*[._][wavgks][12]", name)  # stored (in, out), unlike projections
    return 0.0, math.sqrt(3 / shape[-2 if pair else -1])


_BLOCK = {"cpu": 1 << 16, "cuda": 1 << 24}
"""Elements hashed at a time: what stays in a core's cache, what fills a GPU."""


def draw(seed: int, name: str, shape: tuple[int, ...], device: str = "cpu", shift: float = 0.0) -> torch.Tensor:
    """The tensor of that name: uniform around its centre and `shift`, rounded to bf16, the same on every device."""
    digest = hashlib.blake2s(f"{seed}/{name}".encode()).digest()
    stride, start = _signed(digest[:4]) | 1, _signed(digest[4:8])
    centre, width = _spread(name, shape)
    flat = torch.empty(math.prod(shape), dtype=torch.bfloat16, device=device)
    block = _BLOCK.get(flat.device.type, 1 << 20)
    for begin in range(0, flat.numel(), block):
        part = flat[begin : begin + block]
        index = torch.arange(begin, begin + part.numel(), dtype=torch.int32, device=device)
        unit = _mix(index.mul_(stride).add_(start)).to(torch.float32).mul_(2.0**-31)
        part.copy_(unit.mul_(width).add_(centre + shift))
    return flat.reshape(shape)


def _signed(data: bytes) -> int:
    return int.from_bytes(data, "little", signed=True)


def _mix(x: torch.Tensor) -> torch.Tensor:
    """A bijection of 32-bit integers without visible structure; x is overwritten.

    Multipliers and shifts are those of the public-domain "lowbias32" of the hash-prospector project.
    Integer products wrap; shifts are arithmetic, so the sign that they draw in is masked away.
    """
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - (1 << 32))):
        x.bitwise_xor_((x >> shift).bitwise_and_((1 << (32 - shift)) - 1)).mul_(factor)
    return x.bitwise_xor_((x >> 16).bitwise_and_(0xFFFF))
