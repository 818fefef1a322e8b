"""Sections on the logits after the prompt: the most likely tokens aligned by id, and the statistics over all of them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from reports import views
from reports.document import Blocks, Paragraph, not_run, per_case, say, table
from reports.record import Record
from reports.text import MISSING, Rich, Span, code, dim, fixed, listed, num, number_of, rich, share


def predictions(record: Record) -> Blocks:
    """The most likely next tokens, aligned by id."""
    names = list(dict.fromkeys(seen.case for seen in views.evidence(record, "topk", "logits")))
    return per_case("logits", names, partial(_predictions, record)) if names else (not_run(),)


def _predictions(record: Record, case: str) -> Blocks:
    frame = views.top_frame(record, case)
    if frame.empty:
        return (not_run(),)
    others = [column[0] for column in frame.columns if isinstance(column, tuple) and column[1] == "rank"]
    first = views.reference(record)
    columns: list[str | Rich] = ["Rank", "Token", "ID", rich(code(first.id if first else "reference"), " logit")]
    columns += [rich(code(name), " logit") for name in others] + [rich(code(name), " rel err") for name in others]
    rows = [
        [
            num(entry["rank_ref"]),
            code(entry["piece"]),
            str(token),
            fixed(entry["ref"]),
            *(_logit(entry, name) for name in others),
            *(_relative(entry, name) for name in others),
        ]
        for token, entry in frame.iterrows()
    ]
    notes = [note for name in others if (note := _swap_note(record, case, name))]
    return (
        table(columns, rows, "Most likely next tokens, aligned by token id", "rlr" + "r" * (len(columns) - 3)),
        *notes,
    )


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
    """The seed's note on swapped ranks, with the probability that honest error predicts."""
    data = views.by_subject(record, "swaps", "logits", case).get(subject)
    swapped = [pair for pair in data["pairs"] if pair["swapped"]] if data else []
    if not data or not swapped:
        return None
    parts: list[str | Span] = [Span("Note on ", "strong"), code(subject), Span(f" ranks {_ranks(swapped)}: ", "strong")]
    for pair in swapped:
        parts += [code(pair["piece_a"]), " and ", code(pair["piece_b"]), " swap; "]
        parts.append(
            f"the gap is {num(pair['gap'])}, honest error (σ = {num(data['sigma'])}) predicts this with probability {share(pair['probability'])}. "
        )
    parts.append(
        f"Swaps expected among these neighbours: {num(data['expected'], 2)}; observed: {num(data['observed'])}."
    )
    return say(*parts)


def _ranks(pairs: Sequence[dict[str, Any]]) -> str:
    return listed([f"{pair['rank']}–{pair['rank'] + 1}" for pair in pairs])


def aggregate(record: Record) -> Blocks:
    """The top of the ranking and every number of suite logits."""
    names = [name for name in views.cases(record, "logits")]
    return per_case("logits", names, partial(_aggregate, record)) if names else (not_run(),)


def _aggregate(record: Record, case: str) -> Blocks:
    lists = views.by_subject(record, "topk", "logits", case)
    frame = views.pivot_frame(record, "logits", case)
    subjects = [subject.id for subject in record.subjects if subject.id in lists or subject.id in frame.columns]
    first = views.reference(record)
    tops = {name: _in_order(data) for name, data in lists.items()}
    base = tops.get(first.id) if first else None
    rows = (
        [
            [
                title,
                *(
                    draw(tops[name], base, first is not None and name == first.id) if name in tops else MISSING
                    for name in subjects
                ),
            ]
            for title, draw in _TOPS
        ]
        if tops
        else []
    )
    units = {m.name: m.unit for m in record.measurements if m.suite == "logits"}
    for name in frame.index:
        unit = f" ({units[name]})" if units.get(name) else ""
        rows.append([name.replace("_", " ") + unit, *(num(frame.loc[name].get(subject)) for subject in subjects)])
    return (table(["Statistic", *(code(name) for name in subjects)], rows, f"Statistics of case {case}"),)


Top = list[dict[str, Any]]


def _in_order(data: dict[str, Any]) -> Top:
    """The rows of a top-k list by the subject's own rank."""
    return sorted((row for row in data["rows"] if row["rank"] is not None), key=lambda row: int(row["rank"]))[
        : data["k"]
    ]


def _top1(top: Top, base: Top | None, own: bool) -> str | Rich:
    return rich(code(top[0]["piece"]), f" ({top[0]['id']})") if top else MISSING


def _top1_logit(top: Top, base: Top | None, own: bool) -> str:
    return fixed(top[0]["logit"]) if top else MISSING


def _top5(top: Top, base: Top | None, own: bool) -> str:
    return ", ".join(str(row["id"]) for row in top[:5])


def _top1_difference(top: Top, base: Top | None, own: bool) -> str:
    """|d| of the logit of the reference's first token."""
    if own or not base:
        return MISSING
    row = next((row for row in top if row["id"] == base[0]["id"]), None)
    got, want = (number_of(row["logit"]), number_of(base[0]["logit"])) if row else (None, None)
    return num(abs(got - want)) if got is not None and want is not None else MISSING


def _match(count: int) -> Callable[[Top, Top | None, bool], str | Rich]:
    def draw(top: Top, base: Top | None, own: bool) -> str | Rich:
        if own or not base:
            return MISSING
        mine, wanted = ([row["id"] for row in rows[:count]] for rows in (top, base))
        text = f"{len(set(mine) & set(wanted))}/{len(wanted)}"
        moved = [str(at + 1) for at, (a, b) in enumerate(zip(mine, wanted, strict=False)) if a != b]
        return rich(text, dim(f" (other order at {'–'.join([moved[0], moved[-1]])})")) if moved else text

    return draw


_TOPS: tuple[tuple[str, Callable[[Top, Top | None, bool], str | Rich]], ...] = (
    ("Top-1 token", _top1),
    ("Top-1 logit", _top1_logit),
    ("Top-5 token IDs", _top5),
    ("Top-1 logit diff from ref", _top1_difference),
    ("Top-5 ID match", _match(5)),
    ("Top-10 ID match", _match(10)),
)
