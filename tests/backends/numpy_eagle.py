"""RWKV-4, 5 and 6 in numpy float64, token by token, from the specification's formulas; shares nothing with us."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]
Tensors = Mapping[str, Array]


def run(version: str, tensors: Mapping[str, torch.Tensor], ids: npt.ArrayLike) -> tuple[Array, dict[str, Array]]:
    """An official state dict and ids (T,) -> logits (T, V) and the state after the last.

    The state has `att_shift` and `ffn_shift` (L, C), and `wkv` (L, H, N, N) as S[k, v] or, in v4, (L, 3, C).
    """
    z = {name: t.double().numpy() for name, t in tensors.items()}
    z = {name: np.squeeze(t) if t.ndim == 3 and t.shape[:2] == (1, 1) else t for name, t in z.items()}
    C = z["emb.weight"].shape[1]
    L = 1 + max(int(name.split(".")[1]) for name in z if name.startswith("blocks."))
    blocks = [
        {n.removeprefix(f"blocks.{i}."): t for n, t in z.items() if n.startswith(f"blocks.{i}.")} for i in range(L)
    ]
    start, time_mix = TIME_MIXES[version]
    att, ffn, wkv = np.zeros((L, C)), np.zeros((L, C)), np.stack([start(b, C) for b in blocks])
    logits = []
    for token in np.asarray(ids):
        x = norm(z["emb.weight"][token], z, "blocks.0.ln0")
        for i, b in enumerate(blocks):
            h = norm(x, b, "ln1")
            out, wkv[i] = time_mix(b, h, att[i], wkv[i])
            x, att[i] = x + out, h
            h = norm(x, b, "ln2")
            x, ffn[i] = x + channel_mix(b, h, ffn[i]), h
        logits.append(z["head.weight"] @ norm(x, z, "ln_out"))
    return np.stack(logits), {"att_shift": att, "wkv": wkv, "ffn_shift": ffn}


def norm(x: Array, z: Tensors, name: str) -> Array:
    normed: Array = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * z[f"{name}.weight"] + z[f"{name}.bias"]
    return normed


def sigmoid(x: Array) -> Array:
    out: Array = 1 / (1 + np.exp(-x))
    return out


def channel_mix(b: Tensors, h: Array, last: Array) -> Array:
    if "ffn.time_mix_k" in b:
        xk, xr = (h * b[f"ffn.time_mix_{m}"] + last * (1 - b[f"ffn.time_mix_{m}"]) for m in "kr")
    else:
        xk, xr = (h * (1 - b[f"ffn.time_maa_{m}"]) + last * b[f"ffn.time_maa_{m}"] for m in "kr")
    inner = np.maximum(b["ffn.key.weight"] @ xk, 0) ** 2
    out: Array = sigmoid(b["ffn.receptance.weight"] @ xr) * (b["ffn.value.weight"] @ inner)
    return out


def start_4(b: Tensors, C: int) -> Array:
    return np.stack([np.zeros(C), np.zeros(C), np.full(C, -1e30)])


def time_mix_4(b: Tensors, h: Array, last: Array, memory: Array) -> tuple[Array, Array]:
    xk, xv, xr = (h * b[f"att.time_mix_{m}"] + last * (1 - b[f"att.time_mix_{m}"]) for m in "kvr")
    k, v = b["att.key.weight"] @ xk, b["att.value.weight"] @ xv
    r = sigmoid(b["att.receptance.weight"] @ xr)
    aa, bb, pp = memory
    ahead = b["att.time_first"] + k
    q = np.maximum(pp, ahead)
    e1, e2 = np.exp(pp - q), np.exp(ahead - q)
    y = (e1 * aa + e2 * v) / (e1 * bb + e2)
    faded = pp - np.exp(b["att.time_decay"])
    q = np.maximum(faded, k)
    e1, e2 = np.exp(faded - q), np.exp(k - q)
    return b["att.output.weight"] @ (r * y), np.stack([e1 * aa + e2 * v, e1 * bb + e2, q])


def start_5(b: Tensors, C: int) -> Array:
    H = len(b["att.time_decay"])
    zero: Array = np.zeros((H, C // H, C // H))
    return zero


def time_mix_5(b: Tensors, h: Array, last: Array, S: Array) -> tuple[Array, Array]:
    H = len(b["att.time_decay"])

    def mixed(m: str) -> Array:
        between: Array = h * b[f"att.time_mix_{m}"] + last * (1 - b[f"att.time_mix_{m}"])
        return between

    r, k, v = (b[f"att.{n}.weight"] @ mixed(n[0]) for n in ("receptance", "key", "value"))
    u = np.exp(b["att.time_first"]) if "att.time_first" in b else b["att.time_faaaa"]
    w = np.exp(-np.exp(b["att.time_decay"]))
    gate = None
    if "att.gate.weight" in b:
        gate = b["att.gate.weight"] @ mixed("g")
        gate = gate * sigmoid(gate)
    return _attend(b, r, k, v, w.reshape(H, -1), u.reshape(H, -1), gate, S)


def start_6(b: Tensors, C: int) -> Array:
    H, N = b["att.time_faaaa"].shape
    return b["att.time_state"].transpose(0, 2, 1) if "att.time_state" in b else np.zeros((H, N, N))


def time_mix_6(b: Tensors, h: Array, last: Array, S: Array) -> tuple[Array, Array]:
    d = last - h
    five = np.tanh((h + d * b["att.time_maa_x"]) @ b["att.time_maa_w1"]).reshape(5, -1)
    moved = {m: h + d * (b[f"att.time_maa_{m}"] + five[i] @ b["att.time_maa_w2"][i]) for i, m in enumerate("wkvrg")}
    r, k, v, gate = (b[f"att.{n}.weight"] @ moved[n[0]] for n in ("receptance", "key", "value", "gate"))
    z = b["att.time_decay"] + np.tanh(moved["w"] @ b["att.time_decay_w1"]) @ b["att.time_decay_w2"]
    w = np.exp(-np.exp(z))
    return _attend(b, r, k, v, w.reshape(len(S), -1), b["att.time_faaaa"], gate * sigmoid(gate), S)


def _attend(
    b: Tensors, r: Array, k: Array, v: Array, w: Array, u: Array, gate: Array | None, S: Array
) -> tuple[Array, Array]:
    """All heads, one after another; S[k, v], w and u (H, N) or (H, 1)."""
    H, N = S.shape[:2]
    y, after = np.zeros((H, N)), np.zeros_like(S)
    for head in range(H):
        part = slice(head * N, (head + 1) * N)
        written = np.outer(k[part], v[part])
        y[head] = r[part] @ (S[head] + u[head][:, None] * written)
        after[head] = w[head][:, None] * S[head] + written
    y = (y - y.mean(axis=1, keepdims=True)) / np.sqrt(y.var(axis=1, keepdims=True) + 64e-5)
    flat = y.reshape(-1) * b["att.ln_x.weight"] + b["att.ln_x.bias"]
    return b["att.output.weight"] @ (flat if gate is None else flat * gate), after


TimeMix = Callable[[Tensors, Array, Array, Array], tuple[Array, Array]]

TIME_MIXES: dict[str, tuple[Callable[[Tensors, int], Array], TimeMix]] = {
    "4": (start_4, time_mix_4),
    **dict.fromkeys(("5.0", "5.1", "5.2"), (start_5, time_mix_5)),
    "6": (start_6, time_mix_6),
}
"""Version -> the memory before the first token, and one token of its time mix."""
