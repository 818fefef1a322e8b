"""The port's side of the protocol, with an engine that is easy to check, and the way it is started."""

import base64
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends.engines import start
from backends.engines.serve import INLINE, Array, Refusal, Result, Server


class Counting:
    """Logits are the running sum of the tokens; the state is that sum."""

    def hello(self) -> dict[str, Any]:
        return {"name": "counting"}

    def load(self, path: str, dtype: str, device: str, threads: int) -> dict[str, int]:
        if dtype != "f32":
            raise Refusal("f32 only")
        return {"vocab_size": 4}

    def forward(self, tokens: list[Any], state: Any, logits: str, trace: list[str]) -> Result:
        sums = (state or 0) + np.cumsum(np.array(tokens, dtype=np.float32))
        rows = np.repeat(sums[:, None], 4, axis=1)
        return rows if logits == "all" else rows[-1:], float(sums[-1]), {"emb": rows}


class Whole(Counting):
    def exported(self, state: Any) -> dict[str, Array]:
        return {"att_shift": np.full((1, 2), state, dtype=np.float32)}

    def imported(self, parts: Mapping[str, Array]) -> Any:
        return float(parts["att_shift"][0, 0])

    def encode(self, text: bytes) -> list[int]:
        return list(text)

    def decode(self, ids: list[int]) -> bytes:
        return bytes(ids)


def ask(server: Server, method: str, **params: Any) -> dict[str, Any]:
    line = json.dumps({"jsonrpc": "2.0", "id": 5, "method": method, "params": params}).encode()
    answer = server.answer(line)
    assert answer["id"] == 5
    return answer


def result(server: Server, method: str, **params: Any) -> dict[str, Any]:
    found: dict[str, Any] = ask(server, method, **params)["result"]
    return found


def forward(server: Server, tokens: list[int], state: int | None = None, **more: Any) -> dict[str, Any]:
    wanted = {"logits": "last", "keep": False, "trace": [], "fetch": True, **more}
    return result(server, "forward", tokens=tokens, state=state, **wanted)


def numbers(sent: dict[str, Any], folder: Path) -> list[float]:
    raw = base64.b64decode(sent["base64"]) if "base64" in sent else (folder / sent["file"]).read_bytes()
    found: list[float] = np.frombuffer(raw, dtype="<f4").reshape(sent["shape"])[:, 0].tolist()
    return found


@pytest.fixture
def server(tmp_path: Path) -> Server:
    made = Server(Whole())
    assert result(made, "load", path="m", dtype="f32", device="cpu", threads=1, scratch=str(tmp_path)) == {
        "vocab_size": 4
    }
    return made


def test_logits_and_states(server: Server, tmp_path: Path) -> None:
    assert result(server, "hello", protocol=1) == {"protocol": 1, "name": "counting"}
    first = forward(server, [1, 2], keep=True)
    assert numbers(first["logits"], tmp_path) == [3]
    on = forward(server, [1, 1], first["state"], logits="all", keep=True)
    assert numbers(on["logits"], tmp_path) == [4, 5]
    assert numbers(forward(server, [1], first["state"])["logits"], tmp_path) == [4]
    assert on["state"] != first["state"]
    assert forward(server, [1], logits="none") == {}
    assert forward(server, [1], fetch=False) == {}
    assert numbers(forward(server, [2], trace=["emb"])["trace"]["emb"], tmp_path) == [2]
    assert result(server, "release", state=first["state"]) == {}
    assert "KeyError" in ask(server, "release", state=first["state"])["error"]["message"]


def test_states_in_and_out(server: Server, tmp_path: Path) -> None:
    handle = forward(server, [3], keep=True)["state"]
    parts = result(server, "export_state", state=handle)
    assert numbers(parts["att_shift"], tmp_path) == [3]
    back = result(server, "import_state", **parts)["state"]
    (tmp_path / "r.bin").write_bytes(np.full(2, 9, dtype="<f4").tobytes())
    other = result(server, "import_state", att_shift={"dtype": "f32", "shape": [1, 2], "file": "r.bin", "offset": 0})
    assert numbers(forward(server, [1], back)["logits"], tmp_path) == [4]
    assert numbers(forward(server, [1], other["state"])["logits"], tmp_path) == [10]


def test_large_arrays_go_through_files(server: Server, tmp_path: Path) -> None:
    count = INLINE // 16 + 1
    sent = forward(server, [1] * count, logits="all")["logits"]
    assert "base64" not in sent
    assert numbers(sent, tmp_path) == list(range(1, count + 1))
    assert forward(server, [1], logits="all")["logits"]["shape"] == [1, 4]


def test_tokenizer(server: Server) -> None:
    assert result(server, "encode", bytes=base64.b64encode(b"Hi").decode()) == {"tokens": [72, 105]}
    assert result(server, "decode", tokens=[72, 105]) == {"bytes": base64.b64encode(b"Hi").decode()}


def test_what_is_not_offered_is_an_error_in_words(tmp_path: Path) -> None:
    server = Server(Counting())
    load = {"path": "m", "dtype": "bf16", "device": "cpu", "threads": 0, "scratch": str(tmp_path)}
    assert ask(server, "load", **load)["error"] == {"code": -32000, "message": "f32 only"}
    assert ask(server, "encode", bytes="")["error"]["message"] == "this engine has no encode"
    assert ask(server, "sing")["error"]["code"] == -32601
    assert "KeyError" in ask(server, "forward", tokens=[1])["error"]["message"]


PORT = """
import os, sys
class Port:
    def __init__(self, settings): self.settings = settings
    def hello(self):
        print("noise from Python")
        os.write(1, b"noise from C")
        seen = [name for name in sys.modules if name.split(".")[0] in ("torch", "harness")]
        return {"name": self.settings["name"], "seen": seen}
"""


def test_the_server_runs_in_a_bare_interpreter(tmp_path: Path) -> None:
    """Started by its path, it sees the two packages and no other module of this project; noise goes to the log."""
    folder = tmp_path / "backends" / "engines"
    folder.mkdir(parents=True)
    for name in ("start.py", "serve.py"):
        (folder / name).write_bytes(Path(start.__file__).with_name(name).read_bytes())
    (folder / "serve_toy.py").write_text(PORT)
    (folder / "numpy.py").write_text("raise SystemExit('a file beside start.py hides numpy')")
    asked = "".join(
        json.dumps({"jsonrpc": "2.0", "id": i, "method": method, "params": {}}) + "\n"
        for i, method in enumerate(("hello", "sing", "shutdown", "hello"), 1)
    )
    command = [sys.executable, str(folder / "start.py"), "toy", '{"name": "toy"}']
    done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=60, check=True, cwd=tmp_path)
    first, second, third = map(json.loads, done.stdout.splitlines())
    assert first["result"] == {"protocol": 1, "name": "toy", "seen": []}
    assert second["error"]["code"] == -32601
    assert third["result"] == {}
    assert "noise from C" in done.stderr
    assert "noise from Python" in done.stderr
