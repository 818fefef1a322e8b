"""Records to draw: a realistic one (the numbers that candle-mi published), a failing, an empty and a hostile one."""

import math
from dataclasses import replace
from typing import Any

from reports.record import Measurement, Observation, Outcome, Record, Subject, Verdict

REF, F32, BF16 = "reference-f64", "torch-cpu-f32", "torch-compile@bf16"
HONEST32, HONEST16 = "honest@f32", "honest@bf16"
CASE = "fibonacci"
PROMPT = "def fibonacci(n):\n    "

PIECES = ("if", "a", '"""', "#", "return", "f", "result", "fib", "x", "def")
IDS = (1942, 98, 5170, 36, 42178, 103, 42175, 7560, 121, 7334)
LOGITS = (7.5585, 5.9269, 5.8649, 4.7785, 4.2776, 4.1880, 3.7979, 3.7510, 3.5133, 3.4919)
LOGITS16 = (7.5312, 5.8750, 5.8750, 4.7812, 4.3125, 4.1875, 3.7500, 3.7344, 3.4844, 3.5312)
RANKS16 = (1, 2, 3, 4, 5, 6, 7, 8, 10, 9)

MODEL = {
    "name": "RWKV/RWKV7-Goose-World3-1.5B-HF",
    "version": "7",
    "evidence": "blocks.0.att.r_k (32, 64)",
    "vocab_size": 65536,
    "n_embd": 2048,
    "n_layer": 24,
    "n_head": 32,
    "head_size": 64,
    "n_ffn": 8192,
    "parameters": 1527404544,
    "ranks": {"w": 96, "a": 96, "v": 64, "g": 256},
    "stored": "bf16",
    "tokenizer": "world",
}


def info(dtype: str, attention: str, **more: Any) -> dict[str, Any]:
    return {
        "backend": "torch",
        "packages": {"torch": "2.13.0+cpu"},
        "device": "cpu",
        "device_name": "AMD EPYC",
        "dtype": dtype,
        "state_dtype": "f32",
        "attention": attention,
        "threads": 2,
        "model": MODEL,
        "notes": [],
        **more,
    }


SUBJECTS = (
    Subject(REF, "reference", info("f64", "named equations", state_dtype="f64")),
    Subject(F32, "candidate", info("f32", "sequential recurrence")),
    Subject(BF16, "candidate", info("bf16", "chunked, triangular solve", notes=["no C compiler: runs uncompiled"])),
    Subject(HONEST32, "honest"),
    Subject(HONEST16, "honest"),
)


def see(suite: str, subject: str, kind: str, data: dict[str, Any], case: str = CASE) -> Observation:
    return Observation(suite, case, subject, kind, data)


def tokens() -> list[Observation]:
    ids = [7334, 21676, 41943, 41, 111, 501, 28352]
    pieces = ["def", " fib", "onacci", "(", "n", "):", "\\n    "]
    data = {"prompt": PROMPT, "ids": ids, "pieces": pieces}
    return [see("tokenization", name, "tokens", data) for name in (REF, F32, BF16)]


def top(subject: str, logits: tuple[float, ...], ranks: tuple[int, ...]) -> Observation:
    rows = [
        {"id": i, "piece": p, "rank_ref": n + 1, "rank": r, "ref": ref, "logit": logit}
        for n, (i, p, ref, logit, r) in enumerate(zip(IDS, PIECES, LOGITS, logits, ranks, strict=True))
    ]
    return see("logits", subject, "topk", {"k": 10, "position": 6, "rows": rows})


def swap_pairs(sigma: float, swapped: tuple[int, ...]) -> Observation:
    pairs = [
        {
            "rank": n + 1,
            "a": IDS[n],
            "b": IDS[n + 1],
            "piece_a": PIECES[n],
            "piece_b": PIECES[n + 1],
            "gap": LOGITS[n] - LOGITS[n + 1],
            "probability": 0.5 * math.erfc((LOGITS[n] - LOGITS[n + 1]) / (2 * sigma)),
            "swapped": n + 1 in swapped,
        }
        for n in range(9)
    ]
    expected = sum(float(str(pair["probability"])) for pair in pairs)
    data = {"pairs": pairs, "expected": expected, "observed": len(swapped), "sigma": sigma}
    return see("logits", BF16, "swaps", data)


def logits() -> list[Observation]:
    plain = tuple(range(1, 11))
    exact = tuple(logit + 2e-7 * (-1) ** n for n, logit in enumerate(LOGITS))
    ranks = [1, 3, 10, 31, 100, 310, 1000, 3100, 10000, 31000, 65536]
    return [
        top(REF, LOGITS, plain),
        top(F32, exact, plain),
        top(BF16, LOGITS16, RANKS16),
        swap_pairs(0.0312, (9,)),
        see("logits", F32, "error_by_rank", {"rank": ranks, "abs_err": [3e-7 * (1 + n % 3) for n in range(11)]}),
        see("logits", BF16, "error_by_rank", {"rank": ranks, "abs_err": [0.025 + 0.002 * (n % 4) for n in range(11)]}),
    ]


def ladder(size: float, same: float) -> dict[str, Any]:
    rungs = {"mean": 1, "p50": 0.4, "p90": 2.5, "p99": 9, "p99.9": 30, "max": 80}
    kl = {name: size * factor for name, factor in rungs.items()}
    return {
        "kl": kl,
        "kl_reverse": {"mean": size * 1.01, "max": size * 79},
        "js": {"mean": size / 4, "max": size * 20},
        "same_top": same,
        "ppl": 9.8731 * (1 + size),
        "ppl_ref": 9.8731,
        "positions": 512,
    }


def series(scale: float, power: float, steps: int = 256) -> dict[str, Any]:
    at = list(range(steps))
    rms = [scale * (n + 1) ** power * (1 + 0.2 * math.sin(n)) for n in at]
    looked = at[steps // 8 - 1 :: steps // 8]
    return {
        "step": at,
        "rms": rms,
        "max": [4 * e for e in rms],
        "bias": [0.0] * steps,
        "state_step": looked,
        "state": [rms[n] / 3 for n in looked],
    }


def band(scale: float, power: float) -> dict[str, Any]:
    data = series(scale, power)
    return {
        "step": data["step"],
        "rms_median": data["rms"],
        "rms_max": [1.6 * e for e in data["rms"]],
        "state_step": data["state_step"],
        "state_median": data["state"],
        "state_max": [e * 2 for e in data["state"]],
    }


def after_logits() -> list[Observation]:
    rows = [
        {"check": f"chunks of {n}", "max_abs": 1e-6 / n, "state": None if n == 1 else 2e-7, "bit_equal": n == 64}
        for n in (1, 16, 64)
    ]
    shapes = {"att_shift": [24, 1, 2048], "wkv": [24, 1, 32, 64, 64], "ffn_shift": [24, 1, 2048]}
    state = {
        "bytes": 12976128,
        "shapes": shapes,
        "positions": [1, 10, 100],
        "bytes_at": [12976128] * 3,
        "rms": [0.1, 0.4, 0.5],
    }
    return [
        see("distribution", F32, "ladder", ladder(3.7e-15, 1.0), "prose"),
        see("distribution", BF16, "ladder", ladder(6.5e-6, 0.99739), "prose"),
        see("stepwise", F32, "series", series(3e-7, 0.1), "prose"),
        see("stepwise", BF16, "series", series(2e-2, 0.12), "prose"),
        see("stepwise", HONEST32, "band", band(2.5e-7, 0.1), "prose"),
        see("stepwise", HONEST16, "band", band(1.8e-2, 0.12), "prose"),
        see("consistency", F32, "matrix", {"rows": rows}),
        see("state", F32, "state", state),
    ]


def texts() -> list[Observation]:
    text = "if n == 0:\n        return 0\n    elif n == 1:\n        return 1\n    else:\n"
    same = {"ids": list(range(20)), "text": text, "prompt": PROMPT, "parting": None, "margin": None, "allowed": None}
    other = {**same, "ids": [*range(13), 9, 9, 9], "text": "if n <= 1:\n        return n\n"}
    return [
        see("generation", REF, "text", {**same, "class": ""}),
        see("generation", F32, "text", {**same, "class": "EXACT"}),
        see("generation", BF16, "text", {**other, "class": "TIE", "parting": 13, "margin": 0.0031, "allowed": 0.0211}),
    ]


def speeds() -> list[Observation]:
    seen = []
    for subject, factor in ((F32, 1.0), (BF16, 1.63)):
        for what, count, rate in (("prefill", 512, 1809.0), ("prefill", 16, 640.0), ("decode", 64, 88.0)):
            median = rate * factor
            data: dict[str, Any] = {"what": what, "tokens": count, "batch": 1, "seconds": [count / median] * 9}
            data |= {"median": median, "low": median * 0.97, "high": median * 1.04}
            if what == "decode":
                data |= {"fraction": 0.5 * factor, "bound": "memory", "invalid": False, "joules_per_token": 0.31}
                data |= {"token_ms": {"p50": 11.2, "p90": 11.9, "p99": 14.0}, "token_count": 576}
            seen.append(see("speed", subject, "samples", data, f"{what}-{count}"))
        at = [1, 10, 100, 1000, 10000]
        ms = [11.2 / factor + 0.01 * n for n in range(5)]
        bounds = {"low": [m * 0.97 for m in ms], "high": [m * 1.05 for m in ms]}
        growth = {"growth": 0.004, "growth_low": -0.01, "growth_high": 0.012, "cost": "constant"}
        seen.append(see("speed", subject, "latency", {"position": at, "ms": ms, **bounds, **growth}, "decode"))
    ratio = {"what": "decode", "tokens": 64, "batch": 1, "versus": F32, "verdict": "faster"}
    seen.append(see("speed", BF16, "ratio", {**ratio, "ratio": 1.63, "low": 1.58, "high": 1.69}, "decode-64"))
    return [*seen, *beside_speeds()]


def beside_speeds() -> list[Observation]:
    """The machine, the control, what opening cost, and an earlier run."""
    cell: dict[str, Any] = {"what": "decode", "tokens": 64, "batch": 1}
    control = {**cell, "ratio": 1.002, "low": 0.991, "high": 1.013, "verdict": "equivalent"}
    noise = {**cell, "seconds": 12.0, "foreign": 0.4, "stolen": 0.2, "busiest": [["cc1", 0.3]]}
    rates = {**cell, "device": "cpu", "read": [38e9, 41e9], "copy": [60e9, 62e9], "gemm": {"f32": [440e9, 460e9]}}
    opening: dict[str, Any] = {"load_seconds": 1.31, "first_seconds": 0.42, "own": 600 << 20, "children": 80 << 20}
    opening |= {"state_bytes": 2433024, "energy": "all processor packages (RAPL)", "round_trip_ms": 0.21}
    past = {**cell, "baseline": "20260101T000000Z-00000000", "created": "2026-01-01T00:00:00+00:00"}
    slower = {**past, "ratio": 0.91, "low": 0.89, "high": 0.93, "normalised": True, "verdict": "slower"}
    other = {**past, "verdict": "incomparable", "because": "another torch: 2.0 then, 2.13.0 now"}
    rows = (
        *(("control", F32, control), ("noise", "machine", noise), ("limits", "machine", rates)),
        *(("opening", F32, opening), ("history", F32, slower), ("history", BF16, other)),
    )
    return [see("speed", subject, kind, data, "decode-64") for kind, subject, data in rows]


def measured() -> list[Measurement]:
    rows = {
        "rms_error": ("logit", 2.9e-7, 0.0312, 2.7e-7, 0.0341),
        "max_abs_error": ("logit", 9.8e-7, 0.0519, 1.1e-6, 0.0604),
        "cosine": ("", 1.0, 0.99997, 1.0, 0.99996),
        "bias_z": ("", 0.7, -1.2, 1.1, 0.9),
    }
    return [
        Measurement("logits", CASE, subject, name, value, unit, "token 6, id 98" if "max" in name else "")
        for name, (unit, *values) in rows.items()
        for subject, value in zip((F32, BF16, HONEST32, HONEST16), values, strict=True)
    ]


def others() -> list[Measurement]:
    return [
        Measurement("generation", CASE, F32, "agreement", 1.0),
        Measurement("generation", CASE, BF16, "agreement", 0.65),
        Measurement("speed", "decode-64", F32, "rate", 88.0, "tokens/s"),
        Measurement("compare", CASE, BF16, "deviation", 6.995911e-06),
    ]


def judged() -> list[Verdict]:
    why = "three times what honest arithmetic of the same number format reaches"

    def row(suite: str, subject: str, name: str, value: float | None, limit: str, bound: float | None) -> Verdict:
        return Verdict(suite, CASE, subject, f"strict/{name}", Outcome.PASS, value, limit, bound, why)

    return [
        row("tokenization", F32, "tokenization.ids", 1.0, "exact", None),
        row("tokenization", BF16, "tokenization.ids", 1.0, "exact", None),
        row("logits", F32, "logits.rms_error", 2.9e-7, "<= 8.1e-07 = 3 x honest f32", 8.1e-7),
        row("logits", BF16, "logits.rms_error", 0.0312, "<= 0.102 = 3 x honest bf16", 0.1023),
        row("logits", F32, "logits.top1_difference", 2e-7, "< 1.0", 1.0),
        row("logits", BF16, "logits.top1_difference", 0.0273, "< 2.0", 2.0),
        row("logits", BF16, "logits.cosine", 0.99997, ">= 0.9999", 0.9999),
        row("generation", F32, "generation.parting", 0.0, "<= 0", 0.0),
    ]


def record() -> Record:
    """A run that passed, with every kind of evidence."""
    unsupported = Verdict(
        "state", "", BF16, "strict/state.bytes", Outcome.UNSUPPORTED, detail="torch-compile lacks ability 'state'"
    )
    environment = {
        "machine": {"cpu": "AMD EPYC 9575F", "threads": 2},
        "packages": {"torch": "2.13.0+cpu", "numpy": "2.4.0"},
        "commit": "9b1cffc",
        "dirty": True,
        "python": "3.11.7",
        "os": "Linux 6.8",
        "cpu": "AMD EPYC 9575F",
        "cores": 2,
        "memory_gib": 31.3,
    }
    names = ("tokenization", "logits", "distribution", "stepwise", "consistency", "generation", "state", "speed")
    return Record(
        id="20260131T120000Z-1f2e3d4c",
        created="2026-01-31T12:00:00+00:00",
        finished="2026-01-31T12:01:30+00:00",
        status="complete",
        command="python -m harness validate --model RWKV/RWKV7-Goose-World3-1.5B-HF",
        job_key="abc",
        profile={"name": "strict", "version": 1, "criteria": []},
        model=MODEL,
        environment=environment,
        subjects=SUBJECTS,
        suites=tuple({"name": name, "version": 1, "question": "", "cases": [CASE]} for name in names),
        measurements=(*measured(), *others()),
        observations=(*tokens(), *logits(), *after_logits(), *texts(), *speeds()),
        verdicts=(*judged(), unsupported),
    )


def failing() -> Record:
    """A run with failures in several cases, NaN among the numbers, a dead subject and an error."""
    base = record()
    bad = [
        Verdict("logits", case, F32, "strict/logits.rms_error", Outcome.FAIL, value, "<= 8.1e-07", 8.1e-7, "3 x honest")
        for case, value in (("code", 3.4e-5), ("zh", 3.4e-6), ("prose", math.nan))
    ]
    broke = Verdict("state", CASE, BF16, "strict/state.finite", Outcome.ERROR, detail="the state verb raised KeyError")
    missing = Verdict("logits", "zh", BF16, "strict/logits.rms_error", Outcome.FAIL, None, "<= 0.1", 0.1)
    nan = [Measurement("logits", "prose", F32, "rms_error", math.nan, "logit")]
    dead = Subject("torch-cuda-bf16", "candidate", error="CUDA is not available on this machine")
    return replace(
        base,
        id="20260131T130000Z-00000000",
        subjects=(*base.subjects, dead),
        measurements=(*base.measurements, *nan),
        verdicts=(*base.verdicts, *bad, broke, missing),
        notes=("the limit of logits.rms_error was loosened since the last run",),
    )


def empty() -> Record:
    """A run that was asked for and measured nothing."""
    return Record(id="empty", created="2026-01-31T12:00:00+00:00")


HOSTILE = (
    "<script>alert(1)</script>|`x`||``y``\n# heading\r\n\u202eevil\u202c \u05e9\u05dc\u05d5\u05dd \U0001f600 \u8bcd "
    "$a$ *b* _c_ \\| \ud800 \x1b[31m &amp; [l](http://x)"
)


def hostile() -> Record:
    """Every text of a record is an attack on the format that shows it."""
    base = failing()
    row = {"id": 5, "piece": HOSTILE, "rank_ref": None, "rank": 1, "ref": None, "logit": math.nan}
    top_row = {"k": 10, "position": 0, "rows": [row]}
    text = {"ids": [1], "text": HOSTILE + "\n```\n</code></pre><script>", "prompt": HOSTILE, "class": "DIVERGED"}
    return replace(
        base,
        id="hostile",
        command=f"python -m harness validate --model '{HOSTILE}'\n```\n<script>",
        model={**MODEL, "name": HOSTILE, "evidence": HOSTILE},
        environment={HOSTILE: HOSTILE, "commit": HOSTILE},
        subjects=(
            Subject(REF, "reference", info("f64", HOSTILE)),
            Subject(HOSTILE, "candidate", info(HOSTILE, HOSTILE), error=HOSTILE),
        ),
        suites=(),
        measurements=(Measurement("logits", HOSTILE, HOSTILE, HOSTILE, math.nan, HOSTILE, "=HYPERLINK(1)"),),
        observations=(
            see("logits", HOSTILE, "topk", top_row, HOSTILE),
            see("logits", HOSTILE, "error_by_rank", {"rank": [1, 2], "abs_err": [math.nan, "inf"]}, HOSTILE),
            see("tokenization", HOSTILE, "tokens", {"prompt": HOSTILE, "ids": [1], "pieces": [HOSTILE]}, HOSTILE),
            see("generation", HOSTILE, "text", {**text, "parting": 0, "margin": 1.0, "allowed": 0.1}, HOSTILE),
            see("stepwise", HOSTILE, "series", series(math.nan, 0.5, 8), HOSTILE),
        ),
        verdicts=(
            Verdict("logits", HOSTILE, HOSTILE, HOSTILE, Outcome.FAIL, math.inf, HOSTILE, 1.0, HOSTILE, HOSTILE),
        ),
        notes=(HOSTILE,),
    )
