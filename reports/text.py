"""Words and numbers for people: rich text as data, and numbers at the precision that they deserve.

Nothing that reaches a page is ever written as markup: a cell is a tuple of `Span`, and the template of
each format escapes it in its own way. Model names, tokens and messages come from outside.
"""

import math
import unicodedata
from dataclasses import dataclass
from typing import Any

MISSING = "—"

_BIDI = frozenset("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def visible(text: str, keep: str = "") -> str:
    r"""`text` with everything that a page could not show, or would obey, written as an escape.

    Control characters, lone surrogates, unassigned code points and the marks that reorder text
    become `\n`, `\x1b`, `\u202e`; right-to-left letters and emoji stay as they are.

    Args:
        text: anything.
        keep: control characters to leave alone ("\n" in a block of code).
    """
    return "".join(char if char in keep or not _hidden(char) else _escape(char) for char in text)


def _hidden(char: str) -> bool:
    return char in _BIDI or unicodedata.category(char) in ("Cc", "Cs", "Cn", "Zl", "Zp")


def _escape(char: str) -> str:
    return char.encode("unicode_escape", "surrogatepass").decode("ascii")


@dataclass(frozen=True)
class Span:
    """A run of text in one style.

    Attributes:
        text: what is shown; made `visible` on construction.
        style: "" plain, "code", "strong", "dim", or the name of an outcome.
    """

    text: str
    style: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", visible(self.text))


Rich = tuple[Span, ...]
"""A cell, a sentence, a heading."""


def rich(*parts: str | Span | Rich) -> Rich:
    """Join strings and spans into rich text."""
    spans: list[Span] = []
    for part in parts:
        if isinstance(part, tuple):
            spans.extend(part)
        else:
            spans.append(Span(part) if isinstance(part, str) else part)
    return tuple(spans)


def code(text: object) -> Span:
    """Literal text: an id, a token, a command."""
    return Span(str(text), "code")


def dim(text: str) -> Span:
    """Secondary text."""
    return Span(text, "dim")


def plain(text: Rich) -> str:
    """Rich text without its styles."""
    return "".join(span.text for span in text)


def number_of(value: Any) -> float | None:
    """A number out of JSON, where "nan", "inf" and "-inf" are spelled; None if it is none."""
    if isinstance(value, bool) or value is None:
        return None
    try:
        return float(value)
    except (TypeError, ValueError):
        return None


def finite(value: Any) -> bool:
    """Whether `value` is a number, and an ordinary one."""
    number = number_of(value)
    return number is not None and math.isfinite(number)


def num(value: Any, digits: int = 3) -> str:
    """A number in as few characters as its digits need: 0.0271, 2.9e-07, 65,536, NaN, — for none.

    Args:
        value: number, its JSON spelling, or None.
        digits: significant ones.
    """
    number = number_of(value)
    if number is None:
        return MISSING
    if math.isnan(number):
        return "NaN"
    if math.isinf(number):
        return "∞" if number > 0 else "-∞"
    if number == 0:
        return "0"
    if number == int(number) and abs(number) < 1e15:
        return whole(number)
    return _fraction(number, digits)


def _fraction(number: float, digits: int) -> str:
    """A number that is not whole; scientific where plain digits would need counting."""
    size = abs(number)
    if size < 1e-3 or size >= 1e6:
        return f"{number:.{digits - 1}e}"
    places = max(0, digits - 1 - math.floor(math.log10(size)))
    if 0.9 <= size < 1:  # a cosine of 0.99997 is no 1.00: two digits of what is missing
        places = max(places, 1 - math.floor(math.log10(1 - size)))
    return f"{number:,.{places}f}" if size >= 1e4 else f"{number:.{places}f}"


def whole(value: float) -> str:
    """An integer, thousands apart from 10,000 on."""
    return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))


def fixed(value: Any, places: int = 4) -> str:
    """A number with a fixed count of decimals, for columns that are compared by eye."""
    number = number_of(value)
    return f"{number:.{places}f}" if number is not None and math.isfinite(number) else num(number)


def share(value: Any) -> str:
    """A share as percent: 31%, 0.36%, 4.2e-06%."""
    number = number_of(value)
    if number is None or not math.isfinite(number):
        return num(number)
    percent = 100 * number
    if percent and abs(percent) < 0.005:
        return f"{percent:.1e}%"
    return f"{percent:.2f}%" if abs(percent) < 10 else f"{percent:.1f}%"


def times(value: float) -> str:
    """A ratio: 1.1x, 37x, 4.2e+06x."""
    if not math.isfinite(value):
        return f"{num(value)} x"
    return f"{value:.2g}x" if 0.001 <= value < 99.5 else (f"{value:.0f}x" if 1 <= value < 1e6 else f"{value:.1e}x")


def size(n_bytes: Any) -> str:
    """Bytes with a binary unit."""
    value = number_of(n_bytes)
    if value is None or not math.isfinite(value):
        return num(value)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024 or unit == "GiB":
            break
        value /= 1024
    return f"{value:.4g} {unit}"


def listed(items: list[str], most: int = 6) -> str:
    """Items in a sentence: "a, b and c"; a long list ends in a count."""
    if len(items) > most:
        return f"{', '.join(items[:most])} and {len(items) - most} more"
    return " and ".join([", ".join(items[:-1]), items[-1]]) if len(items) > 1 else "".join(items)


def plural(count: int, one: str, many: str = "") -> str:
    """A count with its noun."""
    return f"{count} {one}" if count == 1 else f"{count} {many or one + 's'}"
