"""States that live in a program: who may use them, and which of them nobody refers to any more."""

import weakref
from collections.abc import Iterator, Sequence

from backends.errors import BackendError


class Handle:
    """A state in a program.

    Args:
        life: how often the program had been started; a state dies with it.
        numbers: the program's own numbers of it, one a row, or one for all rows.
        rows: of the batch.
    """

    def __init__(self, life: int, numbers: Sequence[int], rows: int) -> None:
        self.life, self.numbers, self.rows = life, tuple(numbers), rows


class Handles:
    """All handles of a session."""

    def __init__(self) -> None:
        self._dropped: list[tuple[int, int]] = []

    def new(self, numbers: Sequence[int], life: int, rows: int) -> Handle:
        """A handle whose numbers are to be released when nobody refers to it any more."""
        handle = Handle(life, numbers, rows)
        owned = [(life, number) for number in numbers]
        weakref.finalize(handle, self._dropped.extend, owned).atexit = False
        return handle

    def numbers(self, handle: Handle | None, life: int, rows: int) -> Sequence[int | None]:
        """The program's numbers of a handle, one a row, or one for all rows; as many None for the zero state.

        Raises:
            BackendError: its program died since, or it has other rows.
        """
        if handle is None:
            return [None] * rows
        if handle.life != life:
            raise BackendError("the state was lost when the program died.")
        if handle.rows != rows:
            raise BackendError(f"a state of {handle.rows} rows cannot go on with {rows}.")
        return handle.numbers

    def dropped(self, life: int) -> Iterator[int]:
        """Numbers to release in this life of the program; each is given once."""
        while self._dropped:
            born, number = self._dropped.pop()
            if born == life:
                yield number
