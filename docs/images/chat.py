"""Draws chat.svg from a real conversation: `python docs/images/chat.py`, in the root of the repository.

Types on a pseudo-terminal and draws what stood on it, colours included.
"""

import re
import sys
import textwrap
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.harness.terminal import Typist  # noqa: E402

COMMAND = (
    *("chat", "--model", "demo", "--seed", "2", "--temperature", "0.8", "--top-p", "0.7"),
    *("--frequency", "0.15", "--stop", r"\n\nUser", "--n", "150"),
)
LINES = (
    "What does the method close do?",
    "/params decay=0.97",
    "When does it return None?",
    "/save talk.safetensors",
)
COLOURS = {"1;36": "#56c2d6", "1;32": "#7ec699", "2": "#8b949e", "31": "#f47067"}
"""ANSI style -> fill."""

PLAIN, COLUMNS, LETTER, ROW, MARGIN = "#e6edf3", 100, 7.83, 19, 16  # a monospaced letter of 13 px is 7.83 px wide

Run = tuple[str, str]
"""Fill, text."""


def transcript() -> str:
    """Everything that was written to the terminal."""
    with Typist(*COMMAND, echo=True) as typist:
        typist.wait("User: ")
        for line in LINES:
            typist.type(line)
            typist.wait(f"{line}\n")
            typist.wait("User: ")
        typist.leave()
        return typist.raw.decode("utf-8", "replace")


def screen(raw: str) -> list[list[Run]]:
    """Lines of runs as a terminal would show them; what a carriage return wrote over is gone."""
    rows: list[list[Run]] = []
    fill = PLAIN
    for line in raw.replace("\r\n", "\n").split("\n"):
        runs: list[Run] = []
        for piece in re.split(r"(\x1b\[[0-9;?]*[a-zA-Z]|\r)", line):
            if piece == "\r":
                runs = []
            elif piece.startswith("\x1b["):
                fill = COLOURS.get(piece[2:-1], PLAIN) if piece.endswith("m") else fill
            elif piece:
                runs.append((fill, piece))
        rows += wrapped(runs)
    while rows and not "".join(text for _, text in rows[-1]).strip().removeprefix("User:"):
        rows.pop()
    return rows


def wrapped(runs: list[Run]) -> list[list[Run]]:
    """A line cut where the terminal ends."""
    text = "".join(piece for _, piece in runs)
    if len(text) <= COLUMNS:
        return [runs]
    return [[(runs[-1][0], part)] for part in textwrap.wrap(text, COLUMNS, drop_whitespace=False)]


def drawn(rows: list[list[Run]], command: str) -> str:
    """The lines as SVG."""
    lines = [*wrapped([(COLOURS["2"], f"$ {command}")]), *rows]
    width, height = 2 * MARGIN + COLUMNS * LETTER, 2 * MARGIN + ROW * len(lines)
    texts = []
    for number, runs in enumerate(lines):
        spans = "".join(f'<tspan fill="{fill}">{escape(text)}</tspan>' for fill, text in runs)
        texts.append(f'<text x="{MARGIN}" y="{MARGIN + ROW * (number + 0.75):.0f}" xml:space="preserve">{spans}</text>')
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        'font-family="ui-monospace, SFMono-Regular, Menlo, Consolas, monospace" font-size="13">\n'
        f'<rect width="100%" height="100%" rx="8" fill="#0d1117"/>\n' + "\n".join(texts) + "\n</svg>\n"
    )


if __name__ == "__main__":
    typed = " ".join(f"'{word}'" if "\\" in word else word for word in ("python -m harness", *COMMAND))
    Path(__file__).with_suffix(".svg").write_text(drawn(screen(transcript()), typed), encoding="utf-8")
    (ROOT / LINES[-1].split()[1]).unlink()
