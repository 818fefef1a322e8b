"""Bytes of tokens to text while they come: half characters and possible stop texts are held back."""

import codecs
from collections.abc import Sequence

from backends.errors import UsageError


class TextStream:
    """Text of a growing sequence of bytes, cut at the first stop text.

    A stop text may be spread over several tokens, and a token may hold the end of the answer, a stop text and more.
    So bytes that may be the beginning of a stop text wait until they are not. Bytes that are no UTF-8 become U+FFFD,
    as soon as it is certain that no further byte completes them.

    Args:
        stops: texts that end it, none empty.

    Attributes:
        stop: the stop text that was met; empty before.
        shown: how many bytes the text that was given out stands for.
    """

    def __init__(self, stops: Sequence[str] = ()) -> None:
        if not all(stops):
            raise UsageError("a stop text must not be empty.")
        self._stops = {stop.encode(): stop for stop in stops}
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = b""
        self._fed = 0
        self.stop = ""
        self.shown = 0

    def push(self, data: bytes) -> str:
        """Add the bytes of a token.

        Returns:
            The text that is certain now; empty once a stop text was met.
        """
        if self.stop:
            return ""
        self._held += data
        found = [(at + len(stop), at, stop) for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if found:
            _, at, stop = min(found)  # the one that is complete first, however the bytes are cut
            self.stop = self._stops[stop]
            return self._decoded(at) + self._decoder.decode(b"", final=True)
        waiting = max((_overlap(self._held, stop) for stop in self._stops), default=0)
        return self._decoded(len(self._held) - waiting)

    def finish(self) -> str:
        """No more bytes come: what waited for a stop text is text after all; half a character stays unsaid."""
        return "" if self.stop else self._decoded(len(self._held))

    def _decoded(self, count: int) -> str:
        ready, self._held = self._held[:count], self._held[count:]
        text = self._decoder.decode(ready)
        self._fed += count
        self.shown = self._fed - (0 if self.stop else len(self._decoder.getstate()[0]))
        return text


def _overlap(data: bytes, stop: bytes) -> int:
    """Length of the longest end of `data` that begins `stop` without being all of it."""
    for length in range(min(len(data), len(stop) - 1), 0, -1):
        if data.endswith(stop[:length]):
            return length
    return 0
