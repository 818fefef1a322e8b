import math
import random

import pytest

from reports.trend import tail, trend


def errors(power: float, steps: int = 512, seed: int = 0) -> list[float]:
    noise = random.Random(seed)
    return [1e-6 * (n + 1) ** power * math.exp(noise.gauss(0, 0.2)) for n in range(steps)]


def test_growth_without_end_accumulates() -> None:
    found = trend(range(512), errors(0.5))
    assert found is not None
    assert found.word == "accumulates"
    assert found.slope == pytest.approx(0.5, abs=0.06)


def test_growth_that_settles_saturates() -> None:
    found = trend(range(512), [1e-6 * (1 - math.exp(-n / 6)) + 1e-8 for n in range(512)])
    assert found is not None
    assert found.word == "saturates"


@pytest.mark.parametrize("seed", range(20))
def test_noise_stays_flat(seed: int) -> None:
    found = trend(range(512), errors(0.0, seed=seed))
    assert found is not None
    assert found.word == "stays flat"


@pytest.mark.parametrize("series", [[], [0.0] * 50, [math.nan] * 50, [1e-6, 2e-6]])
def test_too_little_says_nothing(series: list[float]) -> None:
    assert trend(range(len(series)), series) is None


def test_all_at_one_step_says_nothing() -> None:
    assert trend([3] * 20, errors(0.0, 20)) is None


def test_tail_of_equal_chances_is_binomial() -> None:
    assert tail([0.5] * 4, 3) == pytest.approx(5 / 16)
    assert tail([0.1, 0.9], 0) == pytest.approx(1)
    assert tail([0.1, 0.9], 2) == pytest.approx(0.09)
    assert tail([], 1) == 0
