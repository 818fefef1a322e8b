"""How far two sets of logits, distributions or states lie apart. numpy only, float64, numbers and no verdicts.

Letters: T positions, V vocabulary, p the reference's probabilities, q the candidate's. A (V,) array counts
as one position. Shapes must be equal, nothing is broadcast (ValueError). Rows are walked in blocks, so that
no second copy of the logits is ever made. What is not finite makes the numbers NaN, which no criterion passes.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from harness.ranking import error_by_rank, rank_of, swap_table, top_k, top_set_agreement
from harness.statistics import Drift, drift, order_statistic

__all__ = [
    "Drift",
    "distribution_numbers",
    "drift",
    "error_by_rank",
    "ladder",
    "logit_numbers",
    "rank_of",
    "state_error",
    "swap_table",
    "top_k",
    "top_set_agreement",
    "worst",
]

Array = npt.NDArray[np.floating]
Vector = npt.NDArray[np.float64]

BLOCK = 1 << 17
"""Elements of a block: 1 MB of float64, so that its dozen temporaries stay in a core's cache."""

LOGIT_NUMBERS = (
    *("max_abs", "mae", "rms", "rel_rms", "deviation", "nmse"),
    *("correlation", "cosine", "bias", "bias_z", "top1"),
)
"""What `logit_numbers` returns."""

LADDER = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999))
"""Percentiles of a ladder, between its mean and its maximum."""


def logit_numbers(got: Array, want: Array) -> dict[str, float]:
    """Error of logits over all positions.

    Args:
        got: the candidate's, (T, V) or (V,).
        want: the reference's, same shape.

    Returns:
        Over all elements: `max_abs`, `mae` and `rms` of got - want; `rel_rms` = rms / std(want); `deviation` =
        max_abs / std(want), the number that rwkv_v7_numpy.py prints; `nmse` = sum d^2 / sum want^2 (llama.cpp);
        `correlation` (Pearson). `cosine` is the smallest over positions. `bias` is the mean signed error and
        `bias_z` = bias / its standard error *over positions*, since errors inside a position are correlated; 0
        for a single position, which cannot tell a bias from chance. `top1`: share of positions with the
        same argmax. All NaN where anything is not finite.

    Raises:
        ValueError: the shapes differ, or there is nothing to compare.
    """
    got, want = _pair(got, want)
    mean_g, mean_w = _mean(got), _mean(want)
    if not (math.isfinite(mean_g) and math.isfinite(mean_w)):
        return dict.fromkeys(LOGIT_NUMBERS, math.nan)
    rows = _gather(_logit_rows(g, w, mean_g, mean_w) for _, g, w in _blocks(got, want))
    n = got.size
    max_abs, rms = float(rows["max"].max()), math.sqrt(rows["dd"].sum() / n)
    std = math.sqrt(rows["ww_centred"].sum() / n)
    spread = math.sqrt(rows["gg_centred"].sum()) * math.sqrt(rows["ww_centred"].sum())
    return {
        "max_abs": max_abs,
        "mae": float(rows["abs"].sum() / n),
        "rms": rms,
        "rel_rms": _ratio(rms, std),
        "deviation": _ratio(max_abs, std),
        "nmse": _ratio(float(rows["dd"].sum()), float(rows["ww"].sum())),
        "correlation": float(rows["gw_centred"].sum() / spread) if spread else math.nan,
        "cosine": float(rows["cosine"].min()),
        "bias": float(rows["bias"].mean()),
        "bias_z": _z(rows["bias"]),
        "top1": float(rows["top1"].mean()),
    }


def worst(got: Array, want: Array) -> tuple[int, int]:
    """Where the error is largest, as (position, token id); the first that is not finite comes before any other."""
    got, want = _pair(got, want)
    best, at = -1.0, (0, 0)
    for start, g, w in _blocks(got, want):
        with np.errstate(invalid="ignore"):
            d = np.abs(g - w)
        d[~np.isfinite(d)] = np.inf
        t, v = np.unravel_index(int(d.argmax()), d.shape)
        if d[t, v] > best:
            best, at = float(d[t, v]), (start + int(t), int(v))
    return at


def distribution_numbers(got: Array, want: Array, targets: npt.ArrayLike | None = None) -> dict[str, float]:
    """How far the predicted distributions softmax(got), softmax(want) lie apart, in nats.

    A logit of -inf is a token of probability 0; NaN, +inf and a position of nothing but -inf make all numbers NaN.

    Args:
        got: the candidate's logits, (T, V) or (V,).
        want: the reference's, same shape.
        targets: the token that really came next, (T,); None where there is none.

    Returns:
        Ladders (mean, p50, p90, p99, p99.9, max over positions) `kl_*` of KL(want || got), `kl_reverse_*` of
        KL(got || want) and `js_*` of Jensen-Shannon; `same_top`, share of positions with equal argmax; `prob_linf`,
        `prob_l1`, `prob_l2`, distances of the probabilities, largest over positions; `prob_sum_error`, the largest
        |sum q - 1|. With targets also `ppl`, `ppl_ref`, `log_ppl_ratio` = ln(ppl / ppl_ref) with its paired
        standard error `log_ppl_ratio_se` (inf for one position), and `delta_p_rms` of the target's probability.

    Raises:
        ValueError: shapes differ, nothing to compare, or targets that are no ids of this vocabulary.
    """
    got, want = _pair(got, want)
    ids = None if targets is None else _targets(targets, *got.shape)
    rows = _gather(
        _distribution_rows(g, w, None if ids is None else ids[start : start + len(g)])
        for start, g, w in _blocks(got, want)
    )
    numbers: dict[str, float] = {}
    for name in ("kl", "kl_reverse", "js"):
        numbers |= {f"{name}_{step}": value for step, value in ladder(rows[name]).items()}
    numbers["same_top"] = float(rows["same_top"].mean())
    for name in ("prob_linf", "prob_l1", "prob_l2", "prob_sum_error"):
        numbers[name] = float(rows[name].max())
    return numbers | (_perplexity(rows) if ids is not None else {})


def ladder(values: Vector) -> dict[str, float]:
    """Mean, percentiles and maximum. Percentiles are values that occurred (no interpolation), rounded upwards."""
    steps = {name: order_statistic(values, share) for name, share in LADDER}
    return {"mean": float(np.mean(values)), **steps, "max": float(np.max(values))}


def state_error(got: Mapping[str, Array], want: Mapping[str, Array]) -> dict[str, dict[str, float]]:
    """Error of a recurrent state by component (`State.parts()`).

    Returns:
        component -> {"max_abs", "rel_rms"}; rel_rms = RMS(got - want) / RMS(want).

    Raises:
        ValueError: the components or their shapes differ.
    """
    if set(got) != set(want):
        raise ValueError(f"state components differ: candidate has {sorted(got)}, reference has {sorted(want)}.")
    return {name: _component_error(name, got[name], want[name]) for name in want}


def _component_error(name: str, got: Array, want: Array) -> dict[str, float]:
    if got.shape != want.shape or not want.size:
        raise ValueError(f"state component {name}: candidate {got.shape}, reference {want.shape}.")
    with np.errstate(invalid="ignore", over="ignore"):
        d = np.subtract(got, want, dtype=np.float64)
        rms, size = math.sqrt(np.mean(d * d)), math.sqrt(np.mean(np.square(want, dtype=np.float64)))
    if not (math.isfinite(rms) and math.isfinite(size)):
        return {"max_abs": math.nan, "rel_rms": math.nan}
    return {"max_abs": float(np.abs(d).max()), "rel_rms": _ratio(rms, size)}


def _pair(got: Array, want: Array) -> tuple[Array, Array]:
    """Both as (T, V), or a ValueError in words."""
    got, want = np.asarray(got), np.asarray(want)
    if got.shape != want.shape or got.ndim not in {1, 2} or not got.size:
        raise ValueError(
            f"logits must have one equal shape (T, V) or (V,): candidate {got.shape}, reference {want.shape}."
        )
    return np.atleast_2d(got), np.atleast_2d(want)


def _targets(targets: npt.ArrayLike, T: int, V: int) -> npt.NDArray[np.int64]:
    ids = np.asarray(targets)
    if ids.shape != (T,) or not np.issubdtype(ids.dtype, np.integer):
        raise ValueError(f"targets must be {T} token ids, got {ids.dtype} {ids.shape}.")
    if ids.min() < 0 or ids.max() >= V:
        raise ValueError(f"targets must lie in 0..{V - 1}, got {ids.min()}..{ids.max()}.")
    return ids.astype(np.int64)


def _blocks(got: Array, want: Array) -> Iterator[tuple[int, Vector, Vector]]:
    """Runs of rows as float64: (first row, got, want)."""
    rows = max(1, BLOCK // got.shape[1])
    for start in range(0, len(got), rows):
        part = slice(start, start + rows)
        yield start, got[part].astype(np.float64), want[part].astype(np.float64)


def _gather(parts: Iterator[dict[str, Vector]]) -> dict[str, Vector]:
    """Numbers per row, of all blocks."""
    blocks = list(parts)
    return {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}


def _mean(x: Array) -> float:
    """Mean over all elements; not finite exactly where an element is not."""
    with np.errstate(invalid="ignore", over="ignore"):
        return float(sum(row.sum(dtype=np.float64) for row in x) / x.size)


def _logit_rows(g: Vector, w: Vector, mean_g: float, mean_w: float) -> dict[str, Vector]:
    """Sums over the vocabulary that `logit_numbers` is made from, one value a position."""
    d = g - w
    magnitude = np.abs(d)
    gg, ww, same = _dot(g, g), _dot(w, w), g.argmax(1) == w.argmax(1)
    norms = np.sqrt(gg) * np.sqrt(ww)
    cosine = np.divide(_dot(g, w), norms, out=np.full_like(norms, np.nan), where=norms > 0)
    g, w = g - mean_g, w - mean_w
    return {
        "max": magnitude.max(1),
        "abs": magnitude.sum(1),
        "dd": _dot(d, d),
        "ww": ww,
        "cosine": cosine,
        "bias": d.mean(1),
        "top1": same.astype(np.float64),
        "gg_centred": _dot(g, g),
        "ww_centred": _dot(w, w),
        "gw_centred": _dot(g, w),
    }


def _dot(a: Vector, b: Vector) -> Vector:
    """Row by row."""
    return np.asarray(np.einsum("tv,tv->t", a, b))


def _distribution_rows(g: Vector, w: Vector, ids: npt.NDArray[np.int64] | None) -> dict[str, Vector]:
    """What `distribution_numbers` is made from, one value a position; NaN where a position is no distribution."""
    same = g.argmax(1) == w.argmax(1)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore", under="ignore"):
        broken = ~(np.isfinite(g.max(1)) & np.isfinite(w.max(1)))
        lq, lp = _log_softmax(g), _log_softmax(w)
        q, p = np.exp(lq), np.exp(lp)
        m = (p + q) / 2
        lm, d = np.log(m), np.abs(q - p)
        rows = {
            "kl": _kl_terms(p, q, lq - lp).sum(1),
            "kl_reverse": _kl_terms(q, p, lp - lq).sum(1),
            "js": (_kl_terms(p, m, lm - lp).sum(1) + _kl_terms(q, m, lm - lq).sum(1)) / 2,
            "same_top": same.astype(np.float64),
            "prob_linf": d.max(1),
            "prob_l1": d.sum(1),
            "prob_l2": np.sqrt(_dot(d, d)),
            "prob_sum_error": np.abs(q.sum(1) - 1),
        }
    if ids is not None:
        t = np.arange(len(ids))
        rows |= {"nll": -lq[t, ids], "nll_ref": -lp[t, ids], "delta_p": q[t, ids] - p[t, ids]}
    for row in rows.values():
        row[broken] = np.nan
    return rows


def _log_softmax(x: Vector) -> Vector:
    """Natural logarithms of the probabilities, row by row."""
    x = x - x.max(1, keepdims=True)
    return np.asarray(x - np.log(np.exp(x).sum(1, keepdims=True)))


def _kl_terms(p: Vector, q: Vector, x: Vector) -> Vector:
    """Terms p (e^x - 1 - x), x = ln(q / p), whose sum is KL(p || q).

    The usual sum of -p x differs from it by sum(q - p) = 0, but its terms have both signs and are of first order
    in x, so that rounding (1e-16) hides any KL below that, and can make it negative. Here every term is >= 0 and
    of second order: below |x| = 0.01 its Taylor series (4 terms, exact to 3e-11), above it q - p - p x.
    """
    series = p * x * x * (1 / 2 + x * (1 / 6 + x * (1 / 24 + x / 120)))
    direct = q - np.where(p > 0, p + p * x, 0.0)  # p = 0: nothing but q is left of the term
    return np.where(np.abs(x) < 0.01, series, direct)


def _perplexity(rows: dict[str, Vector]) -> dict[str, float]:
    """Perplexities, and their ratio by paired differences, which cancels how hard the text is."""
    with np.errstate(invalid="ignore", over="ignore"):
        difference = rows["nll"] - rows["nll_ref"]
        n = len(difference)
        return {
            "ppl": float(np.exp(rows["nll"].mean())),
            "ppl_ref": float(np.exp(rows["nll_ref"].mean())),
            "log_ppl_ratio": float(difference.mean()),
            "log_ppl_ratio_se": float(difference.std(ddof=1) / math.sqrt(n)) if n > 1 else math.inf,
            "delta_p_rms": math.sqrt(np.mean(np.square(rows["delta_p"]))),
        }


def _z(per_row: Vector) -> float:
    """Mean over its standard error; 0 for one row."""
    if len(per_row) < 2:
        return 0.0
    mean = float(per_row.mean())
    return math.copysign(_ratio(abs(mean), float(per_row.std(ddof=1)) / math.sqrt(len(per_row))), mean)


def _ratio(a: float, b: float) -> float:
    """Quotient of a, b >= 0; no error relative to nothing is 0, some error is inf."""
    return a / b if b else (0.0 if a == 0 else math.inf)
