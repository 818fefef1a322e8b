"""A right port in numpy that speaks the protocol and shares nothing with this project's code.

`python numpy_server.py [--abilities a,b] [--arrays file] [--answers file|safetensors] [--log FILE]` states only those
abilities, wants arrays in files, answers with files, and appends every request to a log.
"""

import argparse
import base64
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))
from tests.harness.numpy_port import Array, Port, read_checkpoint

ALL = "logits-all,state,trace,batch,generate,tokenizer"
SHIFTS = ("att_shift", "wkv", "ffn_shift")


class Server:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.abilities = [word for word in options.abilities.split(",") if word]
        self.states: dict[int, list[Any]] = {}
        self.files = 0

    def hello(self, protocol: int) -> dict[str, Any]:
        names = ["ln0", "blocks.*.att.w", "blocks.*.att.v_lora", "blocks.*.att.state", "blocks.*.ffn.out", "head"]
        told = {"protocol": protocol, "name": "numpy port", "version": "1", "abilities": self.abilities}
        return {**told, "trace": names if "trace" in self.abilities else [], "arrays": self.options.arrays}

    def load(self, path: str, scratch: str, **rest: Any) -> dict[str, Any]:
        self.scratch, self.z = Path(scratch), read_checkpoint(Path(path))
        self.L = sum(name.endswith("ln1.weight") for name in self.z)
        self.H = self.z["blocks.0.att.r_k"].shape[0]
        return {"n_layer": self.L, "n_head": self.H}

    def forward(
        self, tokens: Any, state: Any, logits: str, keep: bool, trace: list[str], fetch: bool
    ) -> dict[str, Any]:
        rows = tokens if "batch" in self.abilities else [tokens]
        before = self.states[state] if state else [self.zero() for _ in rows]
        done = [self.run(row, parts, trace) for row, parts in zip(rows, before, strict=True)]
        result: dict[str, Any] = {}
        if logits != "none" and fetch:
            found = self.joined([d[0] for d in done])
            result["logits"] = self.put(found if logits == "all" else found[..., -1:, :])
        if trace:
            result["trace"] = {n: self.put(self.joined([d[1][n] for d in done])) for n in trace if n in done[0][1]}
        if keep:
            result["state"] = self.remember([d[2] for d in done])
        return result

    def zero(self) -> list[Array]:
        port = Port(self.z, self.L, self.H)
        return [port.att, port.S, port.ffn]

    def run(self, row: list[int], parts: list[Array], names: list[str]) -> tuple[Array, dict[str, Array], list[Array]]:
        port = Port(self.z, self.L, self.H)
        port.att, port.S, port.ffn = (part.copy() for part in parts)
        logits, seen = [], []
        for token in row:
            logits.append(port.token(token))
            seen.append({**port.seen, "head": logits[-1]})
        trace = {name: np.stack([s[name] for s in seen]) for name in names if name in seen[0]}
        return np.stack(logits), trace, [port.att, port.S, port.ffn]

    def joined(self, rows: list[Array]) -> Array:
        return np.stack(rows) if "batch" in self.abilities else rows[0]

    def remember(self, rows: list[Any]) -> int:
        number = len(self.states) + 1
        self.states[number] = rows
        return number

    def release(self, state: int) -> dict[str, Any]:
        assert self.states[state] is not None
        self.states[state] = []
        return {}

    def export_state(self, state: int) -> dict[str, Any]:
        rows = self.states[state]
        join = (lambda parts: np.stack(parts, axis=1)) if "batch" in self.abilities else (lambda parts: parts[0])
        return {name: self.put(join([row[i] for row in rows])) for i, name in enumerate(SHIFTS)}

    def import_state(self, **parts: Any) -> dict[str, Any]:
        arrays = [self.get(parts[name]) for name in SHIFTS]
        rows = [[a[:, i] for a in arrays] for i in range(arrays[0].shape[1])] if "batch" in self.abilities else [arrays]
        return {"state": self.remember(rows)}

    def generate(self, tokens: list[int], max_new_tokens: int, stop: list[int]) -> dict[str, Any]:
        found: list[int] = []
        logits, _, parts = self.run(tokens, self.zero(), [])
        while len(found) < max_new_tokens and (new := int(logits[-1].argmax())) not in stop:
            found.append(new)
            logits, _, parts = self.run([new], parts, [])
        return {"tokens": found}

    def encode(self, bytes: str) -> dict[str, Any]:  # noqa: A002 - the protocol's name
        return {"tokens": list(base64.b64decode(bytes))}

    def decode(self, tokens: list[int]) -> dict[str, Any]:
        return {"bytes": base64.b64encode(bytes(tokens)).decode()}

    def shutdown(self) -> dict[str, Any]:
        return {}

    def put(self, array: Array) -> dict[str, Any]:
        raw, self.files = array.astype("<f4").tobytes(), self.files + 1
        if self.options.answers == "file":
            (self.scratch / f"{self.files}.bin").write_bytes(b"1234" + raw)
            return {"dtype": "f32", "shape": array.shape, "file": f"{self.files}.bin", "offset": 4}
        if self.options.answers == "safetensors":
            from safetensors.numpy import save_file

            save_file({"x": np.ascontiguousarray(array, dtype="<f4")}, self.scratch / f"{self.files}.safetensors")
            return {"file": f"{self.files}.safetensors", "tensor": "x"}
        return {"dtype": "f32", "shape": array.shape, "base64": base64.b64encode(raw).decode()}

    def get(self, data: dict[str, Any]) -> Array:
        assert ("file" in data) == (self.options.arrays == "file")
        raw = (self.scratch / data["file"]).read_bytes() if "file" in data else base64.b64decode(data["base64"])
        return np.frombuffer(raw, dtype="<f4").reshape(data["shape"]).copy()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--abilities", default=ALL)
    parser.add_argument("--arrays", default="inline")
    parser.add_argument("--answers", default="inline")
    parser.add_argument("--log", type=Path)
    server = Server(parser.parse_args())
    for line in sys.stdin:
        if server.options.log:
            with server.options.log.open("a") as file:
                file.write(line)
        request = json.loads(line)
        result = getattr(server, request["method"])(**request["params"])
        print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
        if request["method"] == "shutdown":
            return


if __name__ == "__main__":
    main()
