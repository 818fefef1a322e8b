import math
from dataclasses import replace
from typing import Any

from reports import analysis
from reports.record import Measurement, Observation, Outcome, Record, Verdict
from tests.reports import sample
from tests.reports.sample import BF16, CASE, F32


def said(record: Record, subject: str) -> str:
    return " ".join(" ".join(f.sentences) for f in analysis.findings(record) if f.lead == subject)


def with_value(record: Record, subject: str, name: str, value: float) -> Record:
    rows = [replace(m, value=value) if (m.subject, m.name) == (subject, name) else m for m in record.measurements]
    return replace(record, measurements=tuple(rows))


def with_data(record: Record, subject: str, kind: str, **data: Any) -> Record:
    rows = [
        replace(o, data={**o.data, **data}) if (o.subject, o.kind) == (subject, kind) else o
        for o in record.observations
    ]
    return replace(record, observations=tuple(rows))


def test_near_exact() -> None:
    text = said(sample.record(), F32)
    assert "As near to the reference as honest f32 arithmetic gets" in text
    assert "1.1x the largest of the honest f32 runs, 35.8% of the limit" in text
    assert "All 10 logits in the top-k tables agree to 4 decimals." in text
    assert "The largest difference of a logit is 9.80e-07 (case fibonacci, token 6, id 98)." in text


def test_within_limits_but_not_near() -> None:
    assert "Within its limits, but not as near" in said(with_value(sample.record(), F32, "rms_error", 8e-7), F32)


def test_farther_than_honest() -> None:
    record = with_value(sample.record(), F32, "rms_error", 3e-5)
    bad = Verdict("logits", CASE, F32, "strict/logits.rms_error", Outcome.FAIL, 3e-5, "<= 8.1e-07", 8.1e-7)
    text = said(replace(record, verdicts=(*record.verdicts, bad)), F32)
    assert "Farther from the reference than honest f32 arithmetic explains" in text
    assert "agree to" not in text


def test_not_finite() -> None:
    text = said(with_value(sample.record(), F32, "rms_error", math.nan), F32)
    assert "not finite (fibonacci)" in text
    assert "As near" not in text


def test_without_honest_runs_only_the_number() -> None:
    record = sample.record()
    plain = replace(record, subjects=tuple(s for s in record.subjects if s.role != "honest"))
    assert "RMS logit error is at most 2.90e-07 (case fibonacci); no honest runs" in said(plain, F32)


def test_honest_without_error() -> None:
    record = with_value(sample.record(), "honest@f32", "rms_error", 0.0)
    assert "∞ x" in said(record, F32)
    assert "0.00x" in said(with_value(record, F32, "rms_error", 0.0), F32) or "0x" in said(
        with_value(record, F32, "rms_error", 0.0), F32
    )
    lost = with_value(sample.record(), "honest@f32", "rms_error", math.nan)
    assert "no honest runs" in said(lost, F32)


def test_the_swap_of_seed_zero_is_explained_by_its_probability() -> None:
    text = said(sample.record(), BF16)
    assert "“x” and “def” (ranks 9 and 10, case fibonacci) change places: their gap is 0.0214" in text
    assert "probability 31.4%; noise explains it" in text
    assert "1 swap of neighbouring ranks where honest error predicts 0.56" in text
    assert "within what noise gives" in text


def pairs(probability: float, swapped: bool, count: int) -> list[dict[str, Any]]:
    ends = {"a": 1, "b": 2, "piece_a": "p", "piece_b": "q", "gap": 1.0}
    return [{"rank": n + 1, **ends, "probability": probability, "swapped": swapped} for n in range(count)]


def test_too_many_and_unlikely_swaps_are_a_fault() -> None:
    text = said(with_data(sample.record(), BF16, "swaps", pairs=pairs(1e-4, True, 6), expected=6e-4), BF16)
    assert "honest noise does not explain it" in text
    assert "2 more pairs change places" in text
    assert "more than noise explains" in text
    text = said(with_data(sample.record(), BF16, "swaps", pairs=pairs(0.3, False, 4)), BF16)
    assert "0 swaps of neighbouring ranks where honest error predicts 1.2." in text
    assert "swap" not in said(with_data(sample.record(), BF16, "swaps", pairs=[]), BF16)


def test_bias_is_pooled_over_cases() -> None:
    assert "no direction (z = 0.70 over 1 case)" in said(sample.record(), F32)
    record = sample.record()
    more = [Measurement("logits", f"c{n}", F32, "bias_z", 1.8) for n in range(8)]
    biased = replace(record, measurements=(*record.measurements, *more))
    assert "biased above the reference (z = 5.0 over 9 cases)" in said(biased, F32)
    assert "biased below" in said(with_value(record, F32, "bias_z", -4.0), F32)
    assert "direction" not in said(with_value(record, F32, "bias_z", math.nan), F32)


def test_drift_is_compared_with_honest_drift() -> None:
    assert "as honest error does" in said(sample.record(), F32)
    grown = sample.series(3e-7, 0.9)
    text = said(with_data(sample.record(), F32, "series", **grown), F32)
    assert "accumulates (as step^0.8" in text
    assert "faster than honest error" in text
    bare = replace(sample.record(), observations=(Observation("stepwise", "prose", F32, "series", grown),))
    assert "from start to end)." in said(bare, F32)
    zero = with_data(sample.record(), F32, "series", rms=[0.0] * 256)
    assert "forced steps" not in said(zero, F32)


def test_partings() -> None:
    assert "Greedy text equals the reference's in 1 of 1 case." in said(sample.record(), F32)
    assert "parts at token 13, a near tie: the margin there is 0.00310" in said(sample.record(), BF16)
    fault = with_data(sample.record(), BF16, "text", **{"class": "DIVERGED", "margin": 0.5})
    assert "where the margin is 0.500 and honest error explains 0.0211: not a tie" in said(fault, BF16)


def test_slack_names_limits_that_would_miss_a_bug() -> None:
    text = said(sample.record(), "Limits")
    assert "strict/logits.top1_difference for torch-compile@bf16 (73x looser)" in text
    assert "rms_error" not in text
    assert "cosine" not in text
    close = Verdict("logits", "code", BF16, "strict/logits.top1_difference", Outcome.PASS, 1.9, "< 2.0", 2.0)
    record = sample.record()
    assert "torch-compile@bf16" not in said(replace(record, verdicts=(*record.verdicts, close)), "Limits")


def test_nothing_to_say() -> None:
    assert analysis.findings(sample.empty()) == []


def test_a_dead_subject_is_mentioned() -> None:
    assert "It broke: CUDA is not available" in said(sample.failing(), "torch-cuda-bf16")
    assert any(line.startswith("torch-cuda-bf16: It broke") for line in analysis.sentences(sample.failing()))
