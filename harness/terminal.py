"""What the commands generate and chat write to a terminal: colours, and no control characters from a model."""

import signal
import sys
from types import FrameType, TracebackType
from typing import Self

STYLES = {"bold": "1", "dim": "2", "user": "1;36", "model": "1;32", "error": "31"}
"""Name -> what ANSI calls it."""

PICTURES = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {127: 0x2421}
"""Control characters -> pictures of them: a model's output must not move the cursor or rename the window."""

PICTURES |= dict.fromkeys(range(0x80, 0xA0), 0xFFFD)


class Screen:
    """stdout, with colours and pictures where it is a terminal, as it is in a pipe.

    Attributes:
        live: whether it is a terminal.
    """

    def __init__(self) -> None:
        self.live = sys.stdout.isatty()

    def write(self, text: str, style: str = "") -> None:
        """Write now; a model's text may be anything, also what the terminal's encoding lacks."""
        if self.live:
            text = self.styled(text.translate(PICTURES), style)
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write(text.encode(encoding, "replace").decode(encoding))
        sys.stdout.flush()

    def line(self, text: str = "", style: str = "") -> None:
        """Write a line."""
        self.write(text, style)
        self.write("\n")

    def aside(self, text: str, style: str = "dim") -> None:
        """A remark for people: on a terminal only."""
        if self.live:
            self.line(text, style)

    def styled(self, text: str, style: str) -> str:
        """The text in a style, on a terminal."""
        return f"\x1b[{STYLES[style]}m{text}\x1b[0m" if style and self.live else text


class Interrupt:
    """Ctrl-C while it is entered: the first asks for an end, a second one breaks. Call it to know whether one came."""

    def __init__(self) -> None:
        self.asked = False

    def __call__(self) -> bool:
        """Whether Ctrl-C was pressed since it was entered."""
        return self.asked

    def __enter__(self) -> Self:
        self.asked = False
        self._before = signal.signal(signal.SIGINT, self._hit)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.signal(signal.SIGINT, self._before)

    def _hit(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
