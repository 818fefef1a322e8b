"""Stepwise: the same forced tokens one by one; logits and recurrent state against the truth's.

A wrong or badly rounded state shows here first: its error grows with every token, where an honest
one settles.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np

from backends.base import Array, Session, State, Want
from harness import metrics
from harness.measures.base import Context, Evidence, Number, Sample, parted


def collect(session: Session, context: Context, truth: Sample | None, rows: int = 1) -> list[Sample]:
    """Logits after every token and the state at checkpoints.

    The truth and honest runs go from checkpoint to checkpoint in one shot each, which for them is the
    same; a candidate is really fed token by token.
    """
    tokens = context.tokens[: context.case.options["tokens"]]
    one_by_one = truth is not None and rows == 1
    logits: list[Array] = []
    states: list[State] = []
    handle: Any = None
    for part in parted(tokens, context.case.options["checkpoints"]):
        for piece in part[:, None] if one_by_one else [part]:
            want = Want(logits="last" if one_by_one else "all", state=True)
            out = session.forward(np.tile(piece, (rows, 1)), handle, want)
            handle = out.state
            assert out.logits is not None
            logits.append(out.logits)
        states.append(session.export_state(handle))
    whole = np.concatenate(logits, axis=1)
    return [{"logits": whole[row], "states": list(_row(states, row))} for row in range(rows)]


def _row(states: list[State], row: int) -> Iterator[dict[str, Array]]:
    """One row of a batch of states; the batch is the second axis."""
    for state in states:
        yield {name: part[:, row] for name, part in state.parts().items()}


def _state_errors(got: Sample, truth: Sample) -> list[dict[str, dict[str, float]]]:
    pairs = zip(got["states"], truth["states"], strict=True)
    return [metrics.state_error(candidate, want) for candidate, want in pairs]


def _worst_states(got: Sample, truth: Sample) -> list[float]:
    """Relative error of the worst component at every checkpoint; NaN where one has a NaN."""
    return [float(np.max([e["rel_rms"] for e in parts.values()])) for parts in _state_errors(got, truth)]


def _series(got: Sample, truth: Sample) -> dict[str, Array]:
    """RMS, largest and mean signed error of every step."""
    d = got["logits"].astype(np.float64) - truth["logits"]
    return {"rms": np.sqrt((d**2).mean(axis=1)), "max": np.abs(d).max(axis=1), "bias": d.mean(axis=1)}


def compare(got: Sample, truth: Sample, context: Context) -> list[Number]:
    """Error over all steps and over the last quarter; the state's error, its worst component named."""
    del context
    series = _series(got, truth)
    numbers = metrics.logit_numbers(got["logits"], truth["logits"])
    tail = series["rms"][-max(1, len(series["rms"]) // 4) :]
    errors = _state_errors(got, truth)
    worst = max(
        ((error["rel_rms"], name, at) for at, parts in enumerate(errors, 1) for name, error in parts.items()),
        key=lambda item: np.inf if np.isnan(item[0]) else item[0],
    )
    return [
        Number("rms", numbers["rms"], "logit"),
        Number("max_abs", numbers["max_abs"], "logit", f"step {metrics.worst(got['logits'], truth['logits'])[0]}"),
        Number("rms_tail", float(np.sqrt(np.mean(tail**2))), "logit", "last quarter of the steps"),
        Number("bias_z", numbers["bias_z"], "sigma"),
        Number("state_rel_rms", worst[0], "", f"{worst[1]} at checkpoint {worst[2]} of {len(errors)}"),
        Number("state_max_abs", float(np.max([e["max_abs"] for parts in errors for e in parts.values()]))),
    ]


def observe(got: Sample, truth: Sample, context: Context) -> Evidence:
    """Error by step, and by checkpoint for the state; whether it accumulates."""
    del context
    if got is truth:
        return
    series = {name: values.tolist() for name, values in _series(got, truth).items()}
    trend = metrics.drift(np.asarray(series["rms"]))
    errors = _worst_states(got, truth)
    yield (
        "series",
        {
            "step": list(range(1, len(series["rms"]) + 1)),
            **series,
            "state_step": _checkpoints(len(series["rms"]), len(errors)),
            "state": errors,
            "drift": {name: getattr(trend, name) for name in trend.__dataclass_fields__},
        },
    )


def band(samples: list[Sample], truth: Sample) -> dict[str, Any]:
    """Error by step over the honest runs, for the plot's band."""
    rms = np.array([_series(sample, truth)["rms"] for sample in samples])
    states = np.array([_worst_states(sample, truth) for sample in samples])
    return {
        "step": list(range(1, rms.shape[1] + 1)),
        "rms_median": np.median(rms, axis=0).tolist(),
        "rms_max": rms.max(axis=0).tolist(),
        "state_step": _checkpoints(rms.shape[1], states.shape[1]),
        "state_median": np.median(states, axis=0).tolist(),
        "state_max": states.max(axis=0).tolist(),
    }


def _checkpoints(steps: int, states: int) -> list[int]:
    """After how many steps each state was looked at."""
    return np.cumsum([len(part) for part in parted(np.arange(steps), states)]).tolist()  # type: ignore[no-any-return]
