"""Official sizes, and the list of models that are made by code; loads no torch.

Sources of the sizes: the release table of the RWKV-7 training code and public configs; ranks of the pairs are in the
order w, a, v, g, those of RWKV-6 in the order mix, decay. The tiny ones are nobody's release.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Size:
    """One size: layers, width, ranks of the low-rank pairs, version, vocabulary, head size."""

    L: int
    C: int
    ranks: tuple[int, ...] = ()
    note: str = ""
    version: str = "7"
    V: int = 65536
    N: int = 64


def _tiny(version: str, *ranks: int) -> Size:
    """Three layers of four heads for a bytes vocabulary: a second to run, and every mechanism is there."""
    return Size(3, 128, ranks, "tiny", version, V=256, N=32)


SIZES = {
    "rwkv7-0.1b": Size(12, 768, (64, 64, 32, 128)),
    "rwkv7-0.4b": Size(24, 1024, (64, 64, 32, 128)),
    "rwkv7-1.5b": Size(24, 2048, (96, 96, 64, 256)),
    "rwkv7-2.9b": Size(32, 2560, (96, 96, 64, 320)),
    "rwkv7-7.2b": Size(32, 4096, (128, 128, 96, 480)),
    "rwkv7-13.3b": Size(61, 4096, (128, 128, 96, 480), "ranks as in 7.2b, since those of 13.3b are unpublished"),
    **{f"rwkv7{kind}-0.1b": Size(12, 768, (64, 64, 32, 128), "ranks as in rwkv7-0.1b", f"7{kind}") for kind in "ab"},
    "rwkv6-1.6b": Size(24, 2048, (32, 64), version="6"),
    "rwkv6-3b": Size(32, 2560, (32, 64), version="6"),
    "rwkv6-7b": Size(32, 4096, (64, 128), version="6"),
    "rwkv6-14b": Size(61, 4096, (64, 128), "layers and ranks from public loaders, unconfirmed", "6"),
    "rwkv5.2-0.4b": Size(24, 1024, version="5.2"),
    "rwkv5.2-1.5b": Size(24, 2048, version="5.2"),
    "rwkv5.2-3b": Size(32, 2560, version="5.2"),
    "rwkv5.2-7b": Size(32, 4096, version="5.2"),
    **{f"rwkv{version}-tiny": _tiny(version) for version in ("4", "5.0", "5.1", "5.2")},
    "rwkv6-tiny": _tiny("6", 12, 20),
    **{f"rwkv{version}-tiny": _tiny(version, 16, 12, 8, 24) for version in ("7", "7a", "7b")},
}
"""Shapes of the released models; C = 64 H, World vocabulary; F = 4 C, in RWKV-5 and 6 3.5 C in multiples of 32."""

MADE = {
    "demo": "small RWKV-7 over bytes, trained on Python sources, part of this package",
    "conformance": "small designed RWKV-7 in which every mechanism matters",
    **{f"conformance-v{version}": f"the same for RWKV-{version}" for version in ("5.2", "6", "7a", "7b")},
    **{f"synthetic:{name}": f"{size.L} layers of {size.C}, random weights, for speed" for name, size in SIZES.items()},
}
"""Models that are made by code or come with it: name -> one line about it."""
