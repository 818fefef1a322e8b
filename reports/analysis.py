"""What the numbers say, in sentences: written from a Record, never by hand.

Each function looks at one question and answers in at most a few sentences; a question that the record
has no data for stays silent.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from reports import views
from reports.record import Record, Subject, Verdict
from reports.text import finite, listed, num, number_of, plural, share, times
from reports.trend import Trend, tail, trend

SLACK = 10.0
"""A limit this many times looser than anything measured is reported."""

NEAR = 1.5
"""Up to this many times the largest honest error, an error is called as near as honest arithmetic gets."""

HONEST_Z = 2.2  # what the largest |z| of some 16 independent honest runs would be if positions were independent
BIASED_Z = 3.5  # pooled; a healthy program exceeds it once in two thousand runs


@dataclass(frozen=True)
class Finding:
    """What is said about one subject, or with an empty lead about the run.

    Attributes:
        lead: who, in bold.
        sentences: what.
    """

    lead: str
    sentences: tuple[str, ...]


def findings(record: Record) -> list[Finding]:
    """The whole analysis, one finding a candidate and one on the limits."""
    found = [Finding(s.id, tuple(_about(record, s))) for s in views.with_role(record, "candidate")]
    found.append(Finding("Limits", tuple(slack(record))))
    return [finding for finding in found if finding.sentences]


def sentences(record: Record) -> list[str]:
    """The analysis as plain sentences."""
    return [f"{finding.lead}: {sentence}" for finding in findings(record) for sentence in finding.sentences]


def _about(record: Record, subject: Subject) -> list[str]:
    """All that is known of one candidate."""
    said = [f"It broke: {subject.error}"] if subject.error else []
    for question in QUESTIONS:
        said += question(record, subject)
    return said


def exactness(record: Record, subject: Subject) -> list[str]:
    """How near the logits are, in units of honest error and of the limit."""
    errors = {
        case: error
        for case in views.cases(record, "logits")
        if (error := views.value(record, "logits", case, subject.id, views.RMS)) is not None
    }
    if not errors:
        return []
    broken = [case for case, error in errors.items() if not math.isfinite(error)]
    if broken:
        return [f"Its logits hold numbers that are not finite ({listed(broken)}): nothing else can be said of them."]
    honest = views.honest_for(record, subject)
    ratios = {case: r for case, e in errors.items() if (r := _in_honest(record, honest, case, e)) is not None}
    if not honest or not ratios:
        case = max(errors, key=errors.__getitem__)
        return [f"RMS logit error is at most {num(errors[case])} (case {case}); no honest runs say how much is normal."]
    return _in_units(record, subject, honest.id.partition("@")[2], errors, ratios)


def _in_honest(record: Record, honest: Subject | None, case: str, error: float) -> float | None:
    """An error over the largest honest one in the same case."""
    normal = views.value(record, "logits", case, honest.id, views.RMS) if honest else None
    if normal is None or not math.isfinite(normal):
        return None
    return error / normal if normal else (math.inf if error else 0.0)


def _in_units(
    record: Record, subject: Subject, dtype: str, errors: dict[str, float], ratios: dict[str, float]
) -> list[str]:
    """The sentences of `exactness` once the honest error is known."""
    case = max(ratios, key=ratios.__getitem__)
    worst = ratios[case]
    used = [
        views.excess(v)
        for v in record.verdicts
        if v.subject == subject.id and v.suite == "logits" and v.criterion.rpartition(".")[2] in views.RMS
    ]
    limit = max((ratio for ratio in used if math.isfinite(ratio)), default=None)
    within = f", {share(limit)} of the limit" if limit is not None else ""
    figures = (
        f"RMS logit error at most {times(worst)} the largest of the honest {dtype} runs{within} "
        f"(case {case}: {num(errors[case])})"
    )
    if worst <= NEAR:
        return [f"As near to the reference as honest {dtype} arithmetic gets: {figures}.", *_decimals(record, subject)]
    if limit is not None and limit <= 1:
        return [f"Within its limits, but not as near as honest {dtype} arithmetic gets: {figures}."]
    return [f"Farther from the reference than honest {dtype} arithmetic explains: {figures}."]


def _decimals(record: Record, subject: Subject) -> list[str]:
    """The seed's own words for a near-exact match: so many logits agree to so many decimals."""
    pairs = [
        (number_of(row["logit"]), number_of(row["ref"]))
        for seen in views.evidence(record, "topk", "logits")
        if seen.subject == subject.id
        for row in seen.data["rows"]
    ]
    gaps = [abs(a - b) for a, b in pairs if a is not None and b is not None]
    if not gaps or max(gaps) > 5e-4:
        return []
    return [f"All {len(gaps)} logits in the top-k tables agree to {'4' if max(gaps) < 5e-5 else '3'} decimals."]


def worst_case(record: Record, subject: Subject) -> list[str]:
    """Where the largest difference of a logit lies."""
    rows = [
        m
        for m in record.measurements
        if m.suite == "logits" and m.subject == subject.id and m.name in views.MAX and finite(m.value)
    ]
    if not rows:
        return []
    worst = max(rows, key=lambda m: m.value or 0.0)
    where = f", {worst.where}" if worst.where else ""
    return [f"The largest difference of a logit is {num(worst.value)} (case {worst.case}{where})."]


def swaps(record: Record, subject: Subject) -> list[str]:
    """Rank swaps: which occurred, which were likely, and whether the count is what noise gives."""
    seen = [(o.case, o.data) for o in views.evidence(record, "swaps", "logits") if o.subject == subject.id]
    pairs = [(case, pair) for case, data in seen for pair in data["pairs"] if finite(pair["probability"])]
    if not pairs:
        return []
    occurred = [item for item in pairs if item[1]["swapped"]]
    return [*_occurred(occurred), _calibration([float(pair["probability"]) for _, pair in pairs], len(occurred))]


def _occurred(swapped: list[tuple[str, dict[str, Any]]]) -> list[str]:
    """One sentence a swap, the least likely first."""
    said = []
    for case, pair in sorted(swapped, key=lambda item: float(item[1]["probability"]))[:4]:
        chance = float(pair["probability"])
        verdict = "noise explains it" if chance >= 0.01 else "honest noise does not explain it"
        said.append(
            f"“{pair['piece_a']}” and “{pair['piece_b']}” (ranks {pair['rank']} and {pair['rank'] + 1}, case {case}) "
            f"change places: their gap is {num(pair['gap'])}, and honest error swaps them with probability "
            f"{share(chance)}; {verdict}."
        )
    if len(swapped) > 4:
        said.append(f"{len(swapped) - 4} more pairs change places, each likelier than these.")
    return said


def _calibration(probabilities: list[float], observed: int) -> str:
    """Expected against observed swaps, over all cases."""
    expected = sum(probabilities)
    text = f"{plural(observed, 'swap')} of neighbouring ranks where honest error predicts {num(expected, 2)}"
    if observed <= expected:
        return text + "."
    chance = tail(probabilities, observed)
    end = "more than noise explains" if chance < 0.001 else "within what noise gives"
    return f"{text}; so many or more have probability {share(chance)}: {end}."


def bias(record: Record, subject: Subject) -> list[str]:
    """Whether the error has a direction; the cases' z are pooled, so that many cases raise no false alarm.

    Errors at neighbouring positions hang together, so honest runs reach larger z than chance would give; each
    case's z is taken in units of theirs.
    """
    honest = views.honest_for(record, subject)
    scores = []
    for case in views.cases(record, "logits"):
        score = views.value(record, "logits", case, subject.id, views.BIAS_Z)
        usual = views.value(record, "logits", case, honest.id, views.BIAS_Z) if honest else None
        if score is not None and math.isfinite(score):
            scores.append(score / max(1.0, (usual or 0.0) / HONEST_Z))
    if not scores:
        return []
    z = sum(scores) / math.sqrt(len(scores))
    if not abs(z) >= BIASED_Z:
        return [f"The error has no direction (z = {num(z, 2)} over {plural(len(scores), 'case')})."]
    side = "above" if z > 0 else "below"
    text = f"The error is biased {side} the reference (z = {num(z, 2)} over {plural(len(scores), 'case')})"
    advice = "rounding to nearest averages out, so look for truncation, a missing term or a constant that is off"
    return [f"{text}: {advice}."]


def drift(record: Record, subject: Subject) -> list[str]:
    """Whether the error over forced steps grows, and faster than honest error does."""
    said = []
    honest = views.honest_for(record, subject)
    for seen in views.evidence(record, "series", "stepwise"):
        if seen.subject != subject.id:
            continue
        own = _trend(seen.data, "rms")
        if own is None:
            continue
        bands = views.by_subject(record, "band", "stepwise", seen.case)
        normal = _trend(bands[honest.id], "rms_median") if honest and honest.id in bands else None
        said.append(_drift_words(seen.case, len(seen.data["step"]), own, normal))
    return said


def _trend(data: dict[str, Any], column: str) -> Trend | None:
    steps = [number_of(step) or 0.0 for step in data["step"]]
    return trend(steps, [number_of(error) or 0.0 for error in data[column]])


def _drift_words(case: str, steps: int, own: Trend, normal: Trend | None) -> str:
    course = f"{own.word} (as step^{own.slope:.2f}, {times(own.growth)} from start to end)"
    text = f"Over {steps} forced steps ({case}) the error {course}"
    if normal is None:
        return text + "."
    if own.slope > normal.slope + max(0.25, 2 * math.hypot(own.spread, normal.spread)):
        return f"{text}, faster than honest error (step^{normal.slope:.2f}): the state carries a mistake along."
    return f"{text}, as honest error does (step^{normal.slope:.2f})."


def partings(record: Record, subject: Subject) -> list[str]:
    """Where greedy text leaves the reference's, and whether a near tie explains it."""
    texts = [o for o in views.evidence(record, "text", "generation") if o.subject == subject.id and o.data["class"]]
    said = []
    exact = [o for o in texts if o.data["class"] == "EXACT"]
    if exact:
        said.append(f"Greedy text equals the reference's in {len(exact)} of {plural(len(texts), 'case')}.")
    for seen in texts:
        at, margin, allowed = seen.data["parting"], num(seen.data["margin"]), num(seen.data["allowed"])
        text = f"In {seen.case} it parts at token {at}"
        if seen.data["class"] == "TIE":
            said.append(f"{text}, a near tie: the margin there is {margin}, and honest error explains {allowed}.")
        elif seen.data["class"] == "DIVERGED":
            said.append(f"{text}, where the margin is {margin} and honest error explains {allowed}: not a tie.")
    return said


def divergence(record: Record, subject: Subject) -> list[str]:
    """How far the next-token distribution is off, and what it costs in perplexity."""
    rows = [o for o in views.evidence(record, "ladder", "distribution") if o.subject == subject.id]
    if not rows:
        return []
    worst = max(rows, key=lambda o: number_of(o.data["kl"]["mean"]) or 0.0)
    data, kl = worst.data, worst.data["kl"]
    distance = f"{num(kl['mean'])} nats from the reference's on average and {num(kl['max'])} at worst (KL)"
    text = f"Over {data['positions']} positions of {worst.case} the distribution is {distance}"
    return [f"{text}; the most likely token is the same in {share(data['same_top'])}."]


QUESTIONS: tuple[Callable[[Record, Subject], list[str]], ...] = (
    exactness,
    worst_case,
    swaps,
    bias,
    divergence,
    drift,
    partings,
)
"""Asked of every candidate, in this order."""


def slack(record: Record) -> list[str]:
    """Limits far looser than anything measured: they would let a bug of that size through."""
    worst: dict[tuple[str, str], Verdict] = {}
    for v in record.verdicts:
        if v.limit.lstrip().startswith(("<", "≤")) and v.value and v.bound:
            key = (v.criterion, v.subject)
            if key not in worst or views.excess(v) > views.excess(worst[key]):
                worst[key] = v
    loose = sorted((v for v in worst.values() if views.excess(v) < 1 / SLACK), key=views.excess)
    if not loose:
        return []
    named = [f"{v.criterion} for {v.subject} ({times(1 / views.excess(v))} looser)" for v in loose]
    return [f"Slack: more than {SLACK:.0f}x looser than anything measured in this run: {listed(named, 5)}."]
