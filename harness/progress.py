"""One line that tells what is going on, on a terminal."""

import sys


class Progress:
    """One line that is rewritten on a terminal; silence in a pipe."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()

    def tell(self, line: str) -> None:
        """Show what is going on now."""
        if self.live:
            from harness.options import columns

            sys.stderr.write(f"\r\x1b[2K{line[: columns() - 1]}")
            sys.stderr.flush()

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        if self.live:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
