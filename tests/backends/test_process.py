"""The fault drill: ten and more ways in which a program can misbehave, each a clear outcome, and nothing left over."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backends import registry
from backends.base import Output, Want
from backends.errors import BackendError, UsageError
from backends.process import limits
from backends.process.client import DEATHS
from backends.process.program import Program, ProgramError
from backends.process.session import ProcessSession
from backends.weights import Weights
from tests.backends.random_model import as_weights, random_rwkv7

HERE = Path(__file__).parent
SHORT = "hello=2,load=2,call=0.5,line=2000000"
"""Limits of these tests, in seconds and bytes."""

Drill = Callable[[str], ProcessSession]


@pytest.fixture(scope="module")
def weights() -> Weights:
    return as_weights(random_rwkv7(C=8, N=4, L=2, V=5))


@pytest.fixture
def pids(tmp_path: Path) -> Iterator[Path]:
    """The file in which programs leave their process ids; afterwards none of them may live, nor a child of ours."""
    before = children()
    path = tmp_path / "pids"
    path.touch()
    yield path
    for pid in map(int, path.read_text().split()):
        assert gone(pid), f"process {pid} is left over"
    assert children() <= before


def children() -> set[int]:
    """Process ids whose parent is this process, the dead that nobody waited for included."""
    if not Path("/proc/self/stat").exists():
        return set()
    found = set()
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == os.getpid():
            found.add(int(path.parent.name))
    return found


def gone(pid: int, seconds: float = 5.0) -> bool:
    """Whether a process ends within that time; one that waits for its parent to take notice has ended."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            os.kill(pid, 0)
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def drill(weights: Weights, pids: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Drill]:
    monkeypatch.setenv(limits.VARIABLE, SHORT)
    opened: list[ProcessSession] = []

    def start(mode: str, options: str = "") -> ProcessSession:
        command = shlex.join([sys.executable, "-S", str(HERE / "drill.py"), mode, str(pids)])
        session = registry.open_session(registry.parse(f"process:{command}{options}"), weights, 1)
        assert isinstance(session, ProcessSession)
        opened.append(session)
        return session

    yield start
    for session in opened:
        session.close()


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("crash", r"exited with code 3.*asked for forward.*Its log ends: loading \| matrix 3 is missing \| panic!"),
        ("signal", "was killed by SIGSEGV"),
        ("hang", r"gave no answer within 0\.5 s"),
        ("hang-deaf", r"gave no answer within 0\.5 s"),
        ("garbage", 'wrote what is no JSON: "Loading model: 100%"'),
        ("half", r'exited with code 0 in the middle of a line, "\{"jsonrpc":"2\.0","id":"'),
        ("half-hang", r"gave only 22 bytes of a line, .* within 0\.5 s"),
        ("wrong-id", "answered id 10, where 3 is due"),
        ("no-result", "no object as its result"),
        ("closed", "closed its stdout and went on running"),
        ("huge", "wrote a line of more than 2000000 bytes"),
        ("grandchild", "exited with code 4"),
    ],
)
def test_what_kills_a_program_is_said_and_the_next_call_starts_it_anew(
    drill: Drill, pids: Path, mode: str, words: str
) -> None:
    session = drill(mode)
    for starts in (1, 2):  # it misbehaves again: the same words, from a program of its own
        begun = time.monotonic()
        with pytest.raises(ProgramError, match=words):
            session.forward([1])
        assert time.monotonic() - begun < 4
        if mode != "grandchild":
            assert len(pids.read_text().split()) == starts


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("wrong-shape", r"drill, forward: logits has shape \(1, 4\), where \(1, 5\) is due"),
        ("transposed", r"shape \(5, 1\), where \(1, 5\)"),
        ("short", r"20 bytes, but f32 of shape \(1, 6\) has 24"),
        ("no-logits", "logits: 'None', where an array is due"),
        ("no-base64", "logits is no base64"),
        ("odd-dtype", "number format 'f8'; known are f64, f32, bf16, f16"),
        ("number", "'3', where an array is due"),
        ("outside", "does not lie in the folder"),
        ("absent", "there is no file 'nothing.bin'"),
        ("odd-trace", "the trace holds what nobody asked for"),
        ("error", "answered forward with an error: out of memory"),
    ],
)
def test_a_wrong_answer_is_an_error_and_the_program_lives_on(drill: Drill, pids: Path, mode: str, words: str) -> None:
    session = drill(mode)
    for _ in range(DEATHS + 1):
        with pytest.raises(BackendError, match=words) as caught:
            session.forward([1])
        assert not isinstance(caught.value, ProgramError)
    assert len(pids.read_text().split()) == 1


def test_not_a_number_passes_through_to_the_judge(drill: Drill) -> None:
    assert np.isnan(logits(drill("nan").forward([1]))).all()


def test_a_handle_has_to_be_a_number_from_1_on(drill: Drill) -> None:
    with pytest.raises(BackendError, match="the state's handle is 0, where a whole number from 1 on is due"):
        drill("no-handle").forward([1], want=Want(state=True))


def test_what_nobody_asked_for_is_met_at_the_next_call(drill: Drill) -> None:
    session = drill("chatty")
    assert logits(session.forward([1])).shape == (1, 1, 5)
    with pytest.raises(ProgramError, match=r"wrote what (nobody had asked for|is no JSON): .*Done in 3 ms"):
        session.forward([1])


def test_a_program_that_dies_once_is_started_again(drill: Drill, pids: Path) -> None:
    session = drill("once")
    with pytest.raises(ProgramError, match="exited with code 7"):
        session.forward([1])
    assert logits(session.forward([1])).shape == (1, 1, 5)
    assert len(pids.read_text().split()) == 2


def test_a_program_that_always_dies_is_given_up(drill: Drill, pids: Path) -> None:
    session = drill("crash")
    for _ in range(DEATHS):
        with pytest.raises(ProgramError, match="exited with code 3"):
            session.forward([1])
    with pytest.raises(BackendError, match="died 3 times in a row without an answer: given up"):
        session.forward([1])
    assert len(pids.read_text().split()) == DEATHS


def test_a_slow_start_is_waited_for_up_to_the_limit(drill: Drill, monkeypatch: pytest.MonkeyPatch) -> None:
    assert logits(drill("late-start").forward([1])).shape == (1, 1, 5)
    monkeypatch.setenv(limits.VARIABLE, "hello=0.3")
    with pytest.raises(ProgramError, match=r"gave no answer within 0\.3 s, asked for hello"):
        drill("slow-start")


@pytest.mark.parametrize(
    ("mode", "options", "words"),
    [
        ("crash-load", "", "exited with code 9, asked for load"),
        ("other-sizes", "", "drill, load: read n_layer 12 from the checkpoint, which has 2"),
        ("protocol-2", "", r"hello: speaks protocol 2; this is 1, see docs/protocol\.md"),
        ("nameless", "", "states no name"),
        ("odd-ability", "", "states the ability 'logits_all'; known are logits-all"),
        ("abilities-word", "", "states abilities 'state', where a list of strings is due"),
        ("only-bf16", "", "drill serves number format bf16, not f32; write 'process:...@bf16'"),
        ("only-cuda", "", "drill serves device cuda, not cpu"),
        ("only-v6", "", "drill serves RWKV 6, not 7"),
        ("fine", "@bf16", "drill serves number format f32, not bf16"),
    ],
)
def test_what_does_not_fit_is_refused_at_the_start(drill: Any, mode: str, options: str, words: str) -> None:
    with pytest.raises(BackendError, match=words):
        drill(mode, options)


def test_a_program_that_comes_back_as_another_is_refused(drill: Drill) -> None:
    session = drill("moody")
    with pytest.raises(ProgramError):
        session.forward([1])
    with pytest.raises(BackendError, match="states other things than at its first start"):
        session.forward([1])


@pytest.mark.parametrize(
    ("command", "error", "words"),
    [
        ("./no-such-port", BackendError, r"\./no-such-port is no program on this machine"),
        ("'unfinished", UsageError, "cannot be split: No closing quotation"),
        ("", UsageError, "takes a command"),
    ],
)
def test_what_is_no_program_is_said(weights: Weights, command: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        registry.open_session(registry.parse(f"process:{command}"), weights)


def test_a_file_that_is_no_program_is_said(weights: Weights, tmp_path: Path) -> None:
    port = tmp_path / "port"
    port.write_text("neither a script nor a binary\n")
    port.chmod(0o644)
    with pytest.raises(BackendError, match="port is not an executable program"):
        registry.open_session(registry.parse(f"process:{port}"), weights)
    port.chmod(0o755)
    with pytest.raises(BackendError, match="cannot be started: Exec format error"):
        registry.open_session(registry.parse(f"process:{port}"), weights)


@pytest.mark.parametrize("text", ["hello=0", "hello=x", "speed=3", "call=inf", "hello"])
def test_limits_are_checked(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(limits.VARIABLE, text)
    with pytest.raises(UsageError, match=f"{limits.VARIABLE} holds '{text}'; it takes NAME=NUMBER"):
        limits.from_environment()


def test_limits_that_are_left_out_keep_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(limits.VARIABLE, "call=7,line=9")
    found = limits.from_environment()
    assert (found.seconds("hello"), found.seconds("forward"), found.line) == (30, 7, 9)
    monkeypatch.delenv(limits.VARIABLE)
    assert limits.from_environment() == limits.Limits()


@pytest.mark.parametrize("mode", ["fine", "hang-deaf"])
def test_killing_the_harness_leaves_nothing_behind(mode: str, pids: Path) -> None:
    """Not even a program that never reads that its stdin has ended."""
    code = f"""
import sys
from backends.process.program import Program
program = Program([sys.executable, "-S", {str(HERE / "drill.py")!r}, {mode!r}, {str(pids)!r}])
forward = b'{{"id":1,"method":"forward"}}' if {mode!r} != "fine" else b'{{"id":1,"method":"hello"}}'
print("up", flush=True)
program.ask(forward, 60, 1e6, "forward")
import time
time.sleep(3600)
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=HERE.parents[1], stdout=subprocess.PIPE) as harness:
        assert harness.stdout is not None
        assert harness.stdout.readline() == b"up\n"
        end = time.monotonic() + 10
        while not pids.read_text() and time.monotonic() < end:
            time.sleep(0.02)
        time.sleep(0.3)  # until it hangs in forward
        harness.send_signal(signal.SIGKILL)
    assert pids.read_text()  # the fixture looks whether it is gone


def test_a_request_larger_than_the_pipe_does_not_deadlock_with_its_answer() -> None:
    code = (
        "import sys\nfor line in sys.stdin: sys.stderr.write('e' * 300000); sys.stdout.write(line); sys.stdout.flush()"
    )
    program = Program([sys.executable, "-S", "-c", code])
    try:
        line = b"x" * 3_000_000
        assert program.ask(line, 20, 1e8, "echo") == line
        assert program.ask(b"again", 20, 1e8, "echo") == b"again"
    finally:
        program.kill()
        program.kill()


def test_a_program_that_reads_nothing_cannot_block_the_writer() -> None:
    program = Program(["sleep", "3600"])
    with pytest.raises(ProgramError, match=r"sleep gave no answer within 0\.3 s, asked for much"):
        program.ask(b"x" * 3_000_000, 0.3, 1e8, "much")


def test_a_program_that_stays_after_shutdown_is_killed(weights: Weights, tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    code = f"""
import json, os, pathlib, sys, time
pathlib.Path({str(pid)!r}).write_text(str(os.getpid()))
for line in sys.stdin:
    ident = json.loads(line)["id"]
    print(json.dumps({{"jsonrpc": "2.0", "id": ident, "result": {{"protocol": 1, "name": "sticky"}}}}), flush=True)
time.sleep(3600)
"""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("backends.process.client.FAREWELL", 0.2)
        command = shlex.join([sys.executable, "-S", "-c", code])
        session = registry.open_session(registry.parse(f"process:{command}"), weights)
        session._client.close(0.2)  # type: ignore[attr-defined]
        session.close()
    assert gone(int(pid.read_text()))


def logits(out: Output) -> Any:
    assert out.logits is not None
    return out.logits
