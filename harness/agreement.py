"""Compares two dumps: as much as both hold, and says what stays untested. Numbers only; harness.compare judges."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from backends.base import Array
from backends.dumps import Dump
from harness import metrics
from reports.record import Measurement, Observation

LISTED = 10
"""Leading tokens that tables show."""

PROMPT = "prompt"
"""Case under which the evidence of a dump stands; it holds one prompt."""


@dataclass
class Findings:
    """What a comparison collects.

    Attributes:
        suite: "compare" for dumps, "baseline" for records.
        reference, candidate: subject ids.
        abilities: what is there to be compared; a criterion that needs more is *unsupported*.
        cases: case -> its suite, in order.
        model: what is known about it.
    """

    suite: str
    reference: str
    candidate: str
    measurements: list[Measurement] = field(default_factory=list)
    observations: list[Observation] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    abilities: set[str] = field(default_factory=set)
    cases: dict[str, str] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)

    def add(self, case: str, name: str, value: float | None, unit: str = "", where: str = "") -> None:
        """Keep a number of an opened case."""
        self.measurements.append(Measurement(self.cases[case], case, self.candidate, name, value, unit, where))

    def case(self, name: str, suite: str = "") -> str:
        """Open a case: from here on its criteria apply."""
        self.cases.setdefault(name, suite or self.suite)
        return name


def agree(want: Dump, got: Dump, into: Findings) -> None:
    """Compare everything that both dumps hold.

    Args:
        want: the reference.
        got: the candidate.
        into: collects measurements, evidence and notes.
    """
    into.model = {"name": want.model or got.model} if want.model or got.model else {}
    if not _same_prompt(want, got, into):
        return
    into.abilities |= {"probs"} if got.probs is not None else set()
    into.abilities |= {"reference-probs"} if want.probs is not None else set()
    if want.logits is not None and got.logits is not None:
        _logits(want, got, into)
    elif _scores(want) is not None and _scores(got) is not None:
        _distribution(want, got, into)
    elif _leading(want) and _leading(got):
        _top(_leading(want), _leading(got), want, got, into)
    _state(want, got, into)
    _generated(want, got, into)
    _untested(want, got, into)
    if not {m.case for m in into.measurements} - {"tokens", "generation"}:  # equal prompts alone prove nothing
        into.cases.clear()
        into.measurements.clear()


def top_numbers(want: Mapping[int, float], got: Mapping[int, float]) -> dict[str, tuple[float | None, str]]:
    """Agreement of two lists of leading tokens, each id -> logit.

    Returns:
        name -> (value, where): `top1_differs` and `top5_differs` (0 or 1; ids in order, by logit), `top1_logit_diff`
        (None if the candidate does not list the reference's first), `top_rel_max`, the largest |difference| of a
        listed logit relative to itself (at least to 1% of the largest, so that a logit near 0 is no excuse),
        `top_shared`, how many ids stand in both. NaN where a logit is not finite.
    """
    shared = [i for i in want if i in got]
    finite = all(math.isfinite(x) for x in (*want.values(), *got.values()))
    a, b = (sorted(part, key=lambda i: (-part[i], i)) for part in (want, got))
    k = min(5, len(a), len(b))
    floor = 0.01 * max(abs(x) for x in want.values())
    errors = {i: abs(got[i] - want[i]) / (max(abs(want[i]), floor) or 1.0) for i in shared}
    worst = max(errors, key=lambda i: errors[i]) if finite and errors else None
    first = abs(got[a[0]] - want[a[0]]) if a[0] in got else None
    return {
        "top1_differs": (float(a[0] != b[0]) if finite else math.nan, f"id {b[0]} for {a[0]}" if a[0] != b[0] else ""),
        "top5_differs": (float(a[:k] != b[:k]) if finite else math.nan, f"the first {k}"),
        "top1_logit_diff": (first, f"id {a[0]}"),
        "top_rel_max": (errors[worst] if worst is not None else math.nan, f"id {worst}" if worst is not None else ""),
        "top_shared": (float(len(shared)), f"of {len(want)} and {len(got)}"),
    }


def _same_prompt(want: Dump, got: Dump, into: Findings) -> bool:
    """Whether the prompts are, or may be, the same."""
    if want.tokens and got.tokens:
        into.abilities.add("tokens")
        pairs = zip(want.tokens, got.tokens, strict=False)
        at = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(want.tokens), len(got.tokens)))
        same = want.tokens == got.tokens
        into.add(into.case("tokens"), "tokens_differ", float(not same), where="" if same else f"position {at}")
        if not same:
            into.notes.append(f"The prompts part at token {at}, so nothing that follows from them was compared.")
        return same
    if want.tokens or got.tokens:
        into.case("tokens")
    return True


def _logits(want: Dump, got: Dump, into: Findings) -> None:
    """Whole logits on both sides."""
    case = into.case("logits")
    pair = _aligned(want.logits, got.logits, case, into)
    if pair is None:
        return
    w, g = pair
    numbers = metrics.logit_numbers(g, w)
    t, token = metrics.worst(g, w)
    for name in metrics.LOGIT_NUMBERS:
        where = f"position {t}, id {token}" if name in {"max_abs", "deviation"} else ""
        into.add(case, name, numbers[name], "logit" if name in {"max_abs", "mae", "rms", "bias"} else "", where)
    into.add(case, "mse", numbers["rms"] ** 2, "logit^2")
    for k in (1, 5, 10):
        into.add(case, f"top{k}_differs", 1 - metrics.top_set_agreement(g, w, k)[f"top{k}_exact"])
    _divergences(w, g, case, into)
    _recorded(want, got, case, into)
    _show(_listed(w[-1], g[-1]), want, got, into)
    into.observations.append(
        Observation("logits", PROMPT, into.candidate, "error_by_rank", metrics.error_by_rank(g, w))
    )


def _distribution(want: Dump, got: Dump, into: Findings) -> None:
    """Probabilities on at least one side: their logarithms stand in for logits, up to a constant."""
    case = into.case("distribution")
    pair = _aligned(_scores(want), _scores(got), case, into)
    if pair is None:
        return
    w, g = pair
    into.add(case, "top1_differs", 1 - metrics.top_set_agreement(g, w, 1)["top1_exact"])
    _divergences(w, g, case, into)
    _recorded(want, got, case, into)
    into.notes.append("A side has probabilities only: errors of logits are untested.")


def _divergences(w: Array, g: Array, case: str, into: Findings) -> None:
    numbers = metrics.distribution_numbers(g, w)
    for name in ("kl_max", "kl_mean", "kl_reverse_max", "kl_reverse_mean", "js_max", "prob_l1", "prob_l2", "prob_linf"):
        into.add(case, name, numbers[name], "" if name.startswith("prob") else "nat")


def _recorded(want: Dump, got: Dump, case: str, into: Findings) -> None:
    """Recorded probabilities of both sides, each by itself."""
    for dump, suffix in ((got, ""), (want, "_reference")):
        if dump.probs is None:
            continue
        p = np.atleast_2d(dump.probs).astype(np.float64)
        into.add(case, f"prob_sum_off{suffix}", float(np.abs(p.sum(1) - 1).max()))
        into.add(case, f"prob_min{suffix}", float(p.min()))
        if dump.logits is not None:
            into.add(case, f"prob_off_softmax{suffix}", _off_softmax(p[-1], np.atleast_2d(dump.logits)[-1]))


def _off_softmax(p: Array, logits: Array) -> float | None:
    """Largest difference between recorded probabilities and the softmax of the logits; None for unequal shapes."""
    if p.shape != logits.shape:
        return None
    with np.errstate(invalid="ignore", over="ignore"):
        e = np.exp(logits.astype(np.float64) - logits.max())
        return float(np.abs(e / e.sum() - p).max())


def _top(w: Mapping[int, float], g: Mapping[int, float], want: Dump, got: Dump, into: Findings) -> None:
    """Leading tokens only."""
    case = into.case("top")
    for name, (value, where) in top_numbers(w, g).items():
        into.add(case, name, value, "logit" if name == "top1_logit_diff" else "", where)
    shared = [abs(want.top_probs[i] - got.top_probs[i]) for i in want.top_probs if i in got.top_probs]
    if shared:
        into.add(case, "prob_linf", float(np.max(shared)))
    _show([(i, w.get(i), g.get(i)) for i in dict.fromkeys((*w, *g))], want, got, into)
    into.notes.append(f"Only {min(len(w), len(g))} logits are there on a side: all others are untested.")


def _leading(dump: Dump) -> dict[int, float]:
    """The leading tokens of any dump after the prompt, best first; empty where logits are not known."""
    if dump.logits is None:
        return dict(dump.top)
    row = np.atleast_2d(dump.logits)[-1]
    return {int(i): float(row[i]) for i in metrics.top_k(row, LISTED)}


def _listed(w: Array, g: Array) -> list[tuple[int, float | None, float | None]]:
    ids = dict.fromkeys((*metrics.top_k(w, LISTED).tolist(), *metrics.top_k(g, LISTED).tolist()))
    return [(i, float(w[i]), float(g[i])) for i in ids]


def _show(rows: list[tuple[int, float | None, float | None]], want: Dump, got: Dump, into: Findings) -> None:
    """The evidence for the table of leading tokens, and the prompt."""
    pieces = {**got.pieces, **want.pieces}
    ranks = [_ranks({i: row[side] for i, *row in rows}) for side in (0, 1)]
    for side, subject in enumerate((into.reference, into.candidate)):
        table = [
            {
                "id": i,
                "piece": pieces.get(i, ""),
                "rank_ref": ranks[0].get(i),
                "rank": ranks[side].get(i),
                "ref": w,
                "logit": (w, g)[side],
            }
            for i, w, g in rows
        ]
        data = {"k": LISTED, "position": max(len(want.tokens), len(got.tokens), 1) - 1, "rows": table}
        into.observations.append(Observation("logits", PROMPT, subject, "topk", data))
        tokens = (want, got)[side].tokens
        text = {"prompt": want.prompt or got.prompt, "ids": list(tokens), "pieces": [pieces.get(i, "") for i in tokens]}
        if tokens:
            into.observations.append(Observation("tokenization", PROMPT, subject, "tokens", text))


def _ranks(logits: Mapping[int, float | None]) -> dict[int, int]:
    known = {i: x for i, x in logits.items() if x is not None}
    return {i: rank for rank, i in enumerate(sorted(known, key=lambda i: (-known[i], i)), start=1)}


def _state(want: Dump, got: Dump, into: Findings) -> None:
    """Recurrent state by component."""
    if not want.state and not got.state:
        return
    case = into.case("state")
    shared = [name for name in want.state if name in got.state]
    missing = sorted(set(want.state) ^ set(got.state))
    if missing:
        into.notes.append(f"State components on one side only, so untested: {', '.join(missing)}.")
    if not shared:
        return
    into.abilities.add("state")
    odd = [name for name in shared if want.state[name].shape != got.state[name].shape]
    into.add(case, "shapes_differ", float(bool(odd)), where=", ".join(odd))
    if not odd:
        parts = metrics.state_error({n: got.state[n] for n in shared}, {n: want.state[n] for n in shared})
        for measure in ("rel_rms", "max_abs"):
            worst = max(shared, key=lambda n: np.nan_to_num(parts[n][measure], nan=np.inf))
            into.add(case, f"state_{measure}", parts[worst][measure], where=worst)


def _generated(want: Dump, got: Dump, into: Findings) -> None:
    """Greedy continuations: how far they run together. Not judged; one near tie parts two honest ports."""
    if want.generated and got.generated:
        length = min(len(want.generated), len(got.generated))
        pairs = zip(want.generated, got.generated, strict=False)
        same = next((i for i, (a, b) in enumerate(pairs) if a != b), length)
        into.add(into.case("generation"), "generated_same", float(same), where=f"of {length}")


def _aligned(want: Array | None, got: Array | None, case: str, into: Findings) -> tuple[Array, Array] | None:
    """Both as (T, V); the last position of the longer where the other holds one position only."""
    assert want is not None
    assert got is not None
    w, g = np.atleast_2d(want), np.atleast_2d(got)
    if w.shape[1] == g.shape[1] and w.shape[0] != g.shape[0] and 1 in {len(w), len(g)}:
        w, g = w[-1:], g[-1:]
        into.notes.append("One side holds only the last position: the others are untested.")
    differ = w.shape != g.shape
    where = f"reference {want.shape}, candidate {got.shape}"
    into.add(case, "shapes_differ", float(differ), where=where if differ else "")
    if differ:
        into.notes.append(f"The shapes differ ({where}), so no values were compared.")
    return None if differ else (w, g)


def _scores(dump: Dump) -> Array | None:
    """Logits, or what stands in for them."""
    if dump.logits is not None or dump.probs is None:
        return dump.logits
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.log(dump.probs.astype(np.float64)))


def _untested(want: Dump, got: Dump, into: Findings) -> None:
    """What neither side holds."""
    there = {
        "the prompt's tokens": want.tokens or got.tokens,
        "probabilities": want.probs is not None or got.probs is not None or want.top_probs or got.top_probs,
        "the recurrent state": want.state or got.state,
    }
    absent = [name for name, held in there.items() if not held]
    if absent:
        into.notes.append(f"In neither file, so untested: {', '.join(absent)}.")
    ignored = sorted({*want.ignored, *got.ignored})
    if ignored:
        into.notes.append(
            f"Names that nothing here reads: {', '.join(ignored[:12])}{', ...' if len(ignored) > 12 else ''}."
        )
