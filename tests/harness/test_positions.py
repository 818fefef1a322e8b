"""Cost by position under a clock of its own: what is constant, what grows."""

from dataclasses import replace
from typing import Any

import pytest

from backends.base import Ids
from tests.harness.clock import Clock, of_kind, rows
from tests.harness.stub import Stub


def test_latency_by_position(clock: Clock) -> None:
    measurements, observations = rows({"a": clock.session("a", 1e-3)}, positions=[1024, 0, 256])
    (found,) = of_kind(observations, "latency")
    assert found["position"] == [0, 256, 1024]
    assert found["ms"] == pytest.approx([1.0] * 3, rel=0.01)  # milliseconds
    assert all(low <= ms <= high for low, ms, high in zip(found["low"], found["ms"], found["high"], strict=True))
    assert found["cost"] == "constant"
    (growth,) = (m for m in measurements if m.name == "cost_growth")
    assert growth.value == pytest.approx(0, abs=0.02)
    assert growth.where.startswith("from position 0 to 1024: ")


def test_a_machine_that_slows_down_is_no_growth(clock: Clock) -> None:
    """Ever longer tokens, wherever they stand."""

    def tired(tokens: Ids) -> None:
        clock.now += 1e-3 * 1.003 ** (1e3 * (clock.now - 100)) * tokens.size

    _, observations = rows({"a": Stub(tired)}, positions=[0, 8, 16], prefill=[], decode=0)
    (found,) = of_kind(observations, "latency")
    assert max(found["samples"][0]) > 1.1 * min(found["samples"][0])
    assert found["cost"] == "constant"


def test_short_tokens_are_repeated_until_a_turn_has_a_length(clock: Clock) -> None:
    _, observations = rows({"a": clock.session("a", 1e-4)}, positions=[0, 8], least=0.002)
    (found,) = of_kind(observations, "latency")
    assert found["tokens_a_sample"] == 20


class Attentive(Stub):
    """Attention in disguise: every token costs more than the one before."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.reached = clock, 0

    def _forward(self, tokens: Ids, state: Any, want: Any) -> Any:
        reached = (state or 0) + tokens.size
        self.clock.now += 1e-3 * (1 + reached / 1000)
        return bench_output(super()._forward(tokens, state, want), reached)


def bench_output(out: Any, reached: int) -> Any:
    return replace(out, state=reached)


def test_a_cost_that_grows_is_seen(clock: Clock) -> None:
    measurements, observations = rows({"a": Attentive(clock)}, positions=[0, 500, 1000])
    (found,) = of_kind(observations, "latency")
    assert found["cost"] == "grows"
    assert found["ms"] == pytest.approx([1.003, 1.503, 2.003], rel=0.01)
    assert next(m.value or 0 for m in measurements if m.name == "cost_growth") > 0.5


def test_positions_are_reached_to_the_token(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also beyond one call's worth of tokens, and the kept states are fed again and again."""
    reached: list[int] = []
    session = Attentive(clock)
    whole = session._forward

    def forward(tokens: Ids, state: Any, want: Any) -> Any:
        reached.append(state or 0)
        return whole(tokens, state, want)

    monkeypatch.setattr(session, "_forward", forward)
    _, observations = rows({"a": session}, positions=[0, 7, 1200], prefill=[], decode=0)
    (found,) = of_kind(observations, "latency")
    turns = reached[4:]  # 7 tokens, then 512, 512 and 169 more lead there
    assert reached[:4] == [0, 7, 519, 1031]
    assert {turns[i] for i in range(0, len(turns), 4)} == {0, 7, 1200}
    assert all(turns[i + 3] - turns[i] == 3 for i in range(0, len(turns), 4))
    assert [len(each) for each in found["samples"]] == [24, 24, 24]


def test_one_position_has_no_growth_and_none_no_latency(clock: Clock) -> None:
    measurements, observations = rows({"a": clock.session("a", 1e-3)}, positions=[64])
    assert len(of_kind(observations, "latency")) == 1
    assert not [m for m in measurements if m.name == "cost_growth"]
    _, observations = rows({"a": clock.session("a", 1e-3)}, positions=[])
    assert not of_kind(observations, "latency")


def test_slow_subjects_are_looked_at_less_often(clock: Clock) -> None:
    _, observations = rows({"a": clock.session("a", 2.0)}, positions=[0, 1])
    (found,) = of_kind(observations, "latency")
    assert len(found["samples"][0]) == 2  # rounds
