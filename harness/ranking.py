"""Which tokens come first: rankings, their agreement, and the swaps that rounding explains. numpy only.

Order is always by value, largest first, and by token id among equals, so that it is the same everywhere;
NaN comes last. Letters: T positions, V vocabulary.
"""

import math
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]
Ids = npt.NDArray[np.int64]


def top_k(logits: Array, k: int) -> Ids:
    """Ids of the k largest of `logits` (V,), in order; fewer where V < k.

    Raises:
        ValueError: not one row of logits.
    """
    key = _key(logits)
    k = min(k, key.size)
    if k < 1:
        return np.zeros(0, dtype=np.int64)
    limit = np.partition(key, k - 1)[k - 1]
    among = np.flatnonzero(key <= limit)  # all ties at the limit too, so the stable sort decides
    return among[np.argsort(key[among], kind="stable")][:k].astype(np.int64)


def rank_of(logits: Array, ids: npt.ArrayLike) -> Ids:
    """Ranks of `ids` among `logits` (V,); the largest has rank 1.

    Raises:
        ValueError: not one row of logits, or ids outside of it.
    """
    key = _key(logits)
    wanted = np.asarray(ids, dtype=np.int64)
    if wanted.size and (wanted.min() < 0 or wanted.max() >= key.size):
        raise ValueError(f"ids must lie in 0..{key.size - 1}, got {wanted.min()}..{wanted.max()}.")
    rank = np.empty(key.size, dtype=np.int64)
    rank[np.argsort(key, kind="stable")] = np.arange(1, key.size + 1)
    return rank[wanted]


def top_set_agreement(got: Array, want: Array, k: int = 5) -> dict[str, float]:
    """How well the k first tokens agree, over positions (T, V) or (V,).

    Returns:
        `topK_exact`, share of positions with the same ids in the same order; `topK_set`, with the same ids in
        any order; `topK_overlap`, mean share of the reference's ids found. K is the number. NaN in any logit
        makes all three NaN.
    """
    rows = list(_rows(got, want))
    broken = any(np.isnan(g).any() or np.isnan(w).any() for g, w in rows)
    tops = [] if broken else [(top_k(g, k), top_k(w, k)) for g, w in rows]
    exact = [float(np.array_equal(a, b)) for a, b in tops]
    overlap = [len(np.intersect1d(a, b)) / len(b) for a, b in tops]
    whole = [float(share == 1) for share in overlap]
    named = {f"top{k}_exact": exact, f"top{k}_set": whole, f"top{k}_overlap": overlap}
    return {name: float(np.mean(shares)) if shares else math.nan for name, shares in named.items()}


def swap_table(want: Array, got: Array, sigma: float, k: int = 10) -> dict[str, Any]:
    """Neighbours in the reference's ranking: which may honestly change places, and which did.

    With independent errors of standard deviation sigma on both logits, the sign of a gap flips with probability
    Phi(-gap / (sigma sqrt 2)). The sum of these is the number of swaps to expect; many more is a bug.

    Args:
        want: reference logits of one position, (V,).
        got: the candidate's.
        sigma: RMS error of an honest implementation here, in logits.
        k: how many pairs, the first is ranks 1 and 2.

    Returns:
        {"pairs": [{"rank", "a", "b", "gap", "probability", "swapped"}], "expected", "observed", "chance",
        "sigma"}; `rank` is the upper one's, `chance` the probability of `observed` swaps or more, taking pairs as
        independent. A candidate that has NaN there counts as swapped.
    """
    if want.shape != got.shape or want.ndim != 1:
        raise ValueError(f"one position (V,) is asked for: reference {want.shape}, candidate {got.shape}.")
    ids = [int(i) for i in top_k(want, k + 1)]
    pairs = [_swap(rank, a, b, want, got, sigma) for rank, (a, b) in enumerate(pairwise(ids), start=1)]
    odds = [pair["probability"] for pair in pairs]
    observed = sum(pair["swapped"] for pair in pairs)
    return {
        "pairs": pairs,
        "expected": sum(odds),
        "observed": observed,
        "chance": _at_least(odds, observed),
        "sigma": sigma,
    }


def error_by_rank(got: Array, want: Array, bins: int = 24) -> dict[str, list[float]]:
    """Mean absolute error of logits by rank in the reference, in bins of logarithmic width.

    Returns:
        {"rank": geometric middle of each bin, "abs_err": mean over the bin and all positions}.
    """
    edges = np.unique(np.geomspace(1, want.shape[-1] + 1, bins + 1).round().astype(np.int64))
    total = np.zeros(len(edges) - 1)
    rows = list(_rows(got, want))
    for g, w in rows:
        with np.errstate(invalid="ignore"):
            d = np.abs(np.subtract(g, w, dtype=np.float64))
        order = np.argsort(_key(w), kind="stable")
        total += np.add.reduceat(d[order], edges[:-1] - 1)
    middle = np.sqrt(edges[:-1] * (edges[1:] - 1.0))
    return {"rank": middle.tolist(), "abs_err": (total / np.diff(edges) / len(rows)).tolist()}


def _key(logits: Array) -> npt.NDArray[np.float64]:
    """Sort key of one row: ascending order is the ranking."""
    if logits.ndim != 1 or not logits.size:
        raise ValueError(f"one row of logits (V,) is asked for, got {logits.shape}.")
    key = -logits.astype(np.float64)
    key[np.isnan(key)] = np.inf
    return key


def _rows(got: Array, want: Array) -> "zip[tuple[Array, Array]]":
    if got.shape != want.shape or got.ndim not in {1, 2} or not got.size:
        raise ValueError(
            f"logits must have one equal shape (T, V) or (V,): candidate {got.shape}, reference {want.shape}."
        )
    return zip(np.atleast_2d(got), np.atleast_2d(want), strict=True)


def _swap(rank: int, a: int, b: int, want: Array, got: Array, sigma: float) -> dict[str, Any]:
    gap = float(want[a]) - float(want[b])
    z = gap / (sigma * math.sqrt(2)) if sigma > 0 else (math.inf if gap else 0.0)
    kept = got[a] > got[b] or (got[a] == got[b] and a < b)
    odds = math.erfc(z / math.sqrt(2)) / 2
    return {"rank": rank, "a": a, "b": b, "gap": gap, "probability": odds, "swapped": not kept}


def _at_least(odds: list[float], count: int) -> float:
    """Probability that `count` or more of independent events occur (Poisson binomial)."""
    share = np.zeros(len(odds) + 1)
    share[0] = 1.0
    for p in odds:
        share[1:] = share[1:] * (1 - p) + share[:-1] * p
        share[0] *= 1 - p
    return float(min(1.0, share[count:].sum()))
