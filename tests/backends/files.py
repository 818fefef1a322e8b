"""Checkpoints of every version as name -> shape, written out by hand, and helpers around them."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from backends.checkpoint import open_checkpoint
from backends.errors import InputError
from backends.weights import Tensor
from tests.backends.random_model import random_rwkv7

SHARED = Path(__file__).parents[2].parent / "shared" / "models"
"""Where a tiny trained model lies beside the repository, on machines that have one."""

V, C, F, H, N, L = 300, 64, 256, 2, 32, 3

MODEL = random_rwkv7(C=C, N=N, L=2, V=V)
"""A whole model, RWKV-7; never changed."""

Shapes = dict[str, tuple[int, ...]]


def told(model: str | Path) -> str:
    """The one line about a model that does not open; warnings are errors here, so none accompanies it."""
    with pytest.raises(InputError) as caught:
        open_checkpoint(str(model))
    assert caught.value.exit_code == 3
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 600
    return str(caught.value)


def unread(shapes: Mapping[str, tuple[int, ...]], dtype: str = "f32") -> dict[str, Tensor]:
    """Tensors of zeros that are made when read."""
    return {name: _zeros(shape, dtype) for name, shape in shapes.items()}


def _zeros(shape: tuple[int, ...], dtype: str) -> Tensor:
    return Tensor(shape, dtype, lambda device: torch.zeros(shape, device=device))


def _model(block: Shapes) -> Shapes:
    model: Shapes = {"emb.weight": (V, C), "blocks.0.ln0.weight": (C,), "blocks.0.ln0.bias": (C,)}
    for layer in range(L):
        norms = {f"{norm}.{part}": (C,) for norm in ("ln1", "ln2") for part in ("weight", "bias")}
        model |= {f"blocks.{layer}.{name}": shape for name, shape in {**norms, **block}.items()}
    return model | {"ln_out.weight": (C,), "ln_out.bias": (C,), "head.weight": (V, C)}


def _vectors(names: str) -> Shapes:
    return dict.fromkeys(names.split(), (1, 1, C))


def _squares(names: str) -> Shapes:
    return {f"att.{name}.weight": (C, C) for name in names.split()}


_MIX_4: Shapes = {
    **_vectors("ffn.time_mix_k ffn.time_mix_r att.time_mix_k att.time_mix_v att.time_mix_r"),
    "ffn.key.weight": (F, C),
    "ffn.receptance.weight": (C, C),
    "ffn.value.weight": (C, F),
    **_squares("receptance key value output"),
}
_LN_X: Shapes = {"att.ln_x.weight": (C,), "att.ln_x.bias": (C,)}
_GATE: Shapes = {"att.gate.weight": (C, C), "att.time_mix_g": (1, 1, C)}


def v4() -> Shapes:
    return _model({**_MIX_4, "att.time_decay": (C,), "att.time_first": (C,)})


def v50() -> Shapes:
    return _model({**_MIX_4, **_LN_X, "att.time_decay": (H,), "att.time_first": (H,)})


def v51() -> Shapes:
    return _model({**_MIX_4, **_LN_X, **_GATE, "att.time_decay": (H, 1), "att.time_faaaa": (H,)})


def v52() -> Shapes:
    return _model({**_MIX_4, **_LN_X, **_GATE, "att.time_decay": (H, N), "att.time_faaaa": (H, N, 1)})


def v6() -> Shapes:
    return _model(
        {
            **_vectors("att.time_maa_x att.time_maa_w att.time_maa_k att.time_maa_v att.time_maa_r att.time_maa_g"),
            **_vectors("att.time_decay ffn.time_maa_k ffn.time_maa_r"),
            **_squares("receptance key value output gate"),
            **_LN_X,
            "att.time_maa_w1": (C, 5 * 12),
            "att.time_maa_w2": (5, 12, C),
            "att.time_decay_w1": (C, 20),
            "att.time_decay_w2": (20, C),
            "att.time_faaaa": (H, N),
            "ffn.key.weight": (F, C),
            "ffn.receptance.weight": (C, C),
            "ffn.value.weight": (C, F),
        }
    )


_V7: Shapes = {
    **_vectors("att.x_r att.x_w att.x_k att.x_v att.x_a att.x_g att.w0 att.a0 att.v0 att.k_k att.k_a ffn.x_k"),
    **_squares("receptance key value output"),
    **_LN_X,
    "att.w1": (C, 24),
    "att.w2": (24, C),
    "att.a1": (C, 20),
    "att.a2": (20, C),
    "att.v1": (C, 16),
    "att.v2": (16, C),
    "att.g1": (C, 48),
    "att.g2": (48, C),
    "att.r_k": (H, N),
    "ffn.key.weight": (F, C),
    "ffn.value.weight": (C, F),
}

_V7A: Shapes = {
    **_V7,
    "ffn.s_emb.weight": (V, 1024),
    "ffn.s_emb_x.weight": (1024, C),
    "ffn.s1": (C, 32),
    "ffn.s2": (32, F),
    "ffn.s0": (1, 1, F),
}

_V7B: Shapes = {
    **_V7A,
    "qkv.qq.weight": (256, C),
    "qkv.k1": (C, 32),
    "qkv.k2": (32, 256),
    "qkv.v1": (C, 32),
    "qkv.v2": (32, C),
    "qkv.k_emb.weight": (V, 256),
    "qkv.k_emb_x.weight": (256, C),
    "qkv.v_emb.weight": (V, C),
    "qkv.v_emb_x.weight": (C, C),
    "qkv.x_q": (1, 1, 256),
    "qkv.x_k": (1, 1, 256),
    "qkv.x_v": (1, 1, C),
    **{f"qkv.{norm}.{part}": (256,) for norm in ("lnq", "lnk") for part in ("weight", "bias")},
    **{f"qkv.lnv.{part}": (C,) for part in ("weight", "bias")},
}


def v7() -> Shapes:
    return _model(_V7)


def v7a() -> Shapes:
    return _model(_V7A)


def v7b() -> Shapes:
    return _model(_V7B)


ALL = {"4": v4, "5.0": v50, "5.1": v51, "5.2": v52, "6": v6, "7": v7, "7a": v7a, "7b": v7b}
"""Version -> the shapes of a small checkpoint of it."""
