"""Consistency: one shot, chunks, single tokens, rows of a batch and a repeat are one and the same.

Nothing is compared with the truth: a subject is compared with itself, and the difference between two
honest runs gives the limit.
"""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from backends.base import Array, Ids, Session, Want
from harness import metrics
from harness.measures.base import Context, Evidence, Number, Sample

ALONE = True

Run = tuple[Array, dict[str, Array]]
"""Logits (T, V) and the state's components (L, ...) of one row."""


def collect(session: Session, context: Context, truth: Sample | None, rows: int = 1) -> list[Sample]:
    """One shot, then every other way as a difference from it; honest runs are compared with the first of them."""
    del truth
    tokens = context.tokens[: context.case.options["tokens"]]
    if rows > 1:
        runs = _runs(session, np.tile(tokens, (rows, 1)))
        return [{"rows": [_difference("another honest run", run, runs[0])]} for run in runs[1:]]
    base = _runs(session, tokens[None])[0]
    ways = [_difference(name, run(), base) for name, run in _ways(session, tokens, context)]
    return [{"rows": [*ways, _input_state(session, tokens)]}]


def compare(got: Sample, truth: Sample, context: Context) -> list[Number]:
    """`max_abs` and `state` over all ways of feeding; `repeat_differs` and `input_state_moved` by themselves."""
    del truth, context
    rows = {row["check"]: row for row in got["rows"]}
    feeding = [row for name, row in rows.items() if name not in ("repeat", "input state")]
    numbers = [_worst("max_abs", feeding, "logit"), _worst("state", feeding, "")]
    if "repeat" not in rows:  # honest runs: what they differ by is what a repeat may differ by
        return [*numbers, Number("repeat_max_abs", numbers[0].value, "logit")]
    moved = Number("input_state_moved", rows["input state"]["max_abs"])
    return [*numbers, Number("repeat_max_abs", rows["repeat"]["max_abs"], "logit"), moved]


def observe(got: Sample, truth: Sample, context: Context) -> Evidence:
    """The matrix of ways."""
    del truth, context
    yield "matrix", {"rows": got["rows"]}


def _ways(session: Session, tokens: Ids, context: Context) -> Iterator[tuple[str, Callable[[], Run]]]:
    """Every other way to feed the same tokens."""
    yield "repeat", lambda: _runs(session, tokens[None])[0]
    for size in context.case.options["chunks"]:
        if size < len(tokens):
            yield "token by token" if size == 1 else f"chunks of {size}", partial(_chunked, session, tokens, size)
    if "batch" in session.info.abilities:
        rows = context.case.options["batch"]
        others = [np.roll(tokens, shift) for shift in range(1, rows)]
        yield f"first row of {rows}", lambda: _runs(session, np.stack([tokens, *others]))[0]
        yield f"last row of {rows}", lambda: _runs(session, np.stack([*others, tokens]))[-1]


def _runs(session: Session, batch: Ids) -> list[Run]:
    """One shot; one run a row."""
    out = session.forward(batch, want=Want(logits=_reach(session), state=True))
    assert out.logits is not None
    parts = session.export_state(out.state).parts()
    return [(out.logits[row], {name: part[:, row] for name, part in parts.items()}) for row in range(len(batch))]


def _chunked(session: Session, tokens: Ids, size: int) -> Run:
    logits, handle = [], None
    for start in range(0, len(tokens), size):
        out = session.forward(tokens[start : start + size], handle, Want(logits=_reach(session), state=True))
        assert out.logits is not None
        logits.append(out.logits[0])
        handle = out.state
    return np.concatenate(logits), {name: part[:, 0] for name, part in session.export_state(handle).parts().items()}


def _input_state(session: Session, tokens: Ids) -> dict[str, Any]:
    """Run twice from one handle: it must still hold what it held before."""
    half = max(1, len(tokens) // 2)
    handle = session.forward(tokens[:half], want=Want(logits="none", state=True)).state
    before = session.export_state(handle)
    kept = {name: part.copy() for name, part in before.parts().items()}
    for _ in range(2):
        session.forward(tokens[half:] if half < len(tokens) else tokens, handle, Want(state=True))
    after = session.export_state(handle).parts()
    moved = max(_largest(after[name], part) for name, part in kept.items())
    return {"check": "input state", "max_abs": moved, "state": moved, "bit_equal": moved == 0.0}


def _reach(session: Session) -> Any:
    return "all" if "logits-all" in session.info.abilities else "last"


def _difference(name: str, run: Run, base: Run) -> dict[str, Any]:
    """One way against one shot; from a subject that only gives last logits, only those."""
    reach = min(len(run[0]), len(base[0]))
    state = max(error["rel_rms"] for error in metrics.state_error(run[1], base[1]).values())
    largest = _largest(run[0][-reach:], base[0][-reach:])
    return {"check": name, "max_abs": largest, "state": state, "bit_equal": largest == 0.0 and state == 0.0}


def _largest(a: Array, b: Array) -> float:
    """Largest difference; NaN where either side has one."""
    return float(np.max(np.abs(a.astype(np.float64) - b)))


def _worst(key: str, rows: list[dict[str, Any]], unit: str) -> Number:
    """The largest over the ways; NaN counts as larger than anything."""
    row = max(rows, key=lambda row: np.inf if np.isnan(row[key]) else row[key])
    return Number(key, row[key], unit, row["check"])
