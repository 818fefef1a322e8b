import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import statistics
from harness.statistics import Interval


def noise(n: int, seed: int = 0, sigma: float = 0.02) -> statistics.Vector:
    return np.exp(np.random.default_rng(seed).normal(0, sigma, n))


def test_order_statistic_occurs_in_the_data() -> None:
    values = [5.0, 1.0, 3.0, 2.0, 4.0]
    assert [statistics.order_statistic(values, s) for s in (0, 0.2, 0.5, 0.9, 1)] == [1, 1, 3, 5, 5]
    assert statistics.percentiles(range(1, 101)) == {"p50": 50, "p90": 90, "p99": 99}
    assert math.isnan(statistics.order_statistic([1.0, math.nan], 0.5))
    assert statistics.order_statistic([1.0, math.inf], 1.0) == math.inf
    with pytest.raises(ValueError, match="no samples"):
        statistics.order_statistic([], 0.5)


def test_median_interval_covers_the_truth() -> None:
    hits = sum(statistics.median(noise(25, seed), seed).within(0, 2) for seed in range(3))
    assert hits == 3
    covered = 0
    for seed in range(60):
        found = statistics.median(noise(25, seed), seed)
        assert found.low <= found.value <= found.high
        covered += found.low <= 1.0 <= found.high
    assert covered >= 52


def test_median_is_seeded_and_survives_outliers() -> None:
    samples = [*noise(20), 50.0]
    assert statistics.median(samples) == statistics.median(samples)
    assert statistics.median(samples).high < 1.1


def test_large_samples_are_resampled_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "_CHUNK", 1000)
    found = statistics.median(noise(300))
    assert found.low < 1.0 < found.high


@pytest.mark.parametrize("samples", [[], [1.0, math.nan], [math.inf]])
def test_samples_must_be_finite(samples: list[float]) -> None:
    with pytest.raises(ValueError, match="samples"):
        statistics.median(samples)


def test_ratio_is_above_one_for_the_faster() -> None:
    baseline = noise(30)
    ratio = statistics.speed_ratio(baseline / 2, baseline)
    assert ratio.value == pytest.approx(2)
    assert statistics.speed_verdict(ratio) == "faster"
    assert statistics.speed_verdict(statistics.speed_ratio(baseline, baseline / 2)) == "slower"


def test_interleaving_cancels_what_slows_both_down() -> None:
    machine = np.linspace(1, 3, 40)  # it becomes three times slower meanwhile
    ratio = statistics.speed_ratio(machine * noise(40, 1, 0.002), machine * noise(40, 2, 0.002))
    assert statistics.speed_verdict(ratio) == "equivalent"


def test_the_same_program_is_equivalent_and_noise_is_inconclusive() -> None:
    same = [statistics.speed_ratio(noise(30, s, 0.01), noise(30, s + 100, 0.01)) for s in range(20)]
    assert [statistics.speed_verdict(r) for r in same].count("equivalent") >= 19
    noisy = statistics.speed_ratio(noise(6, 1, 0.5), noise(6, 2, 0.5))
    assert statistics.speed_verdict(noisy) == "inconclusive"


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        ((1.0, 0.98, 1.02), "equivalent"),
        ((1.03, 1.031, 1.04), "faster"),
        ((0.9, 0.85, 0.97), "slower"),
        ((1.03, 1.01, 1.05), "inconclusive"),
        ((0.97, 0.95, 0.98), "inconclusive"),
        ((1.0, 0.5, 2.0), "inconclusive"),
        ((math.nan, math.nan, math.nan), "inconclusive"),
    ],
)
def test_four_verdicts(interval: tuple[float, float, float], verdict: str) -> None:
    assert statistics.speed_verdict(Interval(*interval)) == verdict


def test_ratio_refuses_what_is_no_pair() -> None:
    with pytest.raises(ValueError, match="in pairs"):
        statistics.speed_ratio([1.0], [1.0, 2.0])
    with pytest.raises(ValueError, match="not positive"):
        statistics.speed_ratio([0.0], [1.0])


@given(st.integers(0, 1000), st.floats(-3, 3))
def test_slope_of_a_line_with_outliers(seed: int, rate: float) -> None:
    random = np.random.default_rng(seed)
    x = np.arange(60.0)
    y = rate * x + random.normal(size=60) * 0.1
    y[random.integers(0, 60, 5)] += 1000
    found = statistics.slope(x, y)
    assert found.low <= found.value <= found.high
    assert found.value == pytest.approx(rate, abs=0.02)


def test_slope_interval_covers_the_truth_in_most_runs() -> None:
    x = np.repeat(np.arange(10.0), 3)
    found = [statistics.slope(x, np.random.default_rng(s).normal(size=30)) for s in range(100)]
    assert 90 <= sum(f.low <= 0 <= f.high for f in found) <= 100


def test_slope_of_many_points_and_of_none() -> None:
    x = np.arange(5000.0)[::-1]
    assert statistics.slope(x, 2 * x).value == pytest.approx(2)
    for bad in (([1.0, 1.0], [1.0, 2.0]), ([1.0, 2.0], [1.0])):
        with pytest.raises(ValueError, match="two different x"):
            statistics.slope(*bad)


def test_constant_cost() -> None:
    at = np.repeat([100.0, 10_000.0, 100_000.0], 10)
    flat = statistics.growth(at, noise(30, 0, 0.005))
    assert statistics.cost_verdict(flat) == "constant"
    grown = statistics.growth(at, (1 + at / 1e5) * noise(30, 0, 0.005))
    assert statistics.cost_verdict(grown) == "grows"
    assert grown.value > 0.5
    assert statistics.cost_verdict(Interval(-0.5, -0.6, -0.4)) == "shrinks"
    assert statistics.cost_verdict(Interval(0.03, 0.0, 0.1)) == "inconclusive"


@pytest.mark.parametrize(
    ("samples", "start"),
    [
        ([], None),
        ([1] * 9, None),
        ([1] * 10, 0),
        ([10, 8, 5, 3, *[1] * 10], 4),
        ([2] * 6 + [1] * 10, 6),
        ([*range(30, 1, -1)], None),
        ([1] * 6 + [9] + [1] * 6, 0),
        ([2] * 20 + [1] * 6, None),
    ],
)
def test_steady_from(samples: list[float], start: int | None) -> None:
    assert statistics.steady_from(samples) == start


STEPS = np.arange(1, 201)


@pytest.mark.parametrize(
    ("curve", "kind", "slope"),
    [
        (np.ones(200), "flat", 0.0),
        (STEPS**0.5, "accumulates", 0.5),
        (STEPS * 1.0, "accumulates", 1.0),
        (np.exp(STEPS / 20), "accumulates", None),
        (1 - np.exp(-STEPS / 25), "saturates", None),
        (1.0 / STEPS, "flat", -1.0),
    ],
)
def test_drift(curve: statistics.Vector, kind: statistics.Trend, slope: float | None) -> None:
    kinds = []
    for seed in range(10):
        found = statistics.drift(1e-6 * curve * noise(200, seed, 0.2))
        kinds.append(found.kind)
        assert found.low <= found.slope <= found.high
        if slope is not None:
            assert found.slope == pytest.approx(slope, abs=0.2)
    assert kinds.count(kind) >= 9


def test_drift_tells_where_it_saturates() -> None:
    found = statistics.drift(np.minimum(STEPS, 40) * noise(200, 0, 0.05))
    assert found.kind == "saturates"
    assert 30 < found.knee < 50
    assert found.z > 5


def test_slow_wandering_is_not_taken_for_growth() -> None:
    kinds = []
    for seed in range(40):
        steps = np.random.default_rng(seed).normal(size=200)
        walk = [steps[0]]
        for step in steps[1:]:
            walk.append(0.9 * walk[-1] + math.sqrt(1 - 0.81) * step)
        kinds.append(statistics.drift(np.exp(0.3 * np.array(walk))).kind)
    assert kinds.count("flat") >= 37  # 28 if the correlation of neighbours is ignored


def test_drift_of_what_is_no_series() -> None:
    assert statistics.drift([1e-6] * 7).kind == "unknown"
    assert statistics.drift([math.nan] * 20).kind == "unknown"
    exact = statistics.drift(np.zeros(20))
    assert (exact.kind, exact.slope) == ("flat", 0.0)
    assert statistics.drift([0, 0, *[1e-7] * 20]).kind != "accumulates"
    assert statistics.drift(np.full(20, 1e-7)).kind == "flat"
    assert statistics.drift(STEPS * 1e-7).kind == "accumulates"  # a perfect line, no residual
