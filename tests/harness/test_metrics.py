import math
import tracemalloc
from decimal import Decimal, getcontext
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harness import metrics

Array = npt.NDArray[np.float64]
LOGITS = hnp.arrays(np.float64, (3, 5), elements=st.floats(-30, 30, width=32))


def logits(T: int = 4, V: int = 50, seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=(T, V)) * 2


def exact_kl(p_logits: Array, q_logits: Array) -> float:
    """KL of two softmaxes with 60 digits."""
    getcontext().prec = 60
    e = [[Decimal(float(x)).exp() for x in row] for row in (p_logits, q_logits)]
    p, q = ([x / sum(row) for x in row] for row in e)
    return float(sum(a * (a / b).ln() for a, b in zip(p, q, strict=True)))


def test_logit_numbers_by_hand() -> None:
    want = np.array([[1.0, 2.0, 3.0], [0.0, -1.0, 4.0]])
    got = want + np.array([[0.1, 0.0, -0.2], [0.0, 0.0, 0.4]])
    n = metrics.logit_numbers(got, want)
    d = (got - want).ravel()
    assert n["max_abs"] == pytest.approx(0.4)
    assert n["mae"] == pytest.approx(0.7 / 6)
    assert n["rms"] == pytest.approx(math.sqrt(0.21 / 6))
    assert n["rel_rms"] == pytest.approx(n["rms"] / want.std())
    assert n["deviation"] == pytest.approx(0.4 / want.std())
    assert n["nmse"] == pytest.approx(0.21 / (want**2).sum())
    assert n["correlation"] == pytest.approx(np.corrcoef(got.ravel(), want.ravel())[0, 1])
    cosines = [got[t] @ want[t] / np.linalg.norm(got[t]) / np.linalg.norm(want[t]) for t in range(2)]
    assert n["cosine"] == pytest.approx(min(cosines))
    assert n["bias"] == pytest.approx(d.mean())
    rows = (got - want).mean(1)
    assert n["bias_z"] == pytest.approx(rows.mean() / (rows.std(ddof=1) / math.sqrt(2)))
    assert n["top1"] == 1.0
    assert tuple(n) == metrics.LOGIT_NUMBERS
    assert metrics.worst(got, want) == (1, 2)


def test_blocks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    got, want = logits(seed=1), logits()
    whole = metrics.logit_numbers(got, want) | metrics.distribution_numbers(got, want, np.arange(4))
    monkeypatch.setattr(metrics, "BLOCK", 60)
    parts = metrics.logit_numbers(got, want) | metrics.distribution_numbers(got, want, np.arange(4))
    assert parts == pytest.approx(whole, rel=1e-13)
    assert metrics.worst(got, want) == divmod(int(np.abs(got - want).argmax()), 50)


def test_one_position_has_no_bias_z() -> None:
    want = logits(T=1)
    assert metrics.logit_numbers(want + 0.1, want)["bias_z"] == 0.0
    assert metrics.logit_numbers(want[0] + 0.1, want[0]) == metrics.logit_numbers(want + 0.1, want)


def test_bias_z_is_not_inflated_by_errors_shared_inside_a_position() -> None:
    random = np.random.default_rng(0)
    want = random.normal(size=(64, 1000))
    shared = want + random.normal(size=(64, 1)) * 1e-3
    assert abs(metrics.logit_numbers(shared, want)["bias_z"]) < 4
    assert metrics.logit_numbers(shared + 1e-3, want)["bias_z"] > 5
    assert metrics.logit_numbers(want - np.float64(2**-10), want)["bias_z"] < -1e6


def test_equal_logits_have_no_error_even_when_constant() -> None:
    n = metrics.logit_numbers(np.ones((2, 3)), np.ones((2, 3)))
    assert n["rel_rms"] == n["deviation"] == n["nmse"] == n["max_abs"] == n["bias_z"] == 0
    assert math.isnan(n["correlation"])
    assert metrics.logit_numbers(np.ones((2, 3)) + 1, np.ones((2, 3)))["deviation"] == math.inf
    assert math.isnan(metrics.logit_numbers(np.zeros((1, 3)), np.ones((1, 3)))["cosine"])


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["got", "want", "both"])
def test_not_finite_is_never_hidden(bad: float, side: str) -> None:
    pair = {"got": logits(seed=1), "want": logits()}
    for name in pair if side == "both" else [side]:
        pair[name][2, 7] = bad
    assert all(math.isnan(value) for value in metrics.logit_numbers(**pair).values())
    assert metrics.worst(**pair) == (2, 7)
    if bad != -math.inf:
        assert all(math.isnan(v) for v in metrics.distribution_numbers(**pair, targets=[0, 1, 2, 3]).values())


@pytest.mark.parametrize(
    ("got", "want"),
    [((2, 3), (2, 4)), ((2, 3), (3,)), ((1, 3), (2, 3)), ((0, 3), (0, 3)), ((2, 2, 2), (2, 2, 2))],
)
def test_shapes_before_values(got: tuple[int, ...], want: tuple[int, ...]) -> None:
    for function in (metrics.logit_numbers, metrics.distribution_numbers, metrics.worst, metrics.top_set_agreement):
        with pytest.raises(ValueError, match="equal shape"):
            function(np.zeros(got), np.zeros(want))


def test_no_second_copy_is_made() -> None:
    want = np.random.default_rng(0).normal(size=(128, 8192)).astype(np.float32)
    got = want + np.float32(1e-5)
    tracemalloc.start()
    metrics.logit_numbers(got, want)
    metrics.distribution_numbers(got, want, np.zeros(128, dtype=np.int64))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20 * metrics.BLOCK * 8 < 3 * want.nbytes * 2  # blocks, not a dozen whole arrays of float64


@given(LOGITS, LOGITS)
def test_divergences_are_never_negative(p: Array, q: Array) -> None:
    n = metrics.distribution_numbers(q, p)
    assert all(n[name] >= 0 for name in n)
    assert n["js_max"] <= math.log(2) + 1e-12
    assert n["kl_p50"] <= n["kl_p90"] <= n["kl_p99"] <= n["kl_p99.9"] <= n["kl_max"]
    assert metrics.distribution_numbers(p, p)["kl_max"] == 0


@given(st.floats(-14, 1), st.integers(0, 100))
def test_kl_keeps_its_digits_from_rounding_size_to_large(exponent: float, seed: int) -> None:
    want = logits(1, 20, seed)
    got = want + np.random.default_rng(seed + 1).normal(size=want.shape) * 10**exponent
    n = metrics.distribution_numbers(got, want)
    accuracy = 1e-6 + 1e-14 / 10**exponent  # the logits of float64 themselves have 16 digits
    assert n["kl_max"] == pytest.approx(exact_kl(want[0], got[0]), rel=accuracy)
    assert n["kl_reverse_max"] == pytest.approx(exact_kl(got[0], want[0]), rel=accuracy)


def test_js_against_its_definition() -> None:
    p, q = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.3, 0.6])
    m = (p + q) / 2
    js = (p * np.log(p / m)).sum() / 2 + (q * np.log(q / m)).sum() / 2
    n = metrics.distribution_numbers(np.log(q), np.log(p))
    assert n["js_mean"] == pytest.approx(js)
    assert n["prob_linf"] == pytest.approx(0.6)
    assert n["prob_l1"] == pytest.approx(1.2)
    assert n["prob_l2"] == pytest.approx(math.sqrt(0.62))
    assert n["same_top"] == 0


def test_a_logit_of_minus_infinity_is_a_token_of_no_probability() -> None:
    p, q = np.array([0.5, 0.5, 0.0]), np.array([0.25, 0.75, 0.0])
    with np.errstate(divide="ignore"):
        n = metrics.distribution_numbers(np.log(q), np.log(p))
        masked = metrics.distribution_numbers(np.array([0.0, 0.0, -np.inf]), np.zeros(3))
        unmasked = metrics.distribution_numbers(np.zeros(3), np.array([0.0, 0.0, -np.inf]))
    assert n["kl_max"] == pytest.approx((p[:2] * np.log(p[:2] / q[:2])).sum())
    assert masked["kl_max"] == math.inf  # the reference's token cannot come any more
    assert masked["kl_reverse_max"] == pytest.approx(math.log(1.5))
    assert unmasked["kl_max"] == pytest.approx(math.log(1.5))
    assert masked["js_max"] == pytest.approx(unmasked["js_max"])
    assert math.isfinite(masked["js_max"])
    nothing = metrics.distribution_numbers(np.full(3, -np.inf), np.zeros(3))
    assert all(math.isnan(value) for value in nothing.values())


def test_probabilities_that_underflow() -> None:
    got, want = np.array([0.0, -800.0, -900.0]), np.array([0.0, -900.0, -700.0])
    n = metrics.distribution_numbers(got, want)
    assert n["kl_max"] == pytest.approx(math.exp(-700) * 199, rel=1e-9)
    assert n["js_max"] >= 0


def test_perplexity_is_paired() -> None:
    want, targets = logits(T=200), np.random.default_rng(1).integers(0, 50, 200)
    got = want.copy()
    got[np.arange(200), targets] += 1e-3
    n = metrics.distribution_numbers(got, want, targets)
    log_p = want - np.log(np.exp(want).sum(1, keepdims=True))
    assert n["ppl_ref"] == pytest.approx(math.exp(-log_p[np.arange(200), targets].mean()))
    assert n["log_ppl_ratio"] == pytest.approx(math.log(n["ppl"] / n["ppl_ref"]))
    assert -1e-3 < n["log_ppl_ratio"] < 0
    assert n["log_ppl_ratio_se"] < 1e-4  # unpaired it would be 0.2
    assert 0 < n["delta_p_rms"] < 1e-3
    assert "ppl" not in metrics.distribution_numbers(got, want)
    assert metrics.distribution_numbers(got[:1], want[:1], targets[:1])["log_ppl_ratio_se"] == math.inf


@pytest.mark.parametrize("targets", [[0], [0, 1, 2, 50], [0, 1, 2, -1], [0.0, 1.0, 2.0, 3.0]])
def test_targets_are_checked(targets: list[Any]) -> None:
    with pytest.raises(ValueError, match="targets must"):
        metrics.distribution_numbers(logits(), logits(), targets)


def test_top_k_breaks_ties_by_id() -> None:
    x = np.array([1.0, 3.0, 3.0, 2.0, 3.0, -np.inf, np.nan])
    assert metrics.top_k(x, 2).tolist() == [1, 2]
    assert metrics.top_k(x, 99).tolist() == [1, 2, 4, 3, 0, 5, 6]
    assert metrics.top_k(x, 0).tolist() == []
    assert metrics.rank_of(x, [1, 4, 3, 6]).tolist() == [1, 3, 4, 7]
    for bad in ([7], [-1]):
        with pytest.raises(ValueError, match=r"ids must lie in 0\.\.6"):
            metrics.rank_of(x, bad)
    with pytest.raises(ValueError, match="one row"):
        metrics.top_k(np.zeros((2, 2)), 1)


@given(hnp.arrays(np.float32, st.integers(1, 30), elements=st.integers(-3, 3)), st.integers(1, 40))
def test_top_k_is_the_head_of_the_ranking(x: npt.NDArray[np.float32], k: int) -> None:
    ids = metrics.top_k(x, k)
    assert metrics.rank_of(x, ids).tolist() == list(range(1, min(k, x.size) + 1))


def test_top_set_agreement() -> None:
    want = np.array([[5.0, 4, 3, 2, 1], [5.0, 4, 3, 2, 1], [5.0, 4, 3, 2, 1]])
    got = np.array([[5.0, 4, 3, 2, 1], [4.0, 5, 3, 2, 1], [5.0, 1, 3, 2, 4]])
    assert metrics.top_set_agreement(got, want, 2) == {
        "top2_exact": pytest.approx(1 / 3),
        "top2_set": pytest.approx(2 / 3),
        "top2_overlap": pytest.approx(2.5 / 3),
    }
    got[0, 0] = np.nan
    assert all(math.isnan(x) for x in metrics.top_set_agreement(got, want, 2).values())


def test_swap_table_explains_the_published_bf16_swap() -> None:
    """Ten published logits in F32 and BF16; ranks 9 and 10 change places there. RMS error 0.0312."""
    want = np.array([7.5585, 5.9269, 5.8649, 4.7785, 4.2776, 4.1880, 3.7979, 3.7510, 3.5133, 3.4919, 0.0])
    got = np.array([7.5312, 5.9, 5.85, 4.75, 4.25, 4.15, 3.75, 3.73, 3.4844, 3.5312, 0.0])
    table = metrics.swap_table(want, got, 0.0312)
    last, first = table["pairs"][8], table["pairs"][0]
    assert (last["rank"], last["a"], last["b"], last["swapped"]) == (9, 8, 9, True)
    assert last["probability"] == pytest.approx(0.31, abs=0.01)
    assert table["pairs"][6]["probability"] == pytest.approx(0.14, abs=0.01)
    assert table["pairs"][1]["probability"] == pytest.approx(0.08, abs=0.01)
    assert first["probability"] < 1e-100
    assert table["observed"] == 1
    assert table["expected"] == pytest.approx(0.56, abs=0.02)
    assert table["chance"] == pytest.approx(0.46, abs=0.03)
    assert len(table["pairs"]) == 10


def test_swap_table_edges() -> None:
    want = np.array([3.0, 3.0, 1.0])
    table = metrics.swap_table(want, np.array([1.0, 2.0, 3.0]), 0.0)
    assert [pair["probability"] for pair in table["pairs"]] == [0.5, 0.0]
    assert table["observed"] == 2
    assert table["chance"] == 0.0  # no honest arithmetic does that
    assert metrics.swap_table(want, want, 0.1)["observed"] == 0
    assert metrics.swap_table(want, np.full(3, np.nan), 0.1)["observed"] == 2
    with pytest.raises(ValueError, match="one position"):
        metrics.swap_table(want, want[:2], 0.1)


def test_error_by_rank() -> None:
    want = np.linspace(5, -5, 1000)[np.random.default_rng(0).permutation(1000)]
    got = want + np.where(metrics.rank_of(want, np.arange(1000)) == 1, 0.5, 0.01)
    series = metrics.error_by_rank(got, want)
    assert series["rank"][0] == 1
    assert series["rank"] == sorted(series["rank"])
    assert series["abs_err"][0] == pytest.approx(0.5)
    assert series["abs_err"][1:] == pytest.approx([0.01] * (len(series["rank"]) - 1))
    twice = metrics.error_by_rank(np.stack([got, want]), np.stack([want, want]))
    assert twice["abs_err"] == pytest.approx([x / 2 for x in series["abs_err"]])


def test_state_error() -> None:
    want = {"wkv": np.full((2, 2), 2.0), "shift": np.zeros(3)}
    got = {"wkv": np.full((2, 2), 2.5), "shift": np.zeros(3)}
    assert metrics.state_error(got, want) == {
        "wkv": {"max_abs": 0.5, "rel_rms": 0.25},
        "shift": {"max_abs": 0.0, "rel_rms": 0.0},
    }
    got["shift"][0] = 1.0
    assert metrics.state_error(got, want)["shift"]["rel_rms"] == math.inf
    got["shift"][0] = np.inf
    assert math.isnan(metrics.state_error(got, want)["shift"]["max_abs"])
    with pytest.raises(ValueError, match="components differ"):
        metrics.state_error({"wkv": want["wkv"]}, want)
    with pytest.raises(ValueError, match="component wkv"):
        metrics.state_error({**want, "wkv": np.zeros((2, 1))}, want)
