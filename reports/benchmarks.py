"""A page of timings from several records, with its plots as files: what a repository shows of its speed."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from reports import render, speed
from reports.document import Block, Figure
from reports.markdown import escape
from reports.record import Record
from reports.store import write_atomically
from reports.text import visible

PAGE = "README.md"


@dataclass(frozen=True)
class Run:
    """One record on the page.

    Attributes:
        title: checkpoint and day.
        command: what was typed.
        machine: where, in one line.
        link: the record's file, as seen from the page; empty where it lies elsewhere.
        blocks: section Speed; of a figure, `pictures` has the file.
        pictures: by the place of a figure in `blocks`.
    """

    title: str
    command: str
    machine: str
    link: str
    blocks: tuple[Block, ...]
    pictures: Mapping[int, str]


def write(records: Mapping[Path, Record], folder: Path, command: str) -> list[Path]:
    """Write the page and its plots.

    Args:
        records: file -> record, in the order of the page.
        folder: where the page lies; made if it is missing.
        command: what writes the page, for its first line.

    Returns:
        The files: the page, then the plots.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [_run(path, record, folder) for path, record in records.items()]
    text = render.render("benchmarks.md.jinja", runs=[run for run, _ in drawn], command=visible(command))
    write_atomically(folder / PAGE, text.strip() + "\n")
    plots = {name: svg for _, pictures in drawn for name, svg in pictures.items()}
    for name, svg in plots.items():
        (folder / name).parent.mkdir(exist_ok=True)
        write_atomically(folder / name, svg)
    return [folder / PAGE, *(folder / name for name in plots)]


def _run(path: Path, record: Record, folder: Path) -> tuple[Run, dict[str, str]]:
    blocks = speed.speed(record)
    figures = {place: block for place, block in enumerate(blocks) if isinstance(block, Figure)}
    names = {place: f"plots/{record.id}-{number}.svg" for number, place in enumerate(figures, 1)}
    machine = [str(record.environment.get("cpu", "")), f"{record.environment.get('cores', '?')} cores"]
    machine += [f"{record.environment.get('memory_gib', '?')} GiB", _torch(record)]
    title = f"{record.model.get('name', '?')}, {record.created[:10]}"
    inside = path.resolve().is_relative_to(folder.resolve())
    link = path.resolve().relative_to(folder.resolve()).as_posix() if inside else ""
    run = Run(escape(title), visible(record.command), escape(", ".join(filter(None, machine))), link, blocks, names)
    return run, {names[place]: standalone(figure.svg) for place, figure in figures.items()}


def _torch(record: Record) -> str:
    found = (record.environment.get("packages") or {}).get("torch")
    return f"torch {found}" if found else ""


def standalone(svg: str) -> str:
    """A drawing with the colours that the page's style sheet would give it, on paper of its own."""
    paper = '<rect width="100%" height="100%" fill="#fdfcfa"/>'
    return re.sub(r"(<svg[^>]*>)", lambda found: f"{found[1]}<style>{_style()}</style>{paper}", svg, count=1)


@cache
def _style() -> str:
    """The rules of the style sheet that concern drawings, in light colours."""
    sheet = (render.TEMPLATES / "style.css.jinja").read_text(encoding="utf-8")
    root = sheet[sheet.index(":root") : sheet.index("}") + 1].replace(":root", "svg", 1)
    rules = re.findall(r"\.plot [^{}]*\{[^{}]*\}", sheet)
    return " ".join([root, ".plot { font: 13px var(--sans); }", *rules]).replace("\n", " ")
