"""Logits: error at all positions, the ranking after the prompt, and which swaps rounding explains."""

import math
from typing import Any

import numpy as np

from backends.base import Array, Session
from harness import metrics
from harness.measures.base import Context, Evidence, Number, Sample, all_logits

TOP = 5  # the seed's ranking criterion looks at five


def collect(session: Session, context: Context, truth: Sample | None, rows: int = 1) -> list[Sample]:
    """Logits (T, V) of the prompt from the zero state; (1, V) from a subject that only gives the last."""
    del truth
    return [{"logits": logits} for logits in all_logits(session, context.tokens, rows)]


def compare(got: Sample, truth: Sample, context: Context) -> list[Number]:
    """Errors over all positions, and what happened to the ranking after the last token.

    `rms_median`: median over positions of the RMS error; a few ill-conditioned positions (a first token whose
    r.k is nearly zero) may throw an honest `rms` or `max_abs` far off, but not this.
    `top1_differs`, `top5_differs`: 1 if the first id, or the first five in order, are others.
    `top5_unexplained`: ranks among the first five held by another id although the truth's gap to it is
    more than honest rounding moves two logits apart.
    """
    candidate, want = _common(got, truth)
    numbers = metrics.logit_numbers(candidate, want)
    t, token = metrics.worst(candidate, want)
    where = f"token {len(context.tokens) - len(want) + t}, id {token}"
    found = [
        Number(name, numbers[name], unit, where if name == "max_abs" else "")
        for name, unit in (
            *(("max_abs", "logit"), ("rms", "logit"), ("rel_rms", ""), ("deviation", ""), ("nmse", "")),
            *(("cosine", ""), ("bias", "logit"), ("bias_z", "sigma")),
        )
    ]
    typical = Number("rms_median", _typical(candidate, want), "logit")
    return [*found, typical, *_ranking(candidate[-1], want[-1], context)]


def _common(got: Sample, truth: Sample) -> tuple[Array, Array]:
    """Logits at the positions that both have: either side may give only the last."""
    reach = min(len(got["logits"]), len(truth["logits"]))
    return got["logits"][-reach:], truth["logits"][-reach:]


def _typical(got: Array, want: Array) -> float:
    """Median over positions of the RMS error of a position; NaN where any is not finite."""
    squares = [float(np.mean(np.subtract(g, w, dtype=np.float64) ** 2)) for g, w in zip(got, want, strict=True)]
    return math.sqrt(np.median(squares))


def _ranking(got: Array, want: Array, context: Context) -> list[Number]:
    ids, expected = metrics.top_k(got, TOP), metrics.top_k(want, TOP)
    finite = bool(np.isfinite(got).all())
    error = float(np.sqrt(np.mean((got.astype(np.float64) - want) ** 2)))
    allowed = 2 * context.largest("max_abs_last")
    moved = [(a, b) for a, b in zip(ids, expected, strict=True) if a != b]
    unexplained = [(a, b) for a, b in moved if not abs(want[a] - want[b]) <= allowed]
    first = expected[0]
    return [
        Number("rms_last", error, "logit"),
        Number("max_abs_last", float(np.max(np.abs(got.astype(np.float64) - want))), "logit"),
        Number("top1_differs", float(ids[0] != first) if finite else math.nan),
        Number("top1_logit_diff", abs(float(got[first]) - float(want[first])), "logit", f"id {first}"),
        Number("top5_differs", float(bool(moved)) if finite else math.nan),
        Number("top5_unexplained", float(len(unexplained)) if finite else math.nan),
    ]


def observe(got: Sample, truth: Sample, context: Context) -> Evidence:
    """The table of leading tokens, aligned by id; for candidates the swaps and the error by rank."""
    candidate, want = got["logits"][-1], truth["logits"][-1]
    k = int(context.case.options.get("top", 10))
    yield "topk", _top_table(candidate, want, k, context)
    if got is truth:
        return
    sigma = context.largest("rms_last")
    if sigma > 0:
        table = metrics.swap_table(want, candidate, sigma, k)
        for pair in table["pairs"]:
            pair |= {"piece_a": context.piece(pair["a"]), "piece_b": context.piece(pair["b"])}
        yield "swaps", table
    yield "error_by_rank", metrics.error_by_rank(*_common(got, truth))


def _top_table(got: Array, want: Array, k: int, context: Context) -> dict[str, Any]:
    ids = list(dict.fromkeys([*metrics.top_k(want, k).tolist(), *metrics.top_k(got, k).tolist()]))
    ranks, expected = metrics.rank_of(got, ids), metrics.rank_of(want, ids)
    rows = [
        {
            "id": i,
            "piece": context.piece(i),
            "rank_ref": int(expected[n]),
            "rank": int(ranks[n]),
            "ref": float(want[i]),
            "logit": float(got[i]),
        }
        for n, i in enumerate(ids)
    ]
    return {"k": k, "position": len(context.tokens) - 1, "rows": rows}
