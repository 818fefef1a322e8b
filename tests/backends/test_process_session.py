"""The contract over the protocol: every ability on and off, arrays inline and in files, what is written by byte."""

import gc
import json
import os
import re
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from backends import registry
from backends.base import Array, Output, Session, State, Want
from backends.convert import save
from backends.errors import BackendError, Unsupported
from backends.process import wire
from backends.process.model import NAME, provide
from backends.process.session import ONCE_MORE, ROW_BY_ROW
from backends.weights import Weights
from tests.backends.numpy_server import ALL
from tests.backends.random_model import as_weights, random_rwkv7

SERVER = Path(__file__).with_name("numpy_server.py")
TOKENS = [3, 1, 4, 1, 2]
V = 7

Opened = Callable[..., Session]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return as_weights(random_rwkv7(C=16, N=8, L=2, V=V))


@pytest.fixture
def opened(weights: Weights) -> Iterator[Opened]:
    sessions = []

    def start(abilities: str = ALL, *options: str) -> Session:
        command = shlex.join([sys.executable, str(SERVER), "--abilities", abilities, *options])
        sessions.append(registry.open_session(registry.parse(f"process:{command}"), weights, 1))
        return sessions[-1]

    yield start
    for session in sessions:
        session.close()


@pytest.fixture(scope="module")
def truth(weights: Weights) -> Iterator[Session]:
    with registry.open_session(registry.parse("reference-f64"), weights) as session:
        yield session


def logits(out: Output) -> Array:
    assert out.logits is not None
    return out.logits


EVERYTHING = Want(logits="all", state=True, trace=("blocks.*.att.*", "head"))


@pytest.mark.parametrize(
    ("abilities", "options"),
    [
        (ALL, []),
        (ALL, ["--answers", "file"]),
        ("logits-all,state,trace", ["--arrays", "file"]),
        ("logits-all,state,trace", ["--answers", "safetensors"]),
    ],
    ids=["batch", "batch, files", "rows, arrays as files", "rows, safetensors"],
)
def test_rows_states_and_traces_arrive_as_they_are(
    opened: Opened, truth: Session, abilities: str, options: list[str]
) -> None:
    session, rows = opened(abilities, *options), np.array([TOKENS, TOKENS[::-1]])
    got, want = session.forward(rows, want=EVERYTHING), truth.forward(rows, want=EVERYTHING)
    np.testing.assert_allclose(logits(got), logits(want), atol=1e-4)
    assert set(got.trace) == {n for n in want.trace if n.endswith((".w", "1.att.v_lora", ".state", "head"))}
    for name, value in got.trace.items():
        np.testing.assert_allclose(value, want.trace[name], atol=1e-4, err_msg=name)
    saved = session.export_state(got.state)
    for name, part in truth.export_state(want.state).parts().items():
        np.testing.assert_allclose(saved.parts()[name], part, atol=1e-4, err_msg=name)
    again = session.export_state(session.import_state(saved))
    for name, part in saved.parts().items():
        np.testing.assert_array_equal(again.parts()[name], part)
    on = truth.forward(rows[:, :1], want.state)
    np.testing.assert_allclose(logits(session.forward(rows[:, :1], got.state)), logits(on), atol=1e-4)
    scratch = Path(session._folder.name)  # type: ignore[attr-defined]
    assert {path.name for path in scratch.iterdir()} <= {NAME, "config.json"}  # what was exchanged in files is gone
    session.close()
    assert not scratch.exists()


def test_hello_load_and_forward_are_enough(opened: Opened, truth: Session) -> None:
    session = opened("")
    assert session.info.abilities == {"batch", "generate"}
    assert session.info.notes == (ROW_BY_ROW, ONCE_MORE)
    assert not session.shares_batch
    assert session.tokenizer is None
    np.testing.assert_allclose(logits(session.forward(TOKENS)), logits(truth.forward(TOKENS)), atol=1e-4)
    rows = np.array([TOKENS, TOKENS[::-1]])
    want = [step.tolist() for step in truth.generate(rows, max_new_tokens=4)]
    assert [step.tolist() for step in session.generate(rows, max_new_tokens=4)] == want
    for want_ in (Want(logits="all"), Want(state=True), Want(trace=("*",))):
        with pytest.raises(Unsupported, match="has no ability"):
            session.forward(TOKENS, want=want_)


def greedily(session: Session, count: int, stop: tuple[int, ...] = ()) -> list[int]:
    return [int(step[0]) for step in session.generate(TOKENS, max_new_tokens=count, stop=stop)]


@pytest.mark.parametrize("abilities", ["generate", "state", "", "generate,state"])
def test_generation_is_the_same_by_every_way(opened: Opened, truth: Session, abilities: str) -> None:
    session, free = opened(abilities), greedily(truth, 6)
    for count in (0, 1, 2, 6):
        assert greedily(session, count) == free[:count]
    for stop in {*free, 0}:
        assert greedily(session, 6, (stop,)) == greedily(truth, 6, (stop,))
    lowest = session.generate(TOKENS, sampler=lambda z: z.argmin(axis=-1).astype(np.int64), max_new_tokens=1)
    assert int(next(lowest)[0]) == int(logits(truth.forward(TOKENS)).argmin())


def test_tokens_of_a_port_s_own_tokenizer(opened: Opened) -> None:
    tokenizer = opened("tokenizer").tokenizer
    assert tokenizer is not None
    assert tokenizer.encode("\0\1\6") == [0, 1, 6]
    assert tokenizer.decode_bytes([6, 0]) == b"\6\0"
    with pytest.raises(BackendError, match="numpy port, encode: the tokens hold id 72, but the vocabulary ends at 6"):
        tokenizer.encode("H")


def test_states_are_released_when_nobody_refers_to_them(opened: Opened, tmp_path: Path) -> None:
    log = tmp_path / "log"
    session = opened("state", "--log", str(log))
    kept = session.forward(TOKENS, want=Want(state=True)).state
    for _ in range(3):
        kept = session.forward([1], kept, Want(state=True)).state
    gc.collect()
    session.forward([1], kept)
    released = [json.loads(line)["params"]["state"] for line in log.read_text().splitlines() if "release" in line]
    assert sorted(released) == [1, 2, 3]


def test_a_state_is_used_by_its_own_rows_and_its_own_life(opened: Opened) -> None:
    session = opened("state")
    handle = session.forward([TOKENS, TOKENS], want=Want(state=True)).state
    with pytest.raises(BackendError, match="a state of 2 rows cannot go on with 1"):
        session.forward([1], handle)
    os.kill(session._client._program._child.pid, signal.SIGKILL)  # type: ignore[attr-defined]
    with pytest.raises(BackendError, match="was killed by SIGKILL"):
        session.forward([1])
    session.forward([1])  # a new life
    for use in (lambda: session.forward([[1], [1]], handle), lambda: session.export_state(handle)):
        with pytest.raises(BackendError, match="the state was lost when the program died"):
            use()


@pytest.mark.parametrize("abilities", [ALL, "logits-all,state"])
def test_an_empty_call_there_and_back_is_timed(opened: Opened, abilities: str) -> None:
    session = opened(abilities)
    trip = session.round_trip()
    assert trip is not None
    assert 0 < trip < 1
    assert session.forward(TOKENS).logits is not None  # it goes on as before


def test_without_states_there_is_no_empty_call(opened: Opened, truth: Session) -> None:
    assert opened("logits-all").round_trip() is None
    assert truth.round_trip() is None


def test_logits_that_are_not_fetched_are_not_sent(opened: Opened) -> None:
    out = opened("state").forward(TOKENS, want=Want(state=True, fetch=False))
    assert out.logits is None
    assert out.state is not None


REQUESTS = {
    "hello": r'\{"protocol":1\}',
    "load": r'\{"path":"[^"\\]+/model\.safetensors","dtype":"f32","device":"cpu","threads":1,"scratch":"[^"\\]+"\}',
    "forward": r'\{"tokens":\[[0-9,]+\],"state":(null|[0-9]+),"logits":"(none|last|all)","keep":(true|false),'
    r'"trace":\[("[^"\\]+"(,"[^"\\]+")*)?\],"fetch":(true|false)\}',
    "release": r'\{"state":[0-9]+\}',
    "export_state": r'\{"state":[0-9]+\}',
    "import_state": r"\{" + ",".join(rf'"{n}":ARRAY' for n in ("att_shift", "wkv", "ffn_shift")) + r"\}",
    "generate": r'\{"tokens":\[[0-9,]+\],"max_new_tokens":[0-9]+,"stop":\[[0-9,]*\]\}',
    "encode": r'\{"bytes":"[A-Za-z0-9+/=]*"\}',
    "decode": r'\{"tokens":\[[0-9,]*\]\}',
    "shutdown": r"\{\}",
}
"""What docs/protocol.md promises to those who read requests without a JSON library."""

ARRAY = r'\{"dtype":"f32","shape":\[[0-9,]+\],"base64":"[A-Za-z0-9+/=]*"\}'


def test_requests_have_the_promised_form_byte_by_byte(opened: Opened, tmp_path: Path) -> None:
    log = tmp_path / "log"
    session = opened("logits-all,state,trace,generate,tokenizer", "--log", str(log))
    out = session.forward([TOKENS, TOKENS], want=EVERYTHING)
    session.forward([[1], [1]], session.import_state(session.export_state(out.state)))
    del out
    assert list(session.generate(TOKENS, max_new_tokens=3, stop=(0, 6)))
    assert session.tokenizer is not None
    session.tokenizer.encode("\0\1")
    session.tokenizer.decode_bytes([])
    session.close()
    seen = set()
    for number, line in enumerate(log.read_text(encoding="utf-8").splitlines(), 1):
        method = json.loads(line)["method"]
        params = REQUESTS[method].replace("ARRAY", ARRAY)
        assert re.fullmatch(rf'\{{"jsonrpc":"2\.0","id":{number},"method":"{method}","params":{params}\}}', line), line
        seen.add(method)
    assert seen == set(REQUESTS)


def test_a_file_that_serves_is_linked_and_any_other_is_written(weights: Weights, tmp_path: Path) -> None:
    def at(path: Path | None, name: str) -> Path:
        folder = tmp_path / name
        folder.mkdir()
        return provide(Weights(weights.facts, weights.tensors, path), folder)

    own = save(weights, tmp_path / "checkpoint.safetensors", "safetensors")
    assert at(own, "linked").resolve() == own
    assert not at(None, "made by code").is_symlink()
    assert not at(save(weights, tmp_path / "checkpoint.pth", "pth"), "pth").is_symlink()
    assert not at(save(weights, tmp_path / "hf", "hf") / "model.safetensors", "hf names").is_symlink()
    wide = save(weights, tmp_path / "wide.safetensors", "safetensors", "f64")
    assert not at(wide, "wide").is_symlink()


def test_float64_is_written_as_float32(tmp_path: Path) -> None:
    import torch

    wide = as_weights(random_rwkv7(C=8, N=4, L=1, V=5, dtype=torch.float64))
    raw = provide(wide, tmp_path).read_bytes()
    assert b'"F32"' in raw
    assert b'"F64"' not in raw


@given(
    st.sampled_from(["f64", "f32", "f16"]),
    arrays.array_shapes(max_dims=3, max_side=4),
    st.integers(0, 2**32 - 1),
)
def test_arrays_come_back_in_every_format(kind: str, shape: tuple[int, ...], seed: int) -> None:
    import base64

    stored = {"f64": "<f8", "f32": "<f4", "f16": "<f2"}[kind]
    array = np.random.default_rng(seed).standard_normal(shape).astype(stored)
    data = {"dtype": kind, "shape": list(shape), "base64": base64.b64encode(array.tobytes()).decode()}
    got = wire.Files(Path()).array(data, [-1] * len(shape), "x")
    np.testing.assert_array_equal(got, array)
    assert got.dtype == (np.float64 if kind == "f64" else np.float32)


def test_bfloat16_is_the_upper_half_of_float32() -> None:
    data = {"dtype": "bf16", "shape": [2], "base64": "gD9AwA=="}
    assert wire.Files(Path()).array(data, (2,), "x").tolist() == [1.0, -3.0]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ({"dtype": "f32", "shape": [1.5], "base64": ""}, "a length of x is 1.5"),
        ({"dtype": "f32", "shape": [True], "base64": ""}, "a length of x is True"),
        ({"dtype": "f32", "shape": "1", "base64": ""}, "shape '1', where a list is due"),
        ({"dtype": "f32", "shape": [1]}, "neither base64 nor a file"),
        ({"dtype": "f32", "shape": [1], "base64": 5}, "where base64 is due"),
        ({"dtype": "f32", "shape": [2], "file": "raw.bin", "offset": -1}, "the offset of x is -1"),
        ({"dtype": "f32", "shape": [2], "file": "raw.bin", "offset": 2}, "6 bytes, but f32 of shape"),
        ({"file": "raw.bin", "tensor": "x"}, "raw.bin is no safetensors file"),
        ({"file": "good.safetensors", "tensor": "y"}, "holds no tensor 'y'"),
        ({"file": "good.safetensors", "tensor": "i"}, "number format 'i32'"),
        ({"dtype": "f32", "shape": [1], "file": "model.safetensors"}, "does not lie in the folder"),
    ],
)
def test_a_wrong_array_is_refused_in_words(tmp_path: Path, data: Any, words: str) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "raw.bin").write_bytes(b"12345678")
    (tmp_path / NAME).write_bytes(b"12345678")
    save_file({"x": np.zeros(1, "f4"), "i": np.zeros(1, "i4")}, tmp_path / "good.safetensors")
    files = wire.Files(tmp_path)
    with pytest.raises(BackendError, match=words):
        files.array(data, None, "x")
    files.clear()
    assert (tmp_path / NAME).exists()


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (b"[1]", "where an object with id"),
        (b'{"id":1,"result":[1]}', "no object as its result"),
        (b'{"id":true,"result":{}}', "answered id True"),
        (b'{"id":1,"result":{"x":NaN}}', "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b'{"id":1,"error":"flat"}', "^flat$"),
    ],
)
def test_a_wrong_line_is_refused_in_words(line: bytes, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        wire.answer(line, 1)


def test_lists_of_ids_are_checked() -> None:
    assert wire.ids([0, 4], "the tokens", 5) == [0, 4]
    for value in (None, [5], [-1], [True], ["a"], [1.0]):
        with pytest.raises(BackendError, match="the tokens"):
            wire.ids(value, "the tokens", 5)


def test_a_state_from_elsewhere_is_taken(opened: Opened, truth: Session) -> None:
    session = opened("state")
    state: State = truth.export_state(truth.forward(TOKENS, want=Want(state=True)).state)
    got = session.forward([2], session.import_state(state))
    np.testing.assert_allclose(logits(got), logits(truth.forward([*TOKENS, 2])), atol=1e-4)
