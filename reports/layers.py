"""Section Layers: which named tensor is wrong by itself, where first, what it looks like; and a map of all of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from reports import views
from reports.document import Block, Blocks, Bullets, Cell, Figure, Fold, Table, per_case, say, table
from reports.record import Record
from reports.svg import WIDTH, drawing, label
from reports.text import MISSING, Span, code, listed, num, number_of, plural, rich, times

LEFT, RIGHT, ROW = 92, 8, 13
MOST_TIPS = 300
"""Cells that carry their number as a tooltip at most, those out of their band."""

STEPS = ((10.0, 0.35), (100.0, 0.5), (1e4, 0.7), (math.inf, 1.0))
"""Up to so many times the band, out of it, a cell is filled with this opacity."""


@dataclass(frozen=True)
class Tensor:
    """One named tensor of one subject, as the record has it; see `harness.measures.layers`.

    Attributes:
        name: full name.
        worst: contributed error in units of the honest band; None if it could not be tested.
        token: the first token out of band; None if it is inside.
        total: error against the truth in the same kind of unit.
    """

    name: str
    worst: float | None
    token: int | None
    total: float | None

    @property
    def layer(self) -> int | None:
        """Its block; None for embedding and head."""
        parts = self.name.split(".")
        return int(parts[1]) if parts[0] == "blocks" and len(parts) > 2 and parts[1].isdigit() else None

    @property
    def short(self) -> str:
        """Its name without the block."""
        return self.name if self.layer is None else self.name.split(".", 2)[2]


def layers(record: Record) -> Blocks:
    """What every tensor contributes by itself, one case after the other; nothing without the suite."""
    names = list(dict.fromkeys(seen.case for seen in views.evidence(record, "layers", "layers")))
    return per_case("layers", names, partial(_case, record)) if names else ()


def _case(record: Record, case: str) -> Blocks:
    """The subjects with something wrong first, with their map; the others' maps are folded."""
    found = views.by_subject(record, "layers", "layers", case)
    dtypes = {subject.id: str(subject.info.get("dtype") or "") for subject in record.subjects}
    blocks: list[Block] = []
    for name in sorted(found, key=lambda subject: found[subject]["first"] is None):
        data = found[name]
        blocks += _said(name, dtypes.get(name, ""), data)
        figure = heat_map(name, data, case)
        detail: Blocks = (_numbers(data, f"Contributed error of {name}, {case}"),)
        if data["first"] is None:
            blocks.append(Fold(rich("Every tensor of ", code(name)), (figure, *detail)))
        else:
            blocks += [figure, Fold(rich("The same as numbers, ", code(name)), detail)]
    return tuple(blocks)


def tensors(data: Mapping[str, Any]) -> list[Tensor]:
    """The evidence of one subject, row by row."""
    columns = zip(data["tensors"], data["worst"], data["first_token"], data["inherited"], strict=True)
    return [Tensor(str(name), number_of(worst), token, number_of(total)) for name, worst, token, total in columns]


def _said(name: str, dtype: str, data: Mapping[str, Any]) -> list[Block]:
    """Two sentences, the hints, and what was not tested."""
    first = data["first"]
    if first is None:
        return [say(code(name), ": ", *_inside(data)), *_gaps(data)]
    place = f"token {first['token']}" if first["layer"] is None else f"layer {first['layer']}, token {first['token']}"
    others = sum(row.token is not None for row in tensors(data)) - 1
    blocks: list[Block] = [
        say(
            *(
                code(name),
                ": ",
                Span("wrong from ", "fail"),
                code(first["tensor"]),
                Span(" on", "fail"),
                f" ({place}), ",
            ),
            f"the first tensor that has more wrong by itself than honest {dtype} rounding does: ",
            f"{_ratio(first['ratio'])} there, {_ratio(first['worst'])} at worst. ",
            f"{_others(others)}; whatever else differs is inherited.",
        )
    ]
    if data["hints"]:
        blocks.append(Bullets(tuple(rich(str(hint)) for hint in data["hints"])))
    if first["spanned"]:
        blocks.append(_span(first))
    return [*blocks, *_gaps(data)]


def _others(count: int) -> str:
    if count > 1:
        return f"{count} other tensors add errors of their own"
    return f"{'One' if count else 'No'} other tensor adds an error of its own"


def _ratio(value: Any) -> str:
    number = number_of(value)
    return "not finite" if number is None or not math.isfinite(number) else times(number)


def _inside(data: Mapping[str, Any]) -> list[str | Span]:
    tested = [row for row in tensors(data) if row.worst is not None]
    if not tested:
        return [Span("not one tensor could be tested", "fail"), "."]
    nearest = max(tested, key=lambda row: row.worst or 0.0)
    every = "every named tensor" if len(tested) == len(data["tensors"]) else f"each of the {len(tested)} tested tensors"
    return [
        f"{every} is within honest rounding of its own equation; the nearest to its limit is ",
        code(nearest.name),
        f", at {num(nearest.worst)} of {num(data['limit'])} allowed.",
    ]


def _span(first: Mapping[str, Any]) -> Block:
    """A finding over a gap belongs to all that lies in it."""
    names = [str(name) for name in first["spanned"]]
    middle = names[len(names) // 2]
    return say(
        f"The inputs recorded lie further back: the mistake is in {listed([*names, first['tensor']])}. Record ",
        *(code(middle), " too and the question is halved."),
    )


def _gaps(data: Mapping[str, Any]) -> list[Block]:
    """What could not be tested, and which name would help most."""
    untested = [str(name) for name in data["untested"]]
    if not untested:
        return []
    text = f"Untested, which is no pass: {plural(len(untested), 'tensor')} ({listed(untested)})."
    lacking = [str(name) for name in data["lacking"]]
    more: list[str | Span] = (
        [" Recorded too, ", code(lacking[0]), " would make more of them testable."] if lacking else []
    )
    return [say(text, *more)]


# ---- the map -------------------------------------------------------------------------------------


def heat_map(subject: str, data: Mapping[str, Any], case: str) -> Figure:
    """Tensors in order against layers, coloured by contributed error in units of the honest band."""
    rows = tensors(data)
    limit = number_of(data["limit"]) or 1.0
    title = f"Error of its own by tensor and layer, in honest bands: {subject}, {case}"
    out = [row for row in rows if row.token is not None]
    first = f"the first is {out[0].name} at token {out[0].token}" if out else "all are inside"
    summary = f"{len(out)} of {len(rows)} tensors are out of their honest band; {first}."
    shorts = order(rows)
    top = 40
    body = [*_key(limit), *_axes(shorts, _depth(rows), top)]
    first_name = out[0].name if out else ""
    tips = {row.name for row in out[:MOST_TIPS]}
    body += [_cell(row, shorts.index(row.short), _depth(rows), top, limit, row.name in tips) for row in rows]
    body += [_ring(row, shorts.index(row.short), _depth(rows), top) for row in rows if row.name == first_name]
    return Figure(drawing(body, top + ROW * len(shorts) + 36, title, summary), title, summary)


def order(rows: Sequence[Tensor]) -> list[str]:
    """Short names, each before those that follow it in any layer."""
    found: list[str] = []
    for row in rows:
        if row.short not in found:
            found.append(row.short)
    deeper = [row.short for row in rows if row.layer == 1]  # layer 0 lacks the value residual's tensors
    for at, short in enumerate(deeper):
        if at and found.index(short) > found.index(deeper[at - 1]) + 1:
            found.remove(short)
            found.insert(found.index(deeper[at - 1]) + 1, short)
    return found


def _depth(rows: Sequence[Tensor]) -> int:
    return 1 + max((row.layer for row in rows if row.layer is not None), default=0)


def _box(row: Tensor, at: int, depth: int, top: float) -> tuple[float, float, float, float]:
    """x, y, width, height; what belongs to no layer spans them all."""
    step = (WIDTH - LEFT - RIGHT) / depth
    gap = 1.0 if step > 5 else 0.4
    y = top + ROW * at
    if row.layer is None:
        return LEFT, y, WIDTH - LEFT - RIGHT - gap, ROW - 1
    return LEFT + step * row.layer, y, step - gap, ROW - 1


def _fill(worst: float | None, limit: float) -> str:
    """CSS of a cell: hollow untested, grey inside, redder the farther out."""
    if worst is None:
        return "fill:none;stroke:var(--rule)"
    if worst <= limit:
        return f"fill:var(--honest);fill-opacity:{0.18 if worst <= 1 else 0.4}"
    opacity = next((step for edge, step in STEPS if worst <= edge), 1.0)
    return f"fill:var(--fail);fill-opacity:{opacity}"


def _cell(row: Tensor, at: int, depth: int, top: float, limit: float, tip: bool) -> str:
    x, y, width, height = _box(row, at, depth, top)
    box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}" style="{_fill(row.worst, limit)}"'
    words = label(f"{row.name}: {num(row.worst)} x honest, from token {row.token} on", 90)
    return f"<rect {box}><title>{words}</title></rect>" if tip else f"<rect {box}/>"


def _ring(row: Tensor, at: int, depth: int, top: float) -> str:
    """Marks the first one out."""
    x, y, width, height = _box(row, at, depth, top)
    box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height}"'
    return f'<rect {box} style="fill:none;stroke:var(--ink);stroke-width:2"/>'


def _key(limit: float) -> list[str]:
    """The legend: a box and its words for every kind of cell."""
    samples = [(_fill(None, limit), "untested"), (_fill(1.0, limit), "≤ 1"), (_fill(limit, limit), f"≤ {num(limit)}")]
    samples += [
        (_fill(edge, limit), words) for (edge, _), words in zip(STEPS, ("≤ 10", "≤ 100", "≤ 10⁴", "more"), strict=True)
    ]
    parts, x = [], 4.0
    for style, words in samples:
        parts.append(f'<rect x="{x:.1f}" y="6" width="14" height="{ROW - 1}" style="{style}"/>')
        parts.append(f'<text class="tick" x="{x + 18:.1f}" y="16">{words}</text>')
        x += 34 + 6.5 * len(words)
    return parts


def _axes(shorts: Sequence[str], depth: int, top: float) -> list[str]:
    """Names at the left, layers below."""
    parts = [
        f'<text class="tick" text-anchor="end" x="{LEFT - 6}" y="{top + ROW * at + 10}">{label(short, 16)}</text>'
        for at, short in enumerate(shorts)
    ]
    step, bottom = (WIDTH - LEFT - RIGHT) / depth, top + ROW * len(shorts)
    every = max(1, math.ceil(22 / step))
    parts += [
        f'<text class="tick" text-anchor="middle" x="{LEFT + step * (at + 0.5):.1f}" y="{bottom + 14}">{at}</text>'
        for at in range(0, depth, every)
    ]
    middle = (LEFT + WIDTH - RIGHT) / 2
    return [*parts, f'<text text-anchor="middle" x="{middle:.0f}" y="{bottom + 31}">layer</text>']


def _numbers(data: Mapping[str, Any], caption: str) -> Table:
    """The map as numbers, tensors against layers."""
    rows = tensors(data)
    limit = number_of(data["limit"]) or 1.0
    by_place = {(row.short, row.layer): row for row in rows}
    deep = range(_depth(rows))
    body: list[list[Cell]] = []
    for short in order(rows):
        alone = by_place.get((short, None))
        cells = [alone, *([None] * (len(deep) - 1))] if alone else [by_place.get((short, layer)) for layer in deep]
        body.append([code(short), *(_number(cell, limit) for cell in cells)])
    return table(["x honest", *(f"layer {layer}" for layer in deep)], body, caption)


def _number(row: Tensor | None, limit: float) -> Cell:
    if row is None or row.worst is None:
        return MISSING
    return Span(num(row.worst), "" if row.worst <= limit else "fail")
