"""A port of RWKV-7 that shares nothing with this project: numpy and json read a kit's files and write a dump.

Run as a program: `python numpy_port.py KIT DUMP [--bug NAME] [--dump logits|state|all]`. Bugs are slips that a
porter makes; each stands where it would stand in real code.
"""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BUGS = ("", "v6-decay", "read-before-write", "transposed-key", "edge-shift", "no-bonus", "group-norm-eps", "odd-gate")

Array = np.ndarray[Any, Any]
Keep = Callable[[str, Array], Array]


def read_checkpoint(path: Path) -> dict[str, Array]:
    """A safetensors file of float32: a header of JSON, then raw numbers."""
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    tensors = {}
    for name, row in json.loads(raw[8 : 8 + length]).items():
        if name != "__metadata__":
            begin, end = (8 + length + offset for offset in row["data_offsets"])
            tensors[name] = np.frombuffer(raw[begin:end], dtype="<f4").reshape([n for n in row["shape"] if n != 1])
    return tensors


class Port:
    """The model, one token at a time in float32."""

    def __init__(self, z: dict[str, Array], layers: int, heads: int, bug: str = "") -> None:
        self.z, self.L, self.H, self.bug = z, layers, heads, bug
        C = z["emb.weight"].shape[1]
        N = C // heads
        self.att, self.ffn = np.zeros((layers, C), "f4"), np.zeros((layers, C), "f4")
        self.S = np.zeros((layers, heads, N, N), "f4")
        self.seen: dict[str, Array] = {}

    def token(self, token: int) -> Array:
        z = self.z
        self.seen = {"emb": z["emb.weight"][token]}
        x = self.keep("ln0", norm(self.seen["emb"], z["blocks.0.ln0.weight"], z["blocks.0.ln0.bias"]))
        for i in range(self.L):
            b = f"blocks.{i}."
            x = self.keep(b + "att.res", x + self.time_mix(i, b, x))
            x = self.keep(b + "ffn.res", x + self.channel_mix(i, b, x))
        x = self.keep("ln_out", norm(x, z["ln_out.weight"], z["ln_out.bias"]))
        return z["head.weight"] @ x

    def keep(self, name: str, value: Array) -> Array:
        self.seen[name] = np.array(value, dtype="f4")
        return self.seen[name]

    def keeper(self, prefix: str) -> Keep:
        return lambda name, value: self.keep(prefix + name, value)

    def time_mix(self, i: int, b: str, x: Array) -> Array:
        z, k_ = self.z, self.keeper(b + "att.")
        p = {n: z[f"{b}att.{n}"] for n in ("k_k", "k_a", "r_k", "w0", "w1", "w2", "a0", "a1", "a2", "g1", "g2")}
        h = k_("ln1", norm(x, z[b + "ln1.weight"], z[b + "ln1.bias"]))
        last = k_("shift", self.att[i])
        m = {n: k_(f"x{n}", h + (last - h) * z[f"{b}att.x_{n}"]) for n in "rwkvag"}
        self.att[i] = h
        key = z[b + "att.key.weight"]
        r = k_("r", z[b + "att.receptance.weight"] @ m["r"])
        k_raw = k_("k_raw", (key.T if self.bug == "transposed-key" and i == 1 else key) @ m["k"])
        v = k_("v_raw", z[b + "att.value.weight"] @ m["v"])
        w = self.decay(k_, p, m["w"])
        a = k_("a", sigmoid(p["a0"] + k_("a_lora", m["a"] @ p["a1"]) @ p["a2"]))
        g_lora = k_("g_lora", np.sin(m["g"] @ p["g1"]) if self.bug == "odd-gate" else sigmoid(m["g"] @ p["g1"]))
        g = k_("g", g_lora @ p["g2"])
        if i:
            mixed = sigmoid(z[b + "att.v0"] + k_("v_lora", m["v"] @ z[b + "att.v1"]) @ z[b + "att.v2"])
            v = v + (self.seen["blocks.0.att.v"] - v) * mixed
        v = k_("v", v)
        kk = self.heads(k_raw * p["k_k"])
        kk = k_("kk", (kk / np.maximum(np.sqrt((kk * kk).sum(1, keepdims=True)), 1e-12)).reshape(-1))
        k = k_("k", k_raw * (1 + (a - 1) * p["k_a"]))
        y = k_("y", self.memory(i, b, r, w, k, v, kk, a))
        return self.read_out(b, k_, y, r, k, v, g, p["r_k"])

    def decay(self, k_: Keep, p: dict[str, Array], xw: Array) -> Array:
        raw = k_("w_raw", k_("w_lora", np.tanh(xw @ p["w1"])) @ p["w2"])
        if self.bug == "v6-decay":
            return k_("w", np.exp(-np.exp(p["w0"] + raw)))
        return k_("w", np.exp(np.float32(-0.60653066) * sigmoid(p["w0"] + raw)))

    def memory(self, i: int, b: str, *z: Array) -> Array:
        r, w, k, v, kk, a = (self.heads(x) for x in z)
        before = self.S[i].copy()
        for head in range(self.H):
            S = self.S[i, head]
            removed = S @ kk[head]
            S[:] = S * w[head] - np.outer(removed, kk[head] * a[head]) + np.outer(v[head], k[head])
        self.keep(f"{b}att.state", self.S[i])
        S = before if self.bug == "read-before-write" else self.S[i]
        return np.concatenate([S[head] @ r[head] for head in range(self.H)])

    def read_out(self, b: str, k_: Keep, y: Array, r: Array, k: Array, v: Array, g: Array, r_k: Array) -> Array:
        heads, z = self.heads(y), self.z
        eps = 1e-5 if self.bug == "group-norm-eps" else 64e-5
        n = (heads - heads.mean(1, keepdims=True)) / np.sqrt(heads.var(1, keepdims=True) + np.float32(eps))
        n = k_("ln_x", n.reshape(-1) * z[b + "att.ln_x.weight"] + z[b + "att.ln_x.bias"])
        weight = (self.heads(r) * self.heads(k) * self.heads(r_k.reshape(-1))).sum(1, keepdims=True)
        bonus = k_("bonus", (weight * self.heads(v)).reshape(-1) * (self.bug != "no-bonus"))
        return k_("out", z[b + "att.output.weight"] @ ((n + bonus) * g))

    def channel_mix(self, i: int, b: str, x: Array) -> Array:
        z, k_ = self.z, self.keeper(b + "ffn.")
        h = k_("ln2", norm(x, z[b + "ln2.weight"], z[b + "ln2.bias"]))
        last = k_("shift", self.ffn[i])
        self.ffn[i] = h
        k = k_("k", z[b + "ffn.key.weight"] @ k_("xk", h + (last - h) * z[b + "ffn.x_k"]))
        return k_("out", z[b + "ffn.value.weight"] @ k_("act", np.maximum(k, 0) ** 2))

    def heads(self, x: Array) -> Array:
        return x.reshape(self.H, -1)


def norm(x: Array, weight: Array, bias: Array) -> Array:
    return np.asarray((x - x.mean()) / np.sqrt(x.var() + np.float32(1e-5)) * weight + bias)


def sigmoid(x: Array) -> Array:
    return np.asarray(1 / (1 + np.exp(-x)))


def run(kit: Path, bug: str) -> dict[str, Array]:
    """Everything that the port computes on the kit's prompt."""
    facts = json.loads((kit / "manifest.json").read_text())
    tokens = np.fromfile(kit / "tokens.bin", dtype="<i4")
    port = Port(read_checkpoint(kit / facts["checkpoint"]), facts["model"]["n_layer"], facts["model"]["n_head"], bug)
    rows: dict[str, list[Array]] = {}
    at = 0
    for size in facts["calls"]:
        if bug == "edge-shift":
            port.att[:] = 0
        for token in tokens[at : at + size]:
            rows.setdefault("logits", []).append(port.token(int(token)))
            for name, value in port.seen.items():
                rows.setdefault(name, []).append(value)
        at += size
    found = {name: np.stack(values) for name, values in rows.items()}
    return found | {"state.att_shift": port.att, "state.wkv": port.S, "state.ffn_shift": port.ffn}


def write(found: dict[str, Array], dump: Path) -> None:
    """One raw file and a manifest that says where in it each tensor begins."""
    dump.mkdir(parents=True, exist_ok=True)
    rows, offset = [], 0
    with (dump / "port.bin").open("wb") as file:
        for name, value in found.items():
            rows.append({"name": name, "shape": value.shape, "dtype": "f32", "file": "port.bin", "offset": offset})
            offset += file.write(value.astype("<f4").tobytes())
    told = {"dump": 1, "program": "numpy port", "dtype": "f32", "tensors": rows}
    (dump / "manifest.json").write_text(json.dumps(told))


def chosen(found: dict[str, Array], what: str) -> dict[str, Array]:
    """Logits alone, with the state, or everything."""
    kept = {"logits": ("logits",), "state": ("logits", "state.")}.get(what, ("",))
    return {name: value for name, value in found.items() if name.startswith(kept)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kit", type=Path)
    parser.add_argument("dump", type=Path)
    parser.add_argument("--bug", choices=BUGS, default="")
    parser.add_argument("--dump", dest="what", choices=("logits", "state", "all"), default="all")
    options = parser.parse_args()
    write(chosen(run(options.kit, options.bug), options.what), options.dump)


if __name__ == "__main__":
    main()
