"""The envelope: spreads of honest runs, and how many there are."""

import math
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from harness import envelope
from harness.measures import base
from harness.measures.base import Number
from tests.harness.stub import Stub, context


def fake_measure(values: list[float], **more: Any) -> Any:
    """A measure whose honest runs give these values, one a run."""
    left = iter(values)

    def collect(session: Any, context: Any, truth: Any, rows: int = 1) -> list[dict[str, Any]]:
        asked.append(rows)
        return [{"value": next(left)} for _ in range(rows)]

    def compare(got: Any, truth: Any, context: Any) -> list[Number]:
        return [Number("error", got["value"]), Number("unexplained", 1.0)]

    asked: list[int] = []
    return SimpleNamespace(collect=collect, compare=compare, asked=asked, **more)


def spreads(values: list[float], **more: Any) -> tuple[dict[str, base.Spread], list[tuple[str, dict[str, Any]]]]:
    return envelope.measure_envelope(fake_measure(values, **more), Stub(), context([1, 2, 3]), {}, len(values))


@pytest.mark.parametrize(
    ("asked", "parameters", "runs"),
    [(0, 1_000, 16), (0, 50_000_000, 16), (0, 50_000_001, 8), (3, 1_000, 3), (3, 10**10, 3)],
)
def test_runs_by_size(asked: int, parameters: int, runs: int) -> None:
    assert envelope.runs(asked, parameters) == runs


def test_a_spread_is_of_magnitudes() -> None:
    found, evidence = spreads([0.1, -0.7, 0.2])
    assert found["error"] == base.Spread(0.2, 0.7)
    assert evidence == [("envelope", {"runs": 3, "measures": {"error": {"median": 0.2, "max": 0.7}}})]


def test_a_verdict_like_number_has_no_envelope() -> None:
    assert "unexplained" not in spreads([0.1])[0]


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_one_run_that_is_not_finite_makes_it_infinite(broken: float) -> None:
    assert spreads([0.1, broken, 0.2])[0]["error"].largest == math.inf


def test_band_is_kept_where_a_measure_has_one() -> None:
    kinds = dict(spreads([1.0, 2.0], band=lambda samples, truth: {"of": len(samples)})[1])
    assert kinds["band"] == {"of": 2}


@pytest.mark.parametrize("count", [1, 2, 3, 7, 16])
def test_big_vocabularies_are_run_in_portions_of_two_or_more(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(envelope, "ROW_BYTES", 1)
    measure = fake_measure([float(i) for i in range(count)])
    found, evidence = envelope.measure_envelope(measure, Stub(), context([1, 2]), {}, count)
    assert sum(measure.asked) == count
    assert all(2 <= rows <= 3 for rows in measure.asked) or count == 1
    assert found["error"].largest == count - 1
    assert evidence[0][1]["runs"] == count


def test_portions_of_real_honest_runs_differ() -> None:
    """Every portion must be rounded anew, or more runs would be the same runs again."""
    from backends.registry import open_session, parse
    from harness.measures import logits
    from tests.backends.random_model import as_weights, random_rwkv7

    def errors() -> Iterator[float]:
        with open_session(parse("honest:0@bf16"), as_weights(random_rwkv7(C=32, N=16, L=1, V=256)), 1) as session:
            for _ in range(2):
                yield from (float(sample["logits"].sum()) for sample in logits.collect(session, around, None, 2))

    around = context([5, 9, 200])
    assert len(set(errors())) == 4
