"""A program that speaks the protocol and misbehaves as its argument says. Standard library only; it knows no RWKV.

Its model has five tokens and answers zeros. `python drill.py MODE PIDS` appends its process id to the file PIDS, so
that a test can look whether anything is left over.
"""

import base64
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

V = 5


def zeros(*shape: int, byte: bytes = b"\0\0\0\0") -> dict[str, Any]:
    n = 1
    for length in shape:
        n *= length
    return {"dtype": "f32", "shape": list(shape), "base64": base64.b64encode(byte * n).decode()}


def write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def misbehave(mode: str, ident: int, number: int) -> dict[str, Any] | None:  # noqa: C901
    """What it does when asked for its `number`-th forward; an answer, if it gives one."""
    good = {"logits": zeros(1, V)}
    if mode == "crash":
        print("loading\nmatrix 3 is missing\npanic!", file=sys.stderr)
        sys.exit(3)
    elif mode == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif mode == "hang":
        time.sleep(3600)
    elif mode == "hang-deaf":  # as a program in an endless loop: it never sees that stdin ended
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(3600)
    elif mode == "garbage":
        write("Loading model: 100%\n")
    elif mode == "half":
        write('{"jsonrpc":"2.0","id":')
        sys.exit(0)
    elif mode == "half-hang":
        write('{"jsonrpc":"2.0","id":')
        time.sleep(3600)
    elif mode == "wrong-id":
        write(json.dumps({"jsonrpc": "2.0", "id": ident + 7, "result": good}) + "\n")
    elif mode == "no-result":
        write(json.dumps({"jsonrpc": "2.0", "id": ident}) + "\n")
    elif mode == "closed":
        os.close(1)
        time.sleep(3600)
    elif mode == "huge":
        while True:
            write("x" * 65536)
    elif mode == "chatty":
        write(json.dumps({"jsonrpc": "2.0", "id": ident, "result": good}) + "\nDone in 3 ms\n")
    elif mode == "grandchild":  # dies, but a child of its holds stdout open
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(3600)"])
        remember(child.pid)
        os._exit(4)
    elif mode == "error":
        write(json.dumps({"jsonrpc": "2.0", "id": ident, "error": {"code": -32000, "message": "out of memory"}}) + "\n")
    elif mode == "once" and number == 1 and len(Path(sys.argv[2]).read_text().split()) == 1:
        sys.exit(7)
    else:
        return answers(mode, good)
    return None


def answers(mode: str, good: dict[str, Any]) -> dict[str, Any]:
    """Answers of the right form with a wrong content."""
    wrong: dict[str, dict[str, Any]] = {
        "wrong-shape": {"logits": zeros(1, V - 1)},
        "transposed": {"logits": zeros(V, 1)},
        "short": {"logits": {**zeros(1, V), "shape": [1, V + 1]}},
        "nan": {"logits": zeros(1, V, byte=b"\0\0\xc0\x7f")},
        "no-logits": {},
        "no-base64": {"logits": {"dtype": "f32", "shape": [1, V], "base64": "?!"}},
        "odd-dtype": {"logits": {**zeros(1, V), "dtype": "f8"}},
        "number": {"logits": 3},
        "outside": {"logits": {"dtype": "f32", "shape": [1, V], "file": "../../etc/hostname"}},
        "absent": {"logits": {"dtype": "f32", "shape": [1, V], "file": "nothing.bin"}},
        "odd-trace": {"logits": zeros(1, V), "trace": {"blocks.0.att.w": zeros(1, 8)}},
        "no-handle": {"logits": zeros(1, V), "state": 0},
    }
    return wrong.get(mode, good)


def remember(pid: int) -> None:
    with Path(sys.argv[2]).open("a") as file:
        file.write(f"{pid}\n")


def hello(mode: str) -> dict[str, Any]:
    told: dict[str, Any] = {"protocol": 1, "name": "drill", "abilities": ["state"] if mode == "no-handle" else []}
    return {
        "protocol-2": {**told, "protocol": 2},
        "nameless": {"protocol": 1},
        "odd-ability": {**told, "abilities": ["logits_all"]},
        "abilities-word": {**told, "abilities": "state"},
        "only-bf16": {**told, "dtypes": ["bf16"]},
        "only-cuda": {**told, "devices": ["cuda"]},
        "only-v6": {**told, "versions": ["6"]},
        "moody": {**told, "version": str(len(Path(sys.argv[2]).read_text().split()))},
    }.get(mode, told)


def main() -> None:
    mode, forwards = sys.argv[1], 0
    remember(os.getpid())
    if mode == "slow-start":
        time.sleep(3600)
    if mode == "late-start":
        time.sleep(0.4)
    for line in sys.stdin:
        request = json.loads(line)
        ident, method = request["id"], request["method"]
        if method == "hello":
            result: dict[str, Any] | None = hello(mode)
        elif method == "load":
            if mode == "crash-load":
                sys.exit(9)
            result = {"n_layer": 12} if mode == "other-sizes" else {}
        elif method == "forward":
            forwards += 1
            result = misbehave("crash" if mode == "moody" else mode, ident, forwards)
        else:
            result = {}
        if result is not None:
            write(json.dumps({"jsonrpc": "2.0", "id": ident, "result": result}) + "\n")
        if method == "shutdown":
            return


if __name__ == "__main__":
    main()
