"""A program on a pseudo-terminal, driven as a person would: type, read, press Ctrl-C."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Self

ROOT = Path(__file__).parents[2]


def _heeding() -> None:
    """Ctrl-C means what it means on a terminal, also where the tests run in the background and ignore it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Typist:
    """Starts `python -m harness ARGUMENTS` on a terminal of its own; everything it wrote is in `text`."""

    def __init__(self, *arguments: str, timeout: float = 120.0, echo: bool = False) -> None:
        ours, theirs = pty.openpty()
        if not echo:
            settings = termios.tcgetattr(theirs)
            settings[3] &= ~termios.ECHO
            termios.tcsetattr(theirs, termios.TCSANOW, settings)
        environment = {**os.environ, "TERM": "xterm", "OMP_NUM_THREADS": "1", "PYTHONUTF8": "1"}
        self.program = subprocess.Popen(
            [sys.executable, "-m", "harness", *arguments],
            cwd=ROOT, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True,
            preexec_fn=_heeding,  # noqa: PLW1509 - no other thread runs here
        )  # fmt: skip
        os.close(theirs)
        self.master, self.timeout = ours, timeout
        self.raw, self.at = b"", 0

    @property
    def text(self) -> str:
        """What it wrote so far, without colours."""
        return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", self.raw.decode("utf-8", "replace")).replace("\r\n", "\n")

    def wait(self, text: str) -> str:
        """Read until `text` comes behind what was waited for before; returns what came until then."""
        end = time.monotonic() + self.timeout
        while text not in self.text[self.at :]:
            ready, _, _ = select.select([self.master], [], [], max(0.0, end - time.monotonic()))
            chunk = self._read() if ready else b""
            assert chunk, f"no {text!r} in what came: {self.text[self.at :]!r}"
            self.raw += chunk
        start, self.at = self.at, self.text.index(text, self.at) + len(text)
        return self.text[start : self.at - len(text)]

    def _read(self) -> bytes:
        try:
            return os.read(self.master, 65536)
        except OSError:  # the program has gone, and its terminal with it
            return b""

    def type(self, line: str) -> None:
        """Type a line."""
        os.write(self.master, line.encode() + b"\n")

    def interrupt(self) -> None:
        """Press Ctrl-C."""
        self.program.send_signal(signal.SIGINT)

    def interrupt_until(self, text: str) -> None:
        """Press Ctrl-C until it is answered by `text`.

        Between the moment in which Python shows a prompt and that in which it waits for keys, it notes a signal and
        goes on waiting; a person presses again.
        """
        patient, self.timeout = self.timeout, 2.0
        for _ in range(30):
            self.interrupt()
            try:
                self.wait(text)
                break
            except AssertionError:
                continue
        self.timeout = patient
        assert text in self.text, f"no answer to Ctrl-C: {self.text!r}"

    def leave(self) -> int:
        """End of input; returns the exit code."""
        os.write(self.master, b"\x04")
        return self.program.wait(self.timeout)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.program.poll() is None:
            self.program.kill()
            self.program.wait()
        os.close(self.master)
