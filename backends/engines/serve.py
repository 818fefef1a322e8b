"""The port's side of docs/protocol.md, for engines that Python can call. Needs numpy and nothing of this project."""

import base64
import importlib
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

INLINE = 1 << 16
"""Bytes above which an array goes through a file."""


Result = tuple[Array | None, Any, Mapping[str, Array]]
"""Logits (T or 1, V) or None, the state after the last token, and the traced tensors."""


class Refusal(Exception):  # noqa: N818 - an answer
    """What cannot be served, in words; the server lives on."""


class Engine(Protocol):
    """One engine, without the protocol. States are values: what `forward` is given it must not write into.

    An engine that states the ability "state" also has `exported(state)`, which gives att_shift (L, C), wkv
    (L, H, N value, N key) and ffn_shift (L, C), and its inverse `imported(parts)`; with "tokenizer" it has
    `encode(text)`, bytes to ids, and `decode(ids)`. With "batch", tokens are rows, and all arrays have them too.
    """

    def hello(self) -> dict[str, Any]:
        """What the engine says of itself, by the keys of the protocol."""

    def load(self, path: str, dtype: str, device: str, threads: int) -> dict[str, int]:
        """Open a checkpoint; returns its sizes as the engine understood them."""

    def forward(self, tokens: list[Any], state: Any, logits: str, trace: list[str]) -> Result:
        """Run tokens after a state; `logits` is "all", "last" or "none"."""


class Server:
    """Requests to an engine; keeps its states by number."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.states: dict[int, Any] = {}
        self.scratch = Path()
        self.count = 0
        self.methods: dict[str, Callable[[dict[str, Any]], dict[str, Any]]] = {
            "hello": lambda _: {"protocol": 1, **engine.hello()},
            "load": self.load,
            "forward": self.forward,
            "release": self.release,
            "export_state": lambda p: {
                n: self.sent(a) for n, a in self.own("exported")(self.states[p["state"]]).items()
            },
            "import_state": lambda p: {"state": self.kept(self.own("imported")({n: self.received(p[n]) for n in p}))},
            "encode": lambda p: {"tokens": [int(i) for i in self.own("encode")(base64.b64decode(p["bytes"]))]},
            "decode": lambda p: {"bytes": base64.b64encode(self.own("decode")(p["tokens"])).decode()},
            "shutdown": lambda _: {},
        }

    def answer(self, line: bytes) -> dict[str, Any]:
        """The answer to one request, errors included."""
        request = json.loads(line)
        reply = {"jsonrpc": "2.0", "id": request["id"]}
        method = self.methods.get(request["method"])
        if method is None:
            return {**reply, "error": {"code": -32601, "message": f"no method {request['method']}"}}
        try:
            return {**reply, "result": method(request["params"])}
        except Exception as error:  # an engine may break in any way; the reader wants its words, not a dead pipe
            words = str(error) if isinstance(error, Refusal) else f"{type(error).__name__}: {error}"
            return {**reply, "error": {"code": -32000, "message": words}}

    def own(self, method: str) -> Callable[[Any], Any]:
        """A method that an engine may have."""
        found: Callable[[Any], Any] | None = getattr(self.engine, method, None)
        if found is None:
            raise Refusal(f"this engine has no {method}")
        return found

    def load(self, params: dict[str, Any]) -> dict[str, Any]:
        """Open the checkpoint."""
        self.scratch = Path(params["scratch"])
        return dict(self.engine.load(params["path"], params["dtype"], params["device"], params["threads"]))

    def forward(self, params: dict[str, Any]) -> dict[str, Any]:
        """One call; what was asked for is sent."""
        state = None if params["state"] is None else self.states[params["state"]]
        tokens, wanted = params["tokens"], params["logits"]
        logits, after, trace = self.engine.forward(tokens, state, wanted, params["trace"])
        result: dict[str, Any] = {}
        if logits is not None and wanted != "none" and params["fetch"]:
            result["logits"] = self.sent(logits)
        if params["keep"]:
            result["state"] = self.kept(after)
        if params["trace"]:
            result["trace"] = {name: self.sent(array) for name, array in trace.items()}
        return result

    def release(self, params: dict[str, Any]) -> dict[str, Any]:
        """Forget a state."""
        del self.states[params["state"]]
        return {}

    def kept(self, state: Any) -> int:
        """The number under which a state is kept."""
        self.count += 1
        self.states[self.count] = state
        return self.count

    def sent(self, array: npt.NDArray[Any]) -> dict[str, Any]:
        """An array for an answer: small ones inline, large ones through a file that the reader deletes."""
        raw = np.ascontiguousarray(array, dtype="<f4")
        described = {"dtype": "f32", "shape": list(raw.shape)}
        if raw.nbytes <= INLINE:
            return {**described, "base64": base64.b64encode(raw.tobytes()).decode()}
        self.count += 1
        name = f"answer-{self.count}.bin"
        raw.tofile(self.scratch / name)
        return {**described, "file": name, "offset": 0}

    def received(self, data: dict[str, Any]) -> Array:
        """An array of a request."""
        raw = (self.scratch / data["file"]).read_bytes() if "file" in data else base64.b64decode(data["base64"])
        return np.frombuffer(raw, dtype="<f4").reshape(data["shape"])


def serve(module: str, settings: str) -> int:
    """Answer requests on stdin until `shutdown` or its end.

    Args:
        module: that holds the engine's class, `Port`; imported when stdout is already safe from what it prints.
        settings: JSON object, handed to the class.

    Returns:
        The exit code, 0.
    """
    with _private_stdout() as out:
        engine = importlib.import_module(module).Port(json.loads(settings))
        server = Server(engine)
        for line in sys.stdin.buffer:
            answer = server.answer(line)
            out.write(json.dumps(answer, separators=(",", ":"), allow_nan=False).encode() + b"\n")
            out.flush()
            if json.loads(line)["method"] == "shutdown":
                break
    return 0


def _private_stdout() -> BinaryIO:
    """The pipe for the protocol alone; whatever else writes to it, also from C, ends in the log."""
    sys.stdout.flush()
    own = os.dup(1)
    os.dup2(2, 1)
    return os.fdopen(own, "wb")
