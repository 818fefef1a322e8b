"""Generation: greedy and seeded sampling; where the tokens part and whether a near tie explains it.

Two looks at each case. The free run shows what a user sees and where it first parts. The forced run
feeds the truth's tokens, so that every step is judged, also those behind a parting.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from backends.base import Array, Ids, Session, Want
from harness.measures.base import Context, Evidence, Number, Sample

Sampler = Callable[[Array], Ids]


def collect(session: Session, context: Context, truth: Sample | None, rows: int = 1) -> list[Sample]:
    """Generate freely, then choose at every step along the truth's tokens."""
    count = context.case.options["new_tokens"]
    if rows > 1:  # honest runs: only their error along the truth's path is wanted
        assert truth is not None
        forced = _forced(session, context, truth["ids"], rows)
        return [{"ids": truth["ids"], "logits": logits} for logits in forced]
    steps = session.generate(context.tokens, _sampler(context), count)
    ids = [int(step[0]) for step in steps]
    path = truth["ids"] if truth is not None else ids
    logits = _forced(session, context, path, 1)[0] if "logits-all" in session.info.abilities else None
    return [{"ids": ids, "logits": logits}]


def _forced(session: Session, context: Context, ids: list[int], rows: int) -> Array:
    """Logits (rows, steps, V) from which each of `ids` was to be chosen."""
    fed = np.concatenate([context.tokens, np.asarray(ids[:-1], dtype=np.int64)])
    logits = session.forward(np.tile(fed, (rows, 1)), want=Want(logits="all")).logits
    assert logits is not None
    steps: Array = logits[:, len(context.tokens) - 1 :]
    return steps


def _scores(logits: Array, context: Context) -> Array:
    """What greedy choice takes the largest of: logits, plus seeded Gumbel noise when sampling.

    argmax(logits / T + Gumbel) is a draw from softmax(logits / T); with the noise fixed by seed and
    step, every subject draws with the same luck.
    """
    temperature = float(context.case.options["temperature"])
    if temperature == 0.0:
        return logits
    noise = [np.random.default_rng([context.seed, step]).gumbel(size=logits.shape[-1]) for step in range(len(logits))]
    scores: Array = logits + temperature * np.array(noise)
    return scores


def _sampler(context: Context) -> Sampler | None:
    if float(context.case.options["temperature"]) == 0.0:
        return None
    step = 0

    def sample(logits: Array) -> Ids:
        nonlocal step
        noise = np.random.default_rng([context.seed, step]).gumbel(size=logits.shape[-1])
        step += 1
        chosen: Ids = (logits.astype(np.float64) + float(context.case.options["temperature"]) * noise).argmax(axis=-1)
        return chosen

    return sample


def _margins(got: Sample, truth: Sample, context: Context) -> dict[int, float]:
    """Step -> by how much the truth preferred its own token, for every step where the choices part."""
    want = _scores(truth["logits"], context)
    ids = np.asarray(truth["ids"])
    chosen = dict(enumerate(_scores(got["logits"], context).argmax(axis=-1))) if got["logits"] is not None else {}
    first = _parting(got["ids"], truth["ids"])
    if first is not None and first < min(len(got["ids"]), len(ids)):
        chosen[first] = got["ids"][first]
    return {
        step: float(want[step, ids[step]] - want[step, token]) for step, token in chosen.items() if token != ids[step]
    }


def _parting(a: list[int], b: list[int]) -> int | None:
    """First step at which two runs differ; None if they never do."""
    for step in range(max(len(a), len(b))):
        if a[step : step + 1] != b[step : step + 1]:
            return step
    return None


def _allowed(context: Context) -> float:
    """Gap that honest rounding closes: both logits may be off by the largest honest error."""
    return 2 * context.largest("max_abs")


def compare(got: Sample, truth: Sample, context: Context) -> list[Number]:
    """`agreement` is the share of tokens before the first parting; `unexplained` the partings that were no near tie."""
    if len(got["ids"]) != len(truth["ids"]):
        return [Number("unexplained", float("inf"), where=f"{len(got['ids'])} tokens, not {len(truth['ids'])}")]
    if got["logits"] is not None and not np.isfinite(got["logits"]).all():
        return [Number("unexplained", float("nan"), where="logits along the truth's tokens are not finite")]
    margins = _margins(got, truth, context)
    wide = {step: margin for step, margin in margins.items() if not margin <= _allowed(context)}
    first = _parting(got["ids"], truth["ids"])
    numbers = [
        Number("agreement", (len(truth["ids"]) if first is None else first) / len(truth["ids"])),
        Number("partings", float(len(margins))),
        Number("unexplained", float(len(wide)), where=f"step {min(wide)}" if wide else ""),
    ]
    if got["logits"] is not None:
        largest = float(np.max(np.abs(got["logits"].astype(np.float64) - truth["logits"])))
        numbers.append(Number("max_abs", largest, "logit"))
    return numbers


def observe(got: Sample, truth: Sample, context: Context) -> Evidence:
    """The text, and at the first parting how close the truth's choice was."""
    data: dict[str, Any] = {
        "ids": got["ids"],
        "text": context.text(got["ids"]),
        "prompt": context.case.text,
        "class": "",
        "parting": None,
        "margin": None,
        "allowed": None,
    }
    if got is not truth:
        margins, first = _margins(got, truth, context), _parting(got["ids"], truth["ids"])
        sound = next(n.value for n in compare(got, truth, context) if n.name == "unexplained") == 0.0
        kind = "DIVERGED" if not sound else ("EXACT" if first is None else "TIE")
        data |= {"class": kind, "parting": first, "allowed": _allowed(context)}
        data["margin"] = margins.get(first) if first is not None else None
    yield "text", data
