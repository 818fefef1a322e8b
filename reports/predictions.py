"""Sections on the logits after the prompt: the likeliest tokens aligned by id, and statistics over all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from reports import views
from reports.document import Blocks, Cell, Paragraph, not_run, per_case, say, table
from reports.record import Record
from reports.text import MISSING, Rich, Span, code, dim, fixed, listed, num, number_of, rich, share


def predictions(record: Record) -> Blocks:
    """The most likely next tokens, aligned by id."""
    names = list(dict.fromkeys(seen.case for seen in views.evidence(record, "topk", "logits")))
    return per_case("logits", names, partial(_predictions, record)) if names else (not_run(),)


def _predictions(record: Record, case: str) -> Blocks:
    frame = views.top_frame(record, case)
    first = views.reference(record)
    keys: list[Any] = list(frame.columns)
    others = [key[0] for key in keys if isinstance(key, tuple) and key[1] == "rank"]
    columns: list[Cell] = ["Rank", "Token", "ID", rich(code(first.id if first else "reference"), " logit")]
    columns += [rich(code(name), " logit") for name in others] + [rich(code(name), " rel err") for name in others]
    rows: list[list[Cell]] = []
    for token, entry in frame.iterrows():
        row: list[Cell] = [num(entry["rank_ref"]), code(entry["piece"]), str(token), fixed(entry["ref"])]
        row += [_logit(entry, name) for name in others]
        rows.append(row + [_relative(entry, name) for name in others])
    align = "rlr" + "r" * (len(columns) - 3)
    notes = [note for name in others if (note := _swap_note(record, case, name))]
    return (table(columns, rows, "Most likely next tokens, aligned by token id", align), *notes)


def _logit(entry: Any, subject: str) -> Rich:
    """A candidate's logit; its rank beside it where it is another one."""
    rank = entry[subject, "rank"]
    moved = rank is not None and number_of(rank) != number_of(entry["rank_ref"])
    logit = Span(fixed(entry[subject, "logit"]))
    return rich(logit, Span(f" rank {num(rank)}", "moved")) if moved else rich(logit)


def _relative(entry: Any, subject: str) -> str:
    got, want = number_of(entry[subject, "logit"]), number_of(entry["ref"])
    if got is None or want is None:
        return MISSING
    return share(abs(got - want) / abs(want)) if want else num(abs(got - want))


def _swap_note(record: Record, case: str, subject: str) -> Paragraph | None:
    """The note on swapped ranks, with the probability that honest error predicts."""
    data = views.by_subject(record, "swaps", "logits", case).get(subject)
    swapped = [pair for pair in data["pairs"] if pair["swapped"]] if data else []
    if not data or not swapped:
        return None
    parts: list[str | Span] = [Span("Note on ", "strong"), code(subject), Span(f" ranks {_ranks(swapped)}: ", "strong")]
    for pair in swapped:
        chance = share(pair["probability"])
        parts += [code(pair["piece_a"]), " and ", code(pair["piece_b"]), f" swap; the gap is {num(pair['gap'])}, and "]
        parts.append(f"honest error (σ = {num(data['sigma'])}) predicts this with probability {chance}. ")
    parts.append(
        f"Swaps expected among these neighbours: {num(data['expected'], 2)}; observed: {num(data['observed'])}."
    )
    return say(*parts)


def _ranks(pairs: Sequence[dict[str, Any]]) -> str:
    return listed([f"{pair['rank']}–{pair['rank'] + 1}" for pair in pairs])


def aggregate(record: Record) -> Blocks:
    """The top of the ranking and every number of suite logits."""
    names = views.cases(record, "logits")
    return per_case("logits", names, partial(_aggregate, record)) if names else (not_run(),)


def _aggregate(record: Record, case: str) -> Blocks:
    lists = views.by_subject(record, "topk", "logits", case)
    frame = views.pivot_frame(record, "logits", case)
    subjects = [subject.id for subject in record.subjects if subject.id in lists or subject.id in frame.columns]
    first = views.reference(record)
    base = _in_order(lists[first.id]) if first and first.id in lists else None
    tops = {name: _Top(_in_order(data), None if first and name == first.id else base) for name, data in lists.items()}
    rows: list[list[Cell]] = []
    if tops:
        rows = [[title, *(draw(tops[s]) if s in tops else MISSING for s in subjects)] for title, draw in _TOPS]
    units = {m.name: m.unit for m in record.measurements if m.suite == "logits" and m.unit}
    for name in map(str, frame.index):
        unit = f" ({units[name]})" if name in units else ""
        rows.append([name.replace("_", " ") + unit, *(num(frame.loc[name].get(subject)) for subject in subjects)])
    return (table(["Statistic", *(code(name) for name in subjects)], rows, f"Statistics of case {case}"),)


Rows = list[dict[str, Any]]


@dataclass(frozen=True)
class _Top:
    """A subject's top-k rows by its own rank, and the reference's if it is another's."""

    rows: Rows
    base: Rows | None


def _in_order(data: dict[str, Any]) -> Rows:
    """The rows of a top-k list by the subject's own rank."""
    ranked = [row for row in data["rows"] if row["rank"] is not None]
    return sorted(ranked, key=lambda row: int(row["rank"]))


def _top1(top: _Top) -> Cell:
    return rich(code(top.rows[0]["piece"]), f" ({top.rows[0]['id']})") if top.rows else None


def _top1_logit(top: _Top) -> Cell:
    return fixed(top.rows[0]["logit"]) if top.rows else None


def _top5(top: _Top) -> Cell:
    return ", ".join(str(row["id"]) for row in top.rows[:5])


def _top1_difference(top: _Top) -> Cell:
    """|d| of the logit of the reference's first token."""
    if not top.base:
        return None
    row = next((row for row in top.rows if row["id"] == top.base[0]["id"]), None)
    got, want = (number_of(row["logit"]), number_of(top.base[0]["logit"])) if row else (None, None)
    return num(abs(got - want)) if got is not None and want is not None else None


def _match(count: int) -> Callable[[_Top], Cell]:
    """How many of the reference's first `count` ids are among the subject's first, and where the order differs."""

    def draw(top: _Top) -> Cell:
        if not top.base:
            return None
        mine, wanted = ([row["id"] for row in rows[:count]] for rows in (top.rows, top.base))
        text = f"{len(set(mine) & set(wanted))}/{len(wanted)}"
        moved = [str(at + 1) for at, (a, b) in enumerate(zip(mine, wanted, strict=False)) if a != b]
        return rich(text, dim(f" (other order at {'–'.join([moved[0], moved[-1]])})")) if moved else text

    return draw


_TOPS: tuple[tuple[str, Callable[[_Top], Cell]], ...] = (
    ("Top-1 token", _top1),
    ("Top-1 logit", _top1_logit),
    ("Top-5 token IDs", _top5),
    ("Top-1 logit diff from ref", _top1_difference),
    ("Top-5 ID match", _match(5)),
    ("Top-10 ID match", _match(10)),
)
