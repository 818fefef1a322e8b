"""Asks a program by the protocol; starts it anew when it died."""

from collections.abc import Callable, Sequence
from typing import Any

from backends.errors import BackendError
from backends.process import wire
from backends.process.limits import Limits
from backends.process.program import Program, ProgramError

DEATHS = 3
"""In a row, without an answered call in between, after which a program is given up."""

FAREWELL = 2.0
"""Seconds for `shutdown`, and again until the program has exited."""

Ask = Callable[[str, dict[str, Any]], dict[str, Any]]


class Client:
    """A program that answers requests, one after the other.

    Args:
        command: the program and its arguments.
        limits: of its answers.
        greet: brings a fresh program to the point where it takes calls.
    """

    def __init__(self, command: Sequence[str], limits: Limits, greet: Callable[[Ask], None]) -> None:
        self.command, self.limits, self.life = command, limits, 0
        self._greet = greet
        self._program: Program | None = None
        self._ident = self._deaths = 0

    @property
    def running(self) -> bool:
        """Whether the program lives."""
        return self._program is not None

    def ask(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        """The answer to one request; a dead program is started first.

        Raises:
            BackendError: the program answered with an error, or was given up.
            ProgramError: it died, hung or broke the protocol; it has been killed.
        """
        if self._program is None:
            self.start()
        result = self._asked(method, params)
        self._deaths = 0
        return result

    def start(self) -> None:
        """Start the program and greet it."""
        if self._deaths >= DEATHS:
            raise BackendError(f"{self.command[0]} died {DEATHS} times in a row without an answer: given up.")
        self.life += 1
        self._ident = 0
        try:
            self._program = Program(self.command)
            self._greet(self._asked)
        except BackendError as error:
            if not isinstance(error, ProgramError):
                self._deaths += 1
            self.close(0)
            raise

    def _asked(self, method: str, params: dict[str, Any]) -> dict[str, Any]:
        assert self._program is not None
        self._ident += 1
        line, name = wire.request(self._ident, method, params), self._program.name
        try:
            answer = self._program.ask(line, self.limits.seconds(method), self.limits.line, method)
            return wire.answer(answer, self._ident)
        except (ProgramError, wire.Malformed) as error:
            self._deaths += 1
            self.close(0)
            if isinstance(error, wire.Malformed):
                raise ProgramError(f"{name} {error}, asked for {method}. It was killed.") from None
            raise
        except BackendError as error:
            raise BackendError(f"{name} answered {method} with an error: {error}") from None

    def close(self, farewell: float = FAREWELL) -> None:
        """End the program: politely for that many seconds, then not; may be called twice."""
        program, self._program = self._program, None
        if program is None:
            return
        if farewell:
            try:
                line = wire.request(self._ident + 1, "shutdown", {})
                program.ask(line, farewell, self.limits.line, "shutdown")
            except ProgramError:
                return
            program.finish(farewell)
        program.kill()
