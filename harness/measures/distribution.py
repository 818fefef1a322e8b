"""Distribution: divergences of the predicted probabilities and the perplexity of a longer text."""

from backends.base import Session
from harness import metrics
from harness.measures.base import Context, Evidence, Number, Sample, all_logits


def collect(session: Session, context: Context, truth: Sample | None, rows: int = 1) -> list[Sample]:
    """Logits (T, V) of the text."""
    del truth
    return [{"logits": logits} for logits in all_logits(session, context.tokens, rows)]


def _numbers(got: Sample, truth: Sample, context: Context) -> dict[str, float]:
    """All but the last position: what follows it is not known."""
    sample = got.setdefault("numbers", {})  # `compare` and `observe` need the same ones; they cost a pass each
    if not sample:
        sample |= metrics.distribution_numbers(got["logits"][:-1], truth["logits"][:-1], context.tokens[1:])
    numbers: dict[str, float] = sample
    return numbers


def compare(got: Sample, truth: Sample, context: Context) -> list[Number]:
    """KL both ways, JS, same top token, perplexity against the truth's."""
    n = _numbers(got, truth, context)
    return [
        Number("kl_mean", n["kl_mean"], "nat"),
        Number("kl_p99", n["kl_p99"], "nat"),
        Number("kl_max", n["kl_max"], "nat"),
        Number("kl_reverse_mean", n["kl_reverse_mean"], "nat"),
        Number("js_mean", n["js_mean"], "nat"),
        Number("top1_differs", 1.0 - n["same_top"]),
        Number("prob_linf", n["prob_linf"]),
        Number("delta_p_rms", n["delta_p_rms"]),
        Number("ppl_ratio_off", abs(n["log_ppl_ratio"])),
        Number("ppl", n["ppl"]),
    ]


def observe(got: Sample, truth: Sample, context: Context) -> Evidence:
    """The ladders of percentiles."""
    n = _numbers(got, truth, context)
    steps = ("mean", "p50", "p90", "p99", "p99.9", "max")
    ladders = {name: {step: n[f"{name}_{step}"] for step in steps} for name in ("kl", "kl_reverse", "js")}
    rest = {"same_top": n["same_top"], "ppl": n["ppl"], "ppl_ref": n["ppl_ref"], "positions": len(context.tokens) - 1}
    yield "ladder", {**ladders, **rest, "log_ppl_ratio": n["log_ppl_ratio"], "log_ppl_ratio_se": n["log_ppl_ratio_se"]}
