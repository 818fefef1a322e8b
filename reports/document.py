"""The report as data: sections of blocks, the same for every format. Templates only lay them out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from reports.text import MISSING, Rich, Span, code, dim, rich, visible


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    kind: ClassVar[str] = "paragraph"
    text: Rich


@dataclass(frozen=True)
class Bullets:
    """A list of sentences."""

    kind: ClassVar[str] = "bullets"
    items: tuple[Rich, ...]


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: headings.
        align: one letter a column, "l" or "r".
        rows: as many cells as columns each.
        caption: what the table shows, for those who cannot see it; also printed where it is set.
    """

    kind: ClassVar[str] = "table"
    columns: tuple[Rich, ...]
    align: str
    rows: tuple[tuple[Rich, ...], ...]
    caption: str

    def __post_init__(self) -> None:
        widths = {len(self.columns), len(self.align), *(len(row) for row in self.rows)}
        if len(widths) != 1:
            raise ValueError(f"table {self.caption!r} is ragged: {sorted(widths)} columns")
        object.__setattr__(self, "caption", visible(self.caption))


@dataclass(frozen=True)
class Figure:
    """A plot.

    Attributes:
        svg: the drawing; safe to put into HTML as it is.
        title: what is drawn.
        summary: what it shows, in a sentence, for formats and readers without pictures.
    """

    kind: ClassVar[str] = "figure"
    svg: str
    title: str
    summary: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "title", visible(self.title))
        object.__setattr__(self, "summary", visible(self.summary))


@dataclass(frozen=True)
class Code:
    """Literal text of several lines."""

    kind: ClassVar[str] = "code"
    text: str
    language: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", visible(self.text, keep="\n"))


@dataclass(frozen=True)
class Cards:
    """Things that need attention, each with a heading and labelled lines."""

    kind: ClassVar[str] = "cards"
    cards: tuple["Card", ...]


@dataclass(frozen=True)
class Card:
    """One of `Cards`."""

    outcome: str
    title: Rich
    lines: tuple[tuple[str, Rich], ...]


@dataclass(frozen=True)
class Fold:
    """Detail that is closed at first."""

    kind: ClassVar[str] = "fold"
    title: Rich
    blocks: tuple["Block", ...]


Block = Paragraph | Bullets | Table | Figure | Code | Cards | Fold
Blocks = tuple[Block, ...]


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def anchor(self) -> str:
        """The name to link to."""
        letters = (char if char.isalnum() else "-" for char in self.title.lower())
        return "-".join("".join(letters).replace("-", " ").split())


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: one line.
        outcome: "pass", "fail", "error" or "skipped" (nothing judged), for the colour of the verdict.
        verdict: the one line that everything comes to.
        counts: the five outcomes with their counts.
        facts: labelled one-liners under the verdict.
        opening: matrix and failures, before the numbered sections.
    """

    title: Rich
    outcome: str
    verdict: str
    counts: tuple[tuple[str, int], ...]
    facts: tuple[tuple[str, Rich], ...]
    opening: tuple[Block, ...] = ()
    sections: tuple[Section, ...] = field(default=())


def say(*parts: str | Span | Rich) -> Paragraph:
    """A paragraph from strings and spans."""
    return Paragraph(rich(*parts))


Cell = str | Span | Rich | None
"""What a cell may be written as; None shows that there is nothing."""


def cell(value: Cell) -> Rich:
    """Anything as a cell."""
    return rich(MISSING) if value is None else rich(value)


def table(
    columns: Sequence[Cell],
    rows: Sequence[Sequence[Cell]],
    caption: str,
    align: str = "",
) -> Table:
    """A table from plain values; the first column is left-aligned and the others right, unless `align` says so."""
    return Table(
        columns=tuple(cell(column) for column in columns),
        align=align or "l" + "r" * (len(columns) - 1),
        rows=tuple(tuple(cell(value) for value in row) for row in rows),
        caption=caption,
    )


def not_run(what: str = "") -> Paragraph:
    """The one line of a section without data."""
    return say(dim(f"Not run{': ' + what if what else ''}."))


def per_case(suite: str, names: Sequence[str], draw: Callable[[str], Blocks]) -> Blocks:
    """The first case in full, the others folded.

    Args:
        suite: for the line that says so.
        names: the cases, at least one.
        draw: what stands below the name of a case.
    """
    folds = tuple(Fold(rich("Case ", code(name)), draw(name)) for name in names[1:])
    rest = f"; {len(folds)} more of suite {suite} below, folded." if folds else "."
    return (say("Case ", code(names[0]), rest), *draw(names[0]), *folds)
