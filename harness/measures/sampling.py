"""Sampling: a subject's own distribution for given logits, and its prompts, against both known semantics.

The truth is no reference's: `backends.sampling` and `backends.prompts`, which tests hold against the `rwkv` package.
A subject is judged by the semantics that it says it follows; which of the two it really follows is told for every case.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from backends.base import Array, Session
from backends.errors import BackendError, Unsupported, UsageError
from backends.prompts import DIALECTS, render
from backends.sampling import SEMANTICS, Params, Sampler
from harness.measures.base import Context, Evidence, Number, Sample

FALL = 0.35
"""By how much logits fall from rank to rank."""

FLOOR = -40.0
"""Logit of what comes behind the first RANKS."""

RANKS = 40

SAME = 1e-5
"""Total variation up to which two distributions count as the same where only words depend on it."""

SHOWN = 8

OFF = Params(temperature=1.0, top_p=1.0, presence=0.0, frequency=0.0, decay=1.0)


def collect(session: Session, context: Context, truth: Sample | None, rows: int = 1) -> list[Sample]:
    """Ask the subject's own sampler, or its own templates."""
    del truth, rows
    port, options = session.sampling, context.case.options
    if port is None:
        raise Unsupported("this backend has no sampler of its own")
    if port.semantics not in SEMANTICS:
        raise BackendError(f"it says that it samples as {port.semantics!r}; known: {', '.join(SEMANTICS)}")
    if "template" in options:
        ids = port.render(options["template"], context.case.text, options.get("system", ""), options.get("suffix", ""))
        return [{"ids": [int(ident) for ident in ids], "way": port.semantics}]
    logits, prompt, generated = given(context)
    p = np.asarray(port.probabilities(logits, prompt, generated, parameters(context)), dtype=np.float64)
    if p.shape != logits.shape:
        raise BackendError(f"probabilities of shape {p.shape}, asked for were {logits.shape}")
    return [{"p": p, "way": port.semantics}]


def parameters(context: Context) -> dict[str, float]:
    """All parameters of a case; what it leaves out is off."""
    names = ("temperature", "top_p", "top_k", "presence", "frequency", "decay")
    return {name: context.case.options["parameters"].get(name, getattr(OFF, name)) for name in names}


def given(context: Context) -> tuple[Array, list[int], list[int]]:
    """Logits (V,) float32, ids of the prompt and of what was generated; the same for every subject."""
    size = context.model.vocab_size
    generated = _encoded(context.case.options["generated"], context)
    prompt = [int(ident) for ident in context.tokens]
    leading = dict.fromkeys([*generated, *prompt, *(np.arange(size) * 7 % size).tolist()])
    ranked = np.fromiter(leading, dtype=np.int64)[:RANKS]
    ranks = np.arange(len(ranked)) // (3 if context.case.options["ties"] else 1)
    logits = np.full(size, FLOOR, dtype=np.float32)
    logits[ranked] = 3.0 - FALL * ranks
    return logits, prompt, generated


def _encoded(text: str, context: Context) -> list[int]:
    if context.tokenizer is None:
        return [byte % context.model.vocab_size for byte in text.encode()]
    return list(context.tokenizer.encode(text))


def independent(context: Context) -> Sample:
    """What either semantics gives; None where it lacks a template."""
    if "template" in context.case.options:
        return {way: _prompts(context, way) for way in DIALECTS}
    logits, prompt, generated = given(context)
    return {way: _shaped(context, way, logits, prompt, generated) for way in SEMANTICS}


def _shaped(context: Context, way: str, logits: Array, prompt: list[int], generated: list[int]) -> Array:
    asked: dict[str, Any] = parameters(context)
    sampler = Sampler(replace(OFF, **asked), way, tokenizer=context.tokenizer)
    sampler.start(prompt)
    for token in generated:
        sampler.counts.add(token)
    return sampler.probabilities(logits)


def _prompts(context: Context, way: str) -> list[list[int]] | None:
    """Ids that are right; more than one where a template has two forms."""
    options = context.case.options
    try:
        text = render(options["template"], context.case.text, options.get("system", ""), options.get("suffix", ""), way)
    except UsageError:
        return None
    both = [text, text.replace("<think>\n</think", "<think></think")] if way == "official" else [text]
    return [_encoded(form, context) for form in dict.fromkeys(both)]


def compare(got: Sample, truth: Sample, context: Context) -> list[Number]:
    """`distance` (total variation) or `ids_differ`, by the semantics claimed; and the same by each one's name."""
    del context
    measure = _ids_differ if "ids" in got else _distance
    name = "ids_differ" if "ids" in got else "distance"
    if truth[got["way"]] is None:
        raise Unsupported(f"{got['way']} has no such template")
    return [
        measure(name, got, truth[got["way"]]),
        *(measure(f"{name}_{way}", got, right) for way, right in truth.items() if right is not None),
    ]


def _distance(name: str, got: Sample, right: Array) -> Number:
    """Half the sum of absolute differences: the share of draws that would differ."""
    apart = np.abs(got["p"] - right)
    worst = int(apart.argmax())
    where = f"id {worst}: {got['p'][worst]:.4g}, not {right[worst]:.4g}" if not apart.max() <= SAME else ""
    return Number(name, float(apart.sum() / 2), where=where)


def _ids_differ(name: str, got: Sample, right: list[list[int]]) -> Number:
    """Positions with another id than the nearest right form, missing or surplus ones included."""
    ids = got["ids"]
    positions = [
        [at for at in range(max(len(ids), len(form))) if ids[at : at + 1] != form[at : at + 1]] for form in right
    ]
    nearest = min(range(len(right)), key=lambda form: len(positions[form]))
    differ = positions[nearest]
    where = ""
    if differ:
        at = differ[0]
        where = f"token {at}: {ids[at : at + 1]}, not {right[nearest][at : at + 1]}"
    return Number(name, float(len(differ)), where=where)


def observe(got: Sample, truth: Sample, context: Context) -> Evidence:
    """Which semantics the case follows, and what it gave beside both."""
    numbers = {number.name: number.value for number in compare(got, truth, context)}
    name = "ids_differ" if "ids" in got else "distance"
    limit = 0.0 if "ids" in got else SAME
    follows = [way for way in truth if numbers.get(f"{name}_{way}", np.inf) <= limit]
    data: dict[str, Any] = {"claims": got["way"], "follows": follows or ["neither"], "options": context.case.options}
    data |= _prompt_shown(got, truth, context) if "ids" in got else {"rows": _rows(got, truth, context)}
    yield "sampling", data


def _prompt_shown(got: Sample, truth: Sample, context: Context) -> dict[str, Any]:
    right = {way: context.text(forms[0]) for way, forms in truth.items() if forms is not None}
    return {"text": context.text(got["ids"]), "expected": right}


def _rows(got: Sample, truth: Mapping[str, Array], context: Context) -> list[dict[str, Any]]:
    """The likeliest tokens of either side."""
    best = np.argsort(-np.max([got["p"], *truth.values()], axis=0), kind="stable")[:SHOWN]
    return [
        {
            "id": int(ident),
            "piece": context.piece(int(ident)),
            "got": float(got["p"][ident]),
            **{way: float(p[ident]) for way, p in truth.items()},
        }
        for ident in best
    ]
