"""Which tensors every RWKV version has, and their shapes as official files store them.

A shape is written in letters: V vocabulary, C width, F inner width of the channel mix, H heads, N head
size, R* ranks of the low-rank pairs, numbers as they are. A leading "1 1" is how official files store
vectors; it is dropped in canonical shapes. A name that ends in "?" may be absent.

The version is decided by `backends.detect`; this file only says what a version consists of. Source:
the state dicts that the official training code writes.
"""

from collections.abc import Iterator, Mapping

Shape = tuple[int, ...]


def _norm(name: str, letter: str = "C") -> dict[str, str]:
    return {f"{name}.weight": letter, f"{name}.bias": letter}


def _vectors(names: str) -> dict[str, str]:
    return dict.fromkeys(names.split(), "1 1 C")


def _square(names: str) -> dict[str, str]:
    return {f"att.{name}.weight": "C C" for name in names.split()}


_NORMS = _norm("ln1") | _norm("ln2")

_FFN_4 = {"ffn.key.weight": "F C", "ffn.receptance.weight": "C C", "ffn.value.weight": "C F"}
_MIX_4 = _vectors("ffn.time_mix_k ffn.time_mix_r") | _FFN_4

V4 = (
    _NORMS
    | {"att.time_decay": "C", "att.time_first": "C"}
    | _vectors("att.time_mix_k att.time_mix_v att.time_mix_r")
    | _square("key value receptance output")
    | _MIX_4
)

_V5 = (
    _NORMS
    | _vectors("att.time_mix_k att.time_mix_v att.time_mix_r")
    | _square("receptance key value output")
    | _norm("att.ln_x")
    | _MIX_4
)
_GATE = _vectors("att.time_mix_g") | _square("gate")
_HEADS = {"att.time_decay": "H", "att.time_first?": "H", "att.time_faaaa?": "H"}

V50 = _V5 | _HEADS
V51 = _V5 | _GATE | _HEADS
V52 = _V5 | _GATE | {"att.time_decay": "H N", "att.time_first?": "H N", "att.time_faaaa?": "H N"}

V6 = (
    _NORMS
    | _vectors("att.time_maa_x att.time_maa_w att.time_maa_k att.time_maa_v att.time_maa_r att.time_maa_g")
    | {"att.time_maa_w1": "C 5Rm", "att.time_maa_w2": "5 Rm C"}
    | {"att.time_decay": "1 1 C", "att.time_decay_w1": "C Rd", "att.time_decay_w2": "Rd C"}
    | {"att.time_faaaa": "H N", "att.time_state?": "H N N"}
    | _square("receptance key value output gate")
    | _norm("att.ln_x")
    | _vectors("ffn.time_maa_k ffn.time_maa_r")
    | _FFN_4
)

V7 = (
    _NORMS
    | _vectors("att.x_r att.x_w att.x_k att.x_v att.x_a att.x_g")
    | {"att.w1": "C Rw", "att.w2": "Rw C", "att.w0": "1 1 C"}
    | {"att.a1": "C Ra", "att.a2": "Ra C", "att.a0": "1 1 C"}
    | {"att.v1": "C Rv", "att.v2": "Rv C", "att.v0": "1 1 C"}
    | {"att.g1": "C Rg", "att.g2": "Rg C"}
    | {"att.k_k": "1 1 C", "att.k_a": "1 1 C", "att.r_k": "H N"}
    | _square("receptance key value output")
    | _norm("att.ln_x")
    | {"ffn.x_k": "1 1 C", "ffn.key.weight": "F C", "ffn.value.weight": "C F"}
)

# DeepEmbed: the 32 x 32 matrix per token is a constant of the architecture.
V7A = V7 | {
    "ffn.s_emb.weight": "V 1024",
    "ffn.s_emb_x.weight": "1024 C",
    "ffn.s1": "C 32",
    "ffn.s2": "32 F",
    "ffn.s0": "1 1 F",
}

# DEA: one head of width 256 and caches of width 32, likewise constants.
V7B = (
    V7A
    | {"qkv.qq.weight": "256 C", "qkv.k1": "C 32", "qkv.k2": "32 256", "qkv.v1": "C 32", "qkv.v2": "32 C"}
    | {"qkv.k_emb.weight": "V 256", "qkv.k_emb_x.weight": "256 C"}
    | {"qkv.v_emb.weight": "V C", "qkv.v_emb_x.weight": "C C"}
    | {"qkv.x_q": "1 1 256", "qkv.x_k": "1 1 256", "qkv.x_v": "1 1 C"}
    | _norm("qkv.lnq", "256")
    | _norm("qkv.lnk", "256")
    | _norm("qkv.lnv")
)

BLOCKS = {"4": V4, "5.0": V50, "5.1": V51, "5.2": V52, "6": V6, "7": V7, "7a": V7A, "7b": V7B}
"""Version -> the tensors of one block, named without "blocks.i."."""

_UNUSED_IN_LAYER_0 = ("att.v0", "att.v1", "att.v2")
"""RWKV-7 has no value residual in layer 0: many files carry these three there, none reads them."""


def shapes(version: str, n_layer: int) -> Iterator[tuple[str, str, bool]]:
    """Every tensor of a checkpoint in the order official files have.

    Args:
        version: a key of `BLOCKS`.
        n_layer: layers.

    Yields:
        official name, shape in letters, whether it must be there. The shape letters of layer 0's
        `att.v1` and `att.v2` are Rv0, because no rank may be read from them.
    """
    yield "emb.weight", "V C", True
    for layer in range(n_layer):
        for name, letters in BLOCKS[version].items():
            if layer == 0 and name in _UNUSED_IN_LAYER_0:
                yield f"blocks.0.{name}", letters.replace("Rv", "Rv0"), False
            else:
                yield f"blocks.{layer}.{name.rstrip('?')}", letters, not name.endswith("?")
            if layer == 0 and name == "ln2.bias":
                yield from ((f"blocks.0.{ln0}", "C", True) for ln0 in _norm("ln0"))
    yield from (("ln_out.weight", "C", True), ("ln_out.bias", "C", True), ("head.weight", "V C", True))


def resolve(letters: str, sizes: Mapping[str, int]) -> Shape:
    """A shape in letters as numbers; a letter without a size raises KeyError."""
    return tuple(int(part) if part.isdigit() else sizes[part] for part in letters.split())


def canonical(letters: str, sizes: Mapping[str, int]) -> Shape:
    """The shape that `Weights` shows: like the file's, vectors without their two leading ones."""
    return resolve(letters.removeprefix("1 1 "), sizes)
