"""Axes, lines, bands and bars as SVG text: what the plots are drawn with.

Colours are CSS variables of the page, so that one drawing serves light, dark and paper. Every string
that comes from a record passes through `label`.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from markupsafe import escape

from reports.text import visible

WIDTH, LEFT, RIGHT = 480, 70, 14
FONT, LINE = 13, 17
MOST_POINTS = 300
"""Points of a line; more are thinned to the largest of each run, since the worst must stay visible."""

Point = tuple[float, float]
_DASHES = ("", "6 3", "2 3", "9 3 2 3", "12 4", "4 2 1 2")
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def shorten(text: str, most: int) -> str:
    """At most `most` characters, the last an ellipsis where some are missing."""
    text = visible(text)
    return text if len(text) <= most else text[: most - 1] + "…"


def label(text: str, most: int = 46) -> str:
    """Untrusted text inside a drawing: visible, short, escaped."""
    return str(escape(shorten(text, most)))


@dataclass(frozen=True)
class Axis:
    """A scale from numbers to a place along it.

    Attributes:
        title: what it shows, with the unit.
        low, high: the ends.
        log: whether it is logarithmic; the ends are whole decades then.
        ticks: places and their words.
    """

    title: str
    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def share(self, value: float) -> float:
        """Where `value` lies, 0 at the low end and 1 at the high one; kept inside."""
        if self.log:
            share = (math.log10(max(value, self.low)) - math.log10(self.low)) / math.log10(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))


def log_axis(title: str, values: Iterable[float]) -> Axis:
    """A logarithmic axis over the positive ones of `values`."""
    positive = [value for value in values if value > 0 and math.isfinite(value)] or [1.0]
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    high = max(high, low + 1)
    step = max(1, math.ceil((high - low) / 6))
    powers = range(low, high + 1, step)
    plain = low >= -2 and high <= 5
    factors = (1, 2, 5) if high - low == 1 else (1,)
    marks = [(power, factor) for power in powers for factor in factors if factor == 1 or power < high]
    ticks = tuple(
        (factor * 10.0**power, f"{factor * 10.0**power:,g}" if plain else _power(power, factor))
        for power, factor in marks
    )
    return Axis(title, 10.0**low, 10.0**high, True, ticks)


def _power(power: int, factor: int) -> str:
    """A decade in exponents: 10⁻⁶, 5·10⁻⁶."""
    decade = "1" if power == 0 else "10" + str(power).translate(_SUPERSCRIPT)
    return decade if factor == 1 else f"{factor}·{decade}"


def linear_axis(title: str, values: Iterable[float], from_zero: bool = True) -> Axis:
    """A linear axis over `values`, with at most seven round ticks."""
    usable = [value for value in values if math.isfinite(value)] or [1.0]
    low, high = min(usable), max(usable)
    low = min(0.0, low) if from_zero else low
    step = _round_step((high - low) / 5 or 1.0)
    first, last = math.floor(low / step), math.ceil(high / step - 1e-9)
    last = max(last, first + 1)
    ticks = tuple((step * index, f"{step * index:,.6g}") for index in range(first, last + 1))
    return Axis(title, step * first, step * last, False, ticks)


def _round_step(step: float) -> float:
    """The next of 1, 2, 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(step))
    return next(power * factor for factor in (1, 2, 5, 10) if power * factor >= step * (1 - 1e-9))


def named_axis(title: str, names: Sequence[str]) -> Axis:
    """An axis of categories at 0, 1, 2, ..."""
    return Axis(title, -0.3, len(names) - 0.7, False, tuple((float(i), name) for i, name in enumerate(names)))


@dataclass(frozen=True)
class Series:
    """A line with an optional band.

    Attributes:
        name: for the legend.
        points: (x, y); those that the axis cannot show are left out.
        band: (x, low, high) around or instead of the line.
        honest: drawn in grey behind the others.
    """

    name: str
    points: tuple[Point, ...] = ()
    band: tuple[tuple[float, float, float], ...] = ()
    honest: bool = False


def drawing(body: Sequence[str], height: float, title: str, summary: str) -> str:
    """The `<svg>` around its parts, with the words for those who cannot see it."""
    head = f'<svg class="plot" viewBox="0 0 {WIDTH} {height:.0f}" role="img" xmlns="http://www.w3.org/2000/svg">'
    words = f"<title>{escape(visible(title))}</title><desc>{escape(visible(summary))}</desc>"
    return head + words + "".join(body) + "</svg>"


def line_chart(x: Axis, y: Axis, series: Sequence[Series], title: str, summary: str) -> str:
    """Lines and bands over two axes, the legend above."""
    legend, top = _legend(series)
    bottom = top + 200
    frame = _Frame(x, y, top, bottom)
    body = [*legend, *frame.axes()]
    ordered = sorted(enumerate(series), key=lambda item: not item[1].honest)
    body += [part for index, item in ordered for part in frame.draw(item, index)]
    return drawing(body, bottom + 42, title, summary)


def _style(series: Series, index: int) -> str:
    if series.honest:
        return "--c:var(--honest)"
    return f"--c:var(--s{index % 6 + 1})"


def _legend(series: Sequence[Series]) -> tuple[list[str], int]:
    """One line a series, and where the plot begins below."""
    parts = []
    for index, item in enumerate(series):
        y = 14 + LINE * index
        line = f'<path class="line" d="M{LEFT} {y - 4}h26" stroke-dasharray="{_dash(item, index)}"/>'
        words = f'<text x="{LEFT + 34}" y="{y}">{label(item.name)}</text>'
        parts.append(f'<g style="{_style(item, index)}">{line}{_mark(LEFT + 13, y - 4, index, item)}{words}</g>')
    return parts, 22 + LINE * len(series)


def _dash(series: Series, index: int) -> str:
    return "3 3" if series.honest else _DASHES[index % len(_DASHES)]


def _mark(x: float, y: float, index: int, series: Series) -> str:
    """A dot whose form tells the series apart without colour."""
    if series.honest:
        return ""
    forms = (
        f'<circle class="dot" cx="{x:.1f}" cy="{y:.1f}" r="3"/>',
        f'<path class="dot" d="M{x - 3:.1f} {y - 3:.1f}h6v6h-6z"/>',
        f'<path class="dot" d="M{x:.1f} {y - 4:.1f}l4 4l-4 4l-4 -4z"/>',
        f'<path class="dot" d="M{x:.1f} {y - 4:.1f}l3.6 6.6h-7.2z"/>',
    )
    return forms[index % len(forms)]


@dataclass(frozen=True)
class _Frame:
    """The plotting area of a line chart."""

    x: Axis
    y: Axis
    top: float
    bottom: float

    def at(self, x: float, y: float) -> Point:
        """Numbers to a place in the drawing."""
        across = LEFT + self.x.share(x) * (WIDTH - LEFT - RIGHT)
        return across, self.bottom - self.y.share(y) * (self.bottom - self.top)

    def axes(self) -> list[str]:
        """Grid, ticks and titles."""
        parts = []
        for value, words in self.y.ticks:
            _, y = self.at(self.x.low, value)
            parts.append(f'<path class="grid" d="M{LEFT} {y:.1f}H{WIDTH - RIGHT}"/>')
            parts.append(_text(LEFT - 6, y + 4, label(words, 12), "end", "tick"))
        for value, words in self.x.ticks:
            x, _ = self.at(value, self.y.low)
            anchor = "end" if x > WIDTH - RIGHT - 14 else "middle"
            parts.append(f'<path class="grid" d="M{x:.1f} {self.bottom}v4"/>')
            parts.append(_text(x, self.bottom + 17, label(words, 12), anchor, "tick"))
        parts.append(_text((LEFT + WIDTH) / 2, self.bottom + 36, label(self.x.title)))
        turn = f'transform="translate(13 {(self.top + self.bottom) / 2}) rotate(-90)"'
        return [*parts, f'<text text-anchor="middle" {turn}>{label(self.y.title)}</text>']

    def draw(self, series: Series, index: int) -> list[str]:
        """One series: its band, its line, its dots."""
        points = [self.at(*point) for point in thin(self._shown(series.points))]
        band = [row for row in series.band if all(math.isfinite(value) for value in row)]
        parts = [f'<g style="{_style(series, index)}">']
        if band:
            upper = [self.at(x, high) for x, _, high in band]
            lower = [self.at(x, low) for x, low, _ in reversed(band)]
            parts.append(f'<path class="band" d="{_path(upper + lower)}Z"/>')
        if points:
            parts.append(f'<path class="line" stroke-dasharray="{_dash(series, index)}" d="{_path(points)}"/>')
        every = max(1, len(points) // 12)
        parts += [_mark(x, y, index, series) for x, y in points[::every]]
        return [*parts, "</g>"]

    def _shown(self, points: Sequence[Point]) -> list[Point]:
        return [
            (x, y)
            for x, y in points
            if math.isfinite(x) and math.isfinite(y) and (y > 0 or not self.y.log) and (x > 0 or not self.x.log)
        ]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: of every run of neighbours the one with the largest y."""
    if len(points) <= most:
        return list(points)
    edges = [round(index * len(points) / most) for index in range(most + 1)]
    return [max(points[a:b], key=lambda point: point[1]) for a, b in pairwise(edges)]


def _path(points: Sequence[Point]) -> str:
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


@dataclass(frozen=True)
class Bar:
    """A horizontal bar with its interval; `mark` is a limit, drawn as a line across it."""

    name: str
    words: str
    value: float
    low: float
    high: float
    group: str = ""
    colour: int = 0
    mark: float | None = None


def _text(x: float, y: float, words: str, anchor: str = "middle", kind: str = "") -> str:
    """A line of text; `words` are escaped already."""
    return f'<text class="{kind}" text-anchor="{anchor}" x="{x:.1f}" y="{y:.1f}">{words}</text>'


def bar_chart(bars: Sequence[Bar], axis: Axis, title: str, summary: str) -> str:
    """Bars from zero with whiskers, each under its own line of words, grouped."""
    body: list[str] = []
    y, group = 4.0, None
    for bar in bars:
        if bar.group != group:
            group = bar.group
            y += 20
            body.append(_text(4, y, label(group, 60), "start", "head"))
        y += 18
        body.append(_text(4, y, label(bar.name, 34), "start"))
        body.append(_text(WIDTH - 4, y, label(bar.words, 40), "end", "tick"))
        body.append(_bar(bar, axis, y + 6))
        y += 16
    for value, words in axis.ticks:
        x = _across(axis, value)
        anchor = "start" if x < 8 else ("end" if x > WIDTH - 24 else "middle")
        body.append(_text(x, y + 14, label(words, 12), anchor, "tick"))
    body.append(_text(WIDTH / 2, y + 32, label(axis.title)))
    return drawing(body, y + 38, title, summary)


def _across(axis: Axis, value: float) -> float:
    return 4 + axis.share(value) * (WIDTH - 8)


def _bar(bar: Bar, axis: Axis, y: float) -> str:
    value, low, high = (_across(axis, number) for number in (bar.value, bar.low, bar.high))
    whisker = f"M{low:.1f} {y + 1:.1f}v8M{high:.1f} {y + 1:.1f}v8M{low:.1f} {y + 5:.1f}H{high:.1f}"
    box = f'x="4" y="{y:.1f}" width="{max(value - 4, 0.5):.1f}" height="10" rx="1"'
    colour = f"--c:var(--s{bar.colour % 6 + 1})"
    line = f'<path class="limit" d="M{_across(axis, bar.mark):.1f} {y - 3:.1f}v16"/>' if bar.mark is not None else ""
    return f'<g style="{colour}"><rect class="bar" {box}/><path class="whisker" d="{whisker}"/>{line}</g>'
