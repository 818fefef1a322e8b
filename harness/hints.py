"""What the first wrong tensor looks like, in sentences that a porter can act on.

Each guess turns the expected tensor into what a certain mistake would have recorded. A guess that lands
within honest rounding of the recording is a hint; the nearest come first. Where none does, it still helps
to know at which tokens, heads or channels the difference lies.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np

from backends.base import Array
from harness import replay

Guess = tuple[str, Array]
"""A sentence, and what would have been recorded."""

MOST = 3
"""Hints that are given at most."""

NEAR, NEAR_TRUTH = 0.01, 0.05
"""A guess that leaves this share of the error counts too; more if it stands on the truth, which inherits nothing."""

MOSTLY = 0.9
"""Share of the tokens that a guess must explain; those behind an edge often have a story of their own."""


@dataclass(frozen=True)
class Seen:
    """The first tensor that is wrong by itself, with what is known about it.

    Attributes:
        name: full name ("blocks.1.att.w").
        got: (T, ...), as recorded.
        want: (T, ...), what its equation gives on the recorded inputs.
        truth: (T, ...), what the truth's free run has.
        siblings: other tensors of the sub-layer, short name -> (T, ...), as their equations give them.
        misread: a mistake in words -> (T, ...), see `Session.misread`.
        allowed: (T,), RMS that honest rounding may contribute.
        heads: H of the model.
        edge: token at which the second call began.
    """

    name: str
    got: Array
    want: Array
    truth: Array
    siblings: Mapping[str, Array]
    misread: Mapping[str, Array]
    allowed: replay.Vector
    heads: int
    edge: int


def hints(found: Seen) -> list[str]:
    """The sentences, the likeliest first; empty if nothing was recognised."""
    short = found.name.rpartition(".")[2]
    if not np.isfinite(found.got).all():
        token = int(np.flatnonzero(~np.isfinite(found.got.reshape(len(found.got), -1)).all(axis=1))[0])
        return [f"{short} is not finite from token {token} on: look for an overflow or a division by zero there."]
    return [*_recognised(found, short), *_places(found, short)]


def _recognised(found: Seen, short: str) -> list[str]:
    scored: dict[str, float] = {}
    exact = chain(_layouts(found.want, found, short), _neighbours(found, short), _fits(found, short))
    for near, guesses in ((NEAR, exact), (NEAR_TRUTH, _layouts(found.truth, found, short))):
        for sentence, guess in guesses:
            left = _left(found, guess, near)
            if left is not None:
                scored[sentence] = min(left, scored.get(sentence, np.inf))
    nearest = min(scored.values(), default=0.0)
    few = 2 * nearest + float(np.median(found.allowed))
    return [sentence for sentence, left in scored.items() if left <= few][:MOST]


def _left(found: Seen, guess: Array, near: float) -> float | None:
    """Median RMS that a guess leaves at the wrong tokens; None if it does not explain nearly all of them."""
    got = found.got.astype(np.float64)
    error, left = _rms(got - found.want), _rms(got - guess)
    explained = left <= np.maximum(found.allowed, near * error)
    wrong = ~(error <= found.allowed)
    if not wrong.any() or min(explained.mean(), explained[wrong].mean()) < MOSTLY:
        return None
    return float(np.median(left[wrong]))


def _rms(d: Array) -> replay.Vector:
    """(T,), over everything behind the time axis."""
    with np.errstate(all="ignore"):
        result: replay.Vector = np.sqrt((d.reshape(len(d), -1) ** 2).mean(axis=1))
    return result


def _layouts(base: Array, found: Seen, short: str) -> Iterator[Guess]:
    """The right numbers in another order; `base` is what is expected or what the truth has."""
    if base.ndim >= 3 and base.shape[-1] == base.shape[-2]:
        layout = "its rows must be value channels, its columns key channels"
        yield f"{short} is transposed: {layout}.", base.swapaxes(-1, -2)
    yield from _heads(base, found, short)
    yield f"{short} has the wrong sign.", -base
    yield f"{short} is one token late: at token t it holds that of token t - 1.", _moved(base, 1)
    yield f"{short} is one token early: at token t it holds that of token t + 1.", _moved(base, -1)


def _heads(base: Array, found: Seen, short: str) -> Iterator[Guess]:
    """Heads in another order, or channels dealt out to heads in turn."""
    T, H = len(base), found.heads
    if H == 1 or base[0].size % H:
        return
    split = base.reshape(T, H, -1)
    if base.ndim == 2:
        dealt = "channel c must belong to head c // N, not to head c % H"
        yield f"{short} has its heads interleaved: {dealt}.", split.swapaxes(1, 2).reshape(base.shape)
        yield f"{short} has its heads interleaved: {dealt}.", base.reshape(T, -1, H).swapaxes(1, 2).reshape(base.shape)
    got = found.got.reshape(T, H, -1).astype(np.float64)
    order = [int(np.argmin([((got[:, h] - split[:, other]) ** 2).sum() for other in range(H)])) for h in range(H)]
    if order != list(range(H)):
        yield f"{short} has its heads in the order {', '.join(map(str, order))}.", split[:, order].reshape(base.shape)


def _moved(x: Array, by: int) -> Array:
    moved = np.zeros_like(x)
    if by > 0:
        moved[by:] = x[:-by]
    else:
        moved[:by] = x[-by:]
        moved[by:] = x[by:]  # what came after the last token is not known
    return moved


def _neighbours(found: Seen, short: str) -> Iterator[Guess]:
    """Another tensor in its place, or the same equation read wrongly."""
    for other, value in found.siblings.items():
        if value.shape == found.want.shape:
            yield (
                f"{short} holds what {other} should hold: the two are exchanged, or a step between them is missing.",
                value,
            )
    for words, value in found.misread.items():
        yield f"{short} is what its equation gives if {words}.", value


def _fits(found: Seen, short: str) -> Iterator[Guess]:
    """One factor for all entries; one vector that is missing or too much at every token."""
    got, want = found.got.astype(np.float64), found.want
    square = float((want**2).sum())
    factor = float((got * want).sum()) / square if square else 0.0
    if factor > 0:
        yield f"{short} is {factor:.6g} times what it should be.", factor * want
    if len(want) > 2:
        offset = (got - want).mean(axis=0, keepdims=True)
        yield f"{short} is off by the same vector at every token: a bias is missing or applied twice.", want + offset


def _places(found: Seen, short: str) -> Iterator[str]:
    """Where the difference lies, if it does not lie everywhere."""
    error = _rms(found.got.astype(np.float64) - found.want)
    tokens = np.flatnonzero(error > found.allowed).tolist()
    if len(found.got) > 1 and tokens in ([0], [found.edge]):
        where = "the first token" if tokens == [0] else f"token {found.edge}, the first of the second call"
        yield f"Only {where} is wrong: what is carried over from before?"
    elif len(found.got) > 1 and tokens and tokens[0] == found.edge:
        yield f"Everything is right up to token {found.edge}, where the second call begins: is the state carried over?"
    d = np.abs(found.got.astype(np.float64) - found.want)
    limit = 4 * float(found.allowed.max())  # one channel scatters more than the mean of all
    yield from _parts(d, limit, found.heads if ".att." in found.name else 1, short)


def _parts(d: Array, limit: float, heads: int, short: str) -> Iterator[str]:
    """The channels or heads that differ, if they are few."""
    by_channel = d.reshape(len(d), -1).max(axis=0)
    wrong = np.flatnonzero(by_channel > limit)
    if d.ndim == 2 and 0 < wrong.size <= max(1, by_channel.size // 32):
        yield f"Only channel {_listed(wrong.tolist())} of {short} is wrong: a row of a weight?"
    elif heads > 1 and by_channel.size % heads == 0 and wrong.size:
        hit = sorted({int(h) for h in wrong * heads // by_channel.size})
        if len(hit) == 1:
            yield f"Only head {hit[0]} of {short} is wrong."


def _listed(items: Sequence[int], most: int = 4) -> str:
    return ", ".join(map(str, items[:most])) + (f" and {len(items) - most} more" if len(items) > most else "")


def in_layers(layers: Sequence[int], total: int, short: str) -> str:
    """In which blocks a tensor is out; empty where that says nothing."""
    if total > 1 and list(layers) == [0]:
        return f"Only layer 0 has {short} wrong; the other layers have it right."
    if total > 2 and list(layers) == list(range(1, total)):
        return f"Every layer but the first has {short} wrong."
    if len(layers) == 1 < total:
        return f"Only layer {layers[0]} has {short} wrong."
    if 0 < len(layers) < total:
        return f"Only layers {_listed(layers)} have {short} wrong."
    return ""
