"""RWKV-7 in numpy float64, one token at a time: an oracle that shares no line with any backend."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[np.float64]


def run(tensors: Mapping[str, torch.Tensor], ids: npt.ArrayLike) -> tuple[Array, Array]:
    """An official state dict and ids (T,) -> logits (T, V) and the WKV states (L, H, N, N) after the last."""
    z = {name: np.squeeze(t.double().numpy()) if t.ndim == 3 else t.double().numpy() for name, t in tensors.items()}
    C = z["emb.weight"].shape[1]
    H, N = z["blocks.0.att.r_k"].shape
    L = 1 + max(int(name.split(".")[1]) for name in z if name.startswith("blocks."))
    state: dict[str, Any] = {"att": np.zeros((L, C)), "S": np.zeros((L, H, N, N)), "ffn": np.zeros((L, C))}
    logits = np.stack([_token(z, int(i), L, state) for i in np.asarray(ids)])
    return logits, state["S"]


def _token(z: Mapping[str, Array], token: int, L: int, state: dict[str, Any]) -> Array:
    x, v_first = _norm(z, "blocks.0.ln0", z["emb.weight"][token]), None
    for i in range(L):
        b = {name.removeprefix(f"blocks.{i}."): t for name, t in z.items() if name.startswith(f"blocks.{i}.")}
        h = _norm(b, "ln1", x)
        out, state["S"][i], v_first = _time_mix(b, h, state["att"][i], state["S"][i], v_first)
        x, state["att"][i] = x + out, h
        h = _norm(b, "ln2", x)
        mixed = h + (state["ffn"][i] - h) * b["ffn.x_k"]
        x = x + b["ffn.value.weight"] @ np.maximum(b["ffn.key.weight"] @ mixed, 0) ** 2
        state["ffn"][i] = h
    return z["head.weight"] @ _norm(z, "ln_out", x)


def _time_mix(b: Mapping[str, Array], h: Array, last: Array, S: Array, v_first: Array | None) -> tuple[Array, ...]:
    mix = {name: h + (last - h) * b[f"att.x_{name}"] for name in "rwkvag"}
    r, k, v = (b[f"att.{n}.weight"] @ mix[n[0]] for n in ("receptance", "key", "value"))
    w = np.exp(-np.exp(-0.5) * _sigmoid(b["att.w0"] + np.tanh(mix["w"] @ b["att.w1"]) @ b["att.w2"]))
    a = _sigmoid(b["att.a0"] + mix["a"] @ b["att.a1"] @ b["att.a2"])
    g = _sigmoid(mix["g"] @ b["att.g1"]) @ b["att.g2"]
    if v_first is None:
        v_first = v
    else:
        v = v + (v_first - v) * _sigmoid(b["att.v0"] + mix["v"] @ b["att.v1"] @ b["att.v2"])
    H, N = b["att.r_k"].shape
    removal = (k * b["att.k_k"]).reshape(H, N)
    removal = removal / np.maximum(np.linalg.norm(removal, axis=1, keepdims=True), 1e-12)
    k = k * (1 + (a - 1) * b["att.k_a"])
    r, w, k, v_heads, a = (x.reshape(H, N) for x in (r, w, k, v, a))
    S, y = wkv_token(S, r, w, k, v_heads, removal, a)
    y = (y - y.mean(axis=1, keepdims=True)) / np.sqrt(y.var(axis=1, keepdims=True) + 64e-5)
    y = y.reshape(-1) * b["att.ln_x.weight"] + b["att.ln_x.bias"]
    y = y + ((r * k * b["att.r_k"]).sum(axis=1, keepdims=True) * v_heads).reshape(-1)
    return b["att.output.weight"] @ (y * g), S, v_first


def wkv_token(S: Array, r: Array, w: Array, k: Array, v: Array, kk: Array, a: Array) -> tuple[Array, Array]:
    """One token for all heads: S (..., N value, N key), the rest (..., N) -> the new S and y."""
    S = S * w[..., None, :] - np.einsum("...vk,...k,...j->...vj", S, kk, kk * a) + np.einsum("...v,...k->...vk", v, k)
    return S, np.einsum("...vk,...k->...v", S, r)


def _norm(z: Mapping[str, Array], name: str, x: Array) -> Array:
    normed: Array = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * z[f"{name}.weight"] + z[f"{name}.bias"]
    return normed


def _sigmoid(x: Array) -> Array:
    return 1 / (1 + np.exp(-x))
