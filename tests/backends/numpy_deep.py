"""RWKV-7, 7a and 7b in numpy float64, token by token, from the specification; shares nothing with any backend."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

Array = npt.NDArray[Any]


class Deep:
    """A model that remembers; `feed` takes one token.

    Args:
        tensors: an official state dict.
        deep: whether 7a's matrix of every token works in the channel mix.
        dea: whether the attention of 7b stands beside the time mix.
    """

    def __init__(self, tensors: Mapping[str, torch.Tensor], deep: bool, dea: bool) -> None:
        self.z = {name: _vector(t.double().numpy()) for name, t in tensors.items()}
        self.deep, self.dea = deep, dea
        self.C = self.z["emb.weight"].shape[1]
        self.H, self.N = self.z["blocks.0.att.r_k"].shape
        self.L = 1 + max(int(name.split(".")[1]) for name in self.z if name.startswith("blocks."))
        self.att, self.ffn = np.zeros((self.L, self.C)), np.zeros((self.L, self.C))
        self.S = np.zeros((self.L, self.H, self.N, self.N))
        # Per layer what the attention has seen: raw q, k, v of the last token, and all normed keys and values.
        self.last: list[dict[str, Array]] = [
            {"q": np.zeros(256), "k": np.zeros(256), "v": np.zeros(self.C)} for _ in range(self.L)
        ]
        self.seen: list[tuple[list[Array], list[Array]]] = [([], []) for _ in range(self.L)]
        self.low: list[tuple[list[Array], list[Array]]] = [([], []) for _ in range(self.L)]

    def feed(self, token: int) -> Array:
        """Logits (V,) after one more token."""
        E = self.norm("blocks.0.ln0", self.z["emb.weight"][token])
        x, v_first = E, None
        for i in range(self.L):
            beside = self.attention(i, x, E, token) if self.dea else 0.0
            mixed, v_first = self.time_mix(i, self.norm(f"blocks.{i}.ln1", x), v_first)
            x = x + mixed + beside
            x = x + self.channel_mix(i, self.norm(f"blocks.{i}.ln2", x), E, token)
        logits: Array = self.z["head.weight"] @ self.norm("ln_out", x)
        return logits

    def norm(self, name: str, x: Array) -> Array:
        normed: Array = (x - x.mean()) / np.sqrt(x.var() + 1e-5) * self.z[f"{name}.weight"] + self.z[f"{name}.bias"]
        return normed

    def time_mix(self, i: int, h: Array, v_first: Array | None) -> tuple[Array, Array]:
        def p(name: str) -> Array:
            return self.z[f"blocks.{i}.att.{name}"]

        d = self.att[i] - h
        self.att[i] = h
        x = {m: h + d * p(f"x_{m}") for m in "rwkvag"}
        r, k, v = p("receptance.weight") @ x["r"], p("key.weight") @ x["k"], p("value.weight") @ x["v"]
        w = np.exp(-np.exp(-0.5) / (1 + np.exp(-(p("w0") + np.tanh(x["w"] @ p("w1")) @ p("w2")))))
        a = _sigmoid(p("a0") + x["a"] @ p("a1") @ p("a2"))
        g = _sigmoid(x["g"] @ p("g1")) @ p("g2")
        if v_first is None:
            v_first = v
        else:
            v = v + (v_first - v) * _sigmoid(p("v0") + x["v"] @ p("v1") @ p("v2"))
        kappa = k * p("k_k")
        k = k * (1 + (a - 1) * p("k_a"))
        out = np.zeros(self.C)
        for head in range(self.H):
            n = slice(head * self.N, (head + 1) * self.N)
            unit = kappa[n] / max(float(np.linalg.norm(kappa[n])), 1e-12)
            S = self.S[i, head]
            S = S @ (np.diag(w[n]) - np.outer(unit, unit * a[n])) + np.outer(v[n], k[n])
            self.S[i, head] = S
            y = S @ r[n]
            y = (y - y.mean()) / np.sqrt(y.var() + 64e-5) * p("ln_x.weight")[n] + p("ln_x.bias")[n]
            out[n] = y + (r[n] * k[n] * p("r_k")[head]).sum() * v[n]
        return p("output.weight") @ (out * g), v_first

    def channel_mix(self, i: int, h: Array, E: Array, token: int) -> Array:
        def p(name: str) -> Array:
            return self.z[f"blocks.{i}.ffn.{name}"]

        moved = h + (self.ffn[i] - h) * p("x_k")
        self.ffn[i] = h
        z = np.maximum(p("key.weight") @ moved, 0) ** 2
        if self.deep:
            M = (p("s_emb.weight")[token] + p("s_emb_x.weight") @ E).reshape(32, 32)
            z = z * (((h @ p("s1")) @ M) @ p("s2") + p("s0"))
        out: Array = p("value.weight") @ z
        return out

    def attention(self, i: int, x: Array, E: Array, token: int) -> Array:
        def p(name: str) -> Array:
            return self.z[f"blocks.{i}.qkv.{name}"]

        low_k, low_v = x @ p("k1"), x @ p("v1")
        raw = {
            "q": p("qq.weight") @ x,
            "k": (low_k @ p("k2")) * (p("k_emb.weight")[token] + p("k_emb_x.weight") @ E),
            "v": np.tanh(low_v @ p("v2")) * (p("v_emb.weight")[token] + p("v_emb_x.weight") @ E),
        }
        normed = {
            n: self.norm(f"blocks.{i}.qkv.ln{n}", now + (self.last[i][n] - now) * p(f"x_{n}")) for n, now in raw.items()
        }
        self.last[i] = raw
        keys, values = self.seen[i]
        keys.append(normed["k"])
        values.append(normed["v"])
        self.low[i][0].append(low_k)
        self.low[i][1].append(low_v)
        score = np.array([64 * np.tanh(normed["q"] @ key / 1024) for key in keys])
        weight = np.exp(score - score.max())
        mixed: Array = (weight / weight.sum()) @ np.stack(values)
        return mixed


def run(version: str, tensors: Mapping[str, torch.Tensor], ids: npt.ArrayLike) -> tuple[Array, dict[str, Array]]:
    """An official state dict and ids (T,) -> logits (T, V) and the state after the last, without a batch axis."""
    model = Deep(tensors, deep=version in ("7a", "7b"), dea=version == "7b")
    logits = np.stack([model.feed(int(token)) for token in np.asarray(ids)])
    state = {"att_shift": model.att, "wkv": model.S, "ffn_shift": model.ffn}
    if model.dea:
        state["dea_q"] = np.stack([last["q"] for last in model.last])
        state["dea_k"], state["dea_v"] = (np.stack([np.stack(low[j]) for low in model.low]) for j in (0, 1))
        state["tokens"] = np.asarray(ids)[None]
    return logits, state


def _vector(t: Array) -> Array:
    return np.squeeze(t) if t.ndim == 3 else t


def _sigmoid(x: Array) -> Array:
    out: Array = 1 / (1 + np.exp(-x))
    return out
