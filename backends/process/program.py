"""A child process that is asked line by line, and what can happen to it, in words.

Nothing here knows the protocol. The program runs in a process group of its own, which is killed as a whole; a guard
kills it when this process dies without having had the time to.
"""

import os
import selectors
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress

from backends.errors import BackendError

CHUNK = 1 << 18
LOG_BYTES = 8192
"""Of the log that are kept; `LOG_LINES` of them are quoted."""

LOG_LINES = 3
GRACE = 1.0
"""Seconds between the end of a program's output and its own end, after which it is killed."""

TICK = 0.25
"""Seconds after which a silent program is looked at: it may be dead while a child of its holds the pipe open."""

GUARD = 'read -r _ || kill -s KILL -- "-$1"'
"""Waits for a line, which says that all is well; if the pipe ends without one, its writer has died."""


class ProgramError(BackendError):
    """A program that died, hung, or wrote what nobody can read; it has been killed."""


class Program:
    """A running program.

    Args:
        command: the program and its arguments.

    Raises:
        ProgramError: there is no such program, or it cannot be started.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.name = os.path.basename(command[0])  # noqa: PTH119 - a command, not a path
        self._child = _started(command)
        self._guard = _guarded(self._child.pid)
        self._buffer, self._log = bytearray(), bytearray()
        self._sent = self._dead = False
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            assert pipe is not None
            os.set_blocking(pipe.fileno(), False)

    def ask(self, line: bytes, seconds: float, most: float, what: str) -> bytes:
        """Write a line, wait for one.

        Args:
            line: without its end.
            seconds: until the answer has to be complete.
            most: bytes that it may have.
            what: the request in a word, for errors.

        Returns:
            The answer without its end.

        Raises:
            ProgramError: it died, hung, or went beyond the limit; it has been killed.
        """
        try:
            if self._buffer:
                raise ProgramError(f"wrote what nobody had asked for: {_shown(self._buffer)}")
            return self._exchange(line + b"\n", time.monotonic() + seconds, seconds, most)
        except ProgramError as error:
            self.kill()
            raise ProgramError(f"{self.name} {error}, asked for {what}.{self._quoted_log()}") from None

    def _exchange(self, out: bytes, deadline: float, seconds: float, most: float) -> bytes:
        view, scanned = memoryview(out), 0
        for event in self._events(deadline):
            if event == "stdin":
                view = self._write(view)
            elif event == "stdout":
                ended = not self._read()
                end = self._buffer.find(b"\n", scanned)
                if (end if end >= 0 else len(self._buffer)) > most:
                    raise ProgramError(f"wrote a line of more than {most:.0f} bytes")
                if end >= 0:
                    answer = bytes(self._buffer[:end])
                    del self._buffer[: end + 1]
                    return answer.removesuffix(b"\r")
                if ended:
                    raise ProgramError(self._how_it_ended())
                scanned = len(self._buffer)
        if self._child.poll() is not None:
            raise ProgramError(self._how_it_ended())
        got = f"only {len(self._buffer)} bytes of a line, {_shown(self._buffer)}," if self._buffer else "no answer"
        raise ProgramError(f"gave {got} within {seconds:g} s")

    def _events(self, deadline: float) -> Iterator[str]:
        """What is ready, until the deadline or until the child is dead and silent."""
        with selectors.DefaultSelector() as selector:
            for name in ("stdin", "stdout", "stderr"):
                kind = selectors.EVENT_WRITE if name == "stdin" else selectors.EVENT_READ
                selector.register(getattr(self._child, name), kind, name)
            while (left := deadline - time.monotonic()) > 0:
                ready = selector.select(min(left, TICK))
                if not ready and self._child.poll() is not None:
                    return
                for key, _ in ready:
                    yield key.data
                    if (key.data == "stderr" and not self._read_log()) or (key.data == "stdin" and self._sent):
                        selector.unregister(key.fileobj)

    def _write(self, view: memoryview) -> memoryview:
        """Write as much as fits; what is left. A reader that is gone is met where its output ends."""
        assert self._child.stdin is not None
        try:
            view = view[os.write(self._child.stdin.fileno(), view[:CHUNK]) :]
        except BlockingIOError:
            pass
        except BrokenPipeError:
            view = view[:0]
        self._sent = not view
        return view

    def _read(self) -> int:
        """Take what stdout has; 0 at its end."""
        assert self._child.stdout is not None
        with suppress(BlockingIOError):
            chunk = os.read(self._child.stdout.fileno(), CHUNK)
            self._buffer += chunk
            return len(chunk)
        return 1

    def _read_log(self) -> int:
        """Take what stderr has, keep its end; 0 at its end."""
        assert self._child.stderr is not None
        with suppress(BlockingIOError):
            chunk = os.read(self._child.stderr.fileno(), CHUNK)
            self._log += chunk
            del self._log[:-LOG_BYTES]
            return len(chunk)
        return 0

    def _how_it_ended(self) -> str:
        half = f" in the middle of a line, {_shown(self._buffer)}" if self._buffer else ""
        try:
            code = self._child.wait(GRACE)
        except subprocess.TimeoutExpired:
            return f"closed its stdout{half} and went on running"
        if code < 0:
            return f"was killed by {_signal(-code)}{half}"
        return f"exited with code {code}{half}"

    def _quoted_log(self) -> str:
        """The end of the log as a sentence; empty if there is none."""
        lines = [line.strip() for line in self._log.decode("utf-8", "replace").splitlines() if line.strip()]
        kept = [_printable(line)[:200] for line in lines[-LOG_LINES:]]
        return f" Its log ends: {' | '.join(kept)}" if kept else ""

    def finish(self, seconds: float) -> None:
        """Close its stdin, give it the time to exit, then kill what is left."""
        assert self._child.stdin is not None
        self._child.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(seconds)
        self.kill()

    def kill(self) -> None:
        """Kill the whole group and give everything back; may be called twice."""
        if self._dead:
            return
        self._dead = True
        with suppress(ProcessLookupError, PermissionError):  # macOS answers "not permitted" for a group of zombies
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        while self._read_log():
            pass
        _dismissed(self._guard)
        for pipe in (self._child.stdin, self._child.stdout, self._child.stderr):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()


def _started(command: Sequence[str]) -> subprocess.Popen[bytes]:
    if shutil.which(command[0]) is None:
        there = os.path.exists(command[0])  # noqa: PTH110
        reason = "is not an executable program (chmod +x?)" if there else "is no program on this machine"
        raise ProgramError(f"{command[0]} {reason}; a backend is written 'process:PROGRAM ARGUMENT ...'.")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    try:
        return subprocess.Popen(command, **pipes, bufsize=0, start_new_session=True)  # type: ignore[call-overload, no-any-return]  # noqa: S603
    except OSError as error:  # for instance a script without its first line
        raise ProgramError(f"{command[0]} cannot be started: {error.strerror}.") from None


def _guarded(group: int) -> "subprocess.Popen[bytes]":
    command = ["/bin/sh", "-c", GUARD, "guard", str(group)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, bufsize=0, start_new_session=True)  # noqa: S603


def _dismissed(guard: "subprocess.Popen[bytes]") -> None:
    assert guard.stdin is not None
    with suppress(BrokenPipeError):
        guard.stdin.write(b"done\n")
    guard.stdin.close()
    guard.wait()


def _signal(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _shown(raw: bytes | bytearray) -> str:
    """The beginning of what was written, quoted."""
    text = _printable(bytes(raw[:60]).decode("utf-8", "replace"))
    return f'"{text}..."' if len(raw) > 60 else f'"{text}"'


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else " " for c in text)
