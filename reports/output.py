"""A record into the files that people and programs read."""

from collections.abc import Callable, Sequence
from pathlib import Path

from reports import header, views
from reports.junit import junit
from reports.record import Record, RecordError
from reports.render import html, markdown, render
from reports.store import write_atomically
from reports.text import visible

MOST_FAILURES = 10
"""Failures in a job summary; the report has all."""


def summary(record: Record) -> str:
    """A short markdown page for the summary of a CI job: verdict, matrix, the worst failures."""
    cards = header.cards(record).cards
    return render(
        "summary.md.jinja",
        title=header.title(record),
        verdict=header.verdict(record),
        facts=header.facts(record),
        matrix=header.matrix(record) if record.verdicts else None,
        cards=cards[:MOST_FAILURES],
        more=len(cards) - MOST_FAILURES,
        command=visible(record.command),
    )


FORMATS: dict[str, tuple[str, Callable[[Record], str]]] = {
    "html": ("report.html", html),
    "md": ("report.md", markdown),
    "json": ("record.json", Record.to_json),
    "junit": ("junit.xml", junit),
    "csv": ("measurements.csv", views.measurements_csv),
    "summary": ("summary.md", summary),
}
"""Format -> file name and what writes it."""


def write(record: Record, folder: Path, formats: Sequence[str] = tuple(FORMATS)) -> list[Path]:
    """Write a record in several formats; each file is whole or absent.

    Args:
        record: what to show.
        folder: made if it is missing.
        formats: keys of `FORMATS`.

    Returns:
        The files, in the order of `formats`.

    Raises:
        RecordError: a format that does not exist.
    """
    unknown = [name for name in formats if name not in FORMATS]
    if unknown:
        raise RecordError(f"unknown format {unknown[0]!r}; there are {', '.join(FORMATS)}")
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for name in formats:
        file, draw = FORMATS[name]
        write_atomically(folder / file, draw(record))
        paths.append(folder / file)
    return paths
