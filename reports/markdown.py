"""Rich text as GitHub-flavoured markdown in which nothing untrusted can act."""

import re
from collections.abc import Callable
from typing import Any

from reports.document import Table
from reports.text import Rich, Span

_SPECIAL = re.compile(r"[\\`*\[\]~$|]|(?<![0-9A-Za-z])_|_(?![0-9A-Za-z])")
_BLOCK = re.compile(r"^(\s*)([#+\-=](?=[#=\-]*(?:\s|$))|\d(?=\d*[.)](?:\s|$)))")
_HTML = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}
_PUNCTUATION = re.compile(r"[^0-9A-Za-z\u0080-\U0010ffff]")
_STYLES = {"strong": "**{}**", "fail": "**{}**", "error": "**{}**", "moved": "*{}*"}


def escape(text: str) -> str:
    """Plain text: every character that markdown or HTML would act on is disarmed."""
    text = _SPECIAL.sub(lambda found: "\\" + found[0], text)
    text = re.sub("[&<>]", lambda found: _HTML[found[0]], text)
    return _BLOCK.sub(lambda found: f"{found[1]}&#{ord(found[2])};", text)


def code(text: str) -> str:
    """Literal text; what a code span in a table cannot hold goes through `<code>` as entities."""
    if not text:
        return ""
    if "`" in text or "|" in text or (text[0] == text[-1] == " " and text.strip()):
        return f"<code>{_PUNCTUATION.sub(lambda found: f'&#{ord(found[0])};', text)}</code>"
    return f"`{text}`"


def span(piece: Span) -> str:
    """One run of text."""
    if piece.style == "code":
        return code(piece.text)
    text = escape(piece.text)
    bare = text.strip()
    if not bare or piece.style not in _STYLES:
        return text
    return text.replace(bare, _STYLES[piece.style].format(bare))


def inline(text: Rich) -> str:
    """A sentence, a heading or a cell, in one line."""
    return "".join(span(piece) for piece in text)


def table(block: Table) -> str:
    """A table in pipes."""
    marks = ["---:" if letter == "r" else "---" for letter in block.align]
    rows = [[inline(cell) for cell in row] for row in (block.columns, *block.rows)]
    lines = [rows[0], marks, *rows[1:]]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def fence(text: str) -> str:
    """Backticks enough to enclose `text`."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    return "`" * max(3, longest + 1)


FILTERS: dict[str, Callable[..., Any]] = {"md": inline, "md_text": escape, "md_table": table, "md_fence": fence}
"""For the environment of the templates."""
