import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness import replay
from harness.replay import Error, Out

RNG = np.random.default_rng(7)
SHAPE = (40, 6)


def noise(scale: float = 1.0, seed: int = 0) -> Error:
    want = np.ones(SHAPE)
    return replay.error(want + scale * np.random.default_rng(seed).standard_normal(SHAPE), want)


HONEST = replay.band({"w": noise(1e-3, seed)} for seed in range(16))


def test_error_takes_everything_behind_the_time_axis() -> None:
    want = np.zeros((2, 2, 2))
    got = np.array([[[3.0, 0], [0, 4]], [[0, 0], [0, 1]]])
    found = replay.error(got, want)
    assert found.rms.tolist() == [2.5, 0.5]
    assert found.largest.tolist() == [4.0, 1.0]
    assert found.size.tolist() == [0.0, 0.0]


def test_error_refuses_to_broadcast() -> None:
    with pytest.raises(ValueError, match=r"shape \(4, 1\), where \(4, 2\) is expected"):
        replay.error(np.zeros((4, 1)), np.zeros((4, 2)))


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_infinitely_wrong(broken: float) -> None:
    got = np.ones(SHAPE)
    got[5, 2] = broken
    ratio = replay.ratios({"w": replay.error(got, np.ones(SHAPE))}, HONEST)["w"]
    assert np.flatnonzero(np.isinf(ratio)).tolist() == [5]
    assert [out.token for out in replay.out_of_band(["w"], {"w": ratio})] == [5]


def test_errors_are_taken_where_both_sides_have_the_tensor() -> None:
    trace = {"b": np.ones(SHAPE), "a": np.ones(SHAPE), "c": np.ones(SHAPE)}
    assert list(replay.errors(trace, {"a": np.ones(SHAPE), "b": np.ones(SHAPE), "d": np.ones(SHAPE)})) == ["a", "b"]


def test_another_honest_run_is_inside_and_ten_times_its_error_is_not() -> None:
    inside = replay.ratios({"w": noise(1e-3, 99)}, HONEST)["w"]
    assert inside.max() < 2
    assert replay.ratios({"w": noise(1e-2, 99)}, HONEST)["w"].max() > replay.LIMIT


def test_one_wrong_token_is_found_at_its_place() -> None:
    got = np.ones(SHAPE)
    got[31] += 0.05
    ratio = replay.ratios({"w": replay.error(got, np.ones(SHAPE))}, HONEST)
    (out,) = replay.out_of_band(["v", "w"], ratio)
    assert (out.tensor, out.token) == ("w", 31)
    assert out.ratio == out.worst > 10


def test_a_token_at_which_all_honest_runs_were_lucky_is_no_trap() -> None:
    for lucky in (1, 7):  # neighbours bridge one, the median many
        band = replay.allowed(np.array([1.0] * 10 + [0.0] * lucky + [1.0] * 10), np.zeros(20 + lucky))
        assert band.tolist() == [1.0] * (20 + lucky)


def test_a_band_of_zero_allows_a_rounding_of_the_last_bit_and_no_more() -> None:
    exact = replay.band([{"emb": replay.error(np.ones(SHAPE), np.ones(SHAPE))}])
    for off, inside in ((2.0**-24, True), (2.0**-20, False)):
        moved = np.ones(SHAPE)
        moved[3, 3] += off
        ratio = replay.ratios({"emb": replay.error(moved, np.ones(SHAPE))}, exact)["emb"]
        assert bool(ratio.max() <= replay.LIMIT) is inside


def test_a_wrong_factor_is_seen_although_no_token_alone_shows_it() -> None:
    want = np.ones((400, 60))
    runs = [replay.error(want + 1e-3 * np.random.default_rng(s).standard_normal(want.shape), want) for s in range(17)]
    honest = replay.band({"y": run} for run in runs[:16])
    assert replay.ratios({"y": runs[16]}, honest)["y"].max() <= replay.LIMIT
    scaled = 1.0004 * want + 1e-3 * np.random.default_rng(99).standard_normal(want.shape)
    found = replay.error(scaled, want)
    assert (found.rms <= replay.LIMIT * honest["y"].rms).all()
    assert replay.ratios({"y": found}, honest)["y"].max() > replay.LIMIT


def test_tensors_without_a_band_have_no_ratio() -> None:
    assert replay.ratios({"w": noise(), "new": noise()}, HONEST).keys() == {"w"}


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=30))
def test_the_smoothed_band_is_never_below_the_band(values: list[float]) -> None:
    band = np.array(values)
    smooth = replay.allowed(band, np.zeros(len(band)))
    assert (smooth >= band).all()
    assert (smooth > 0).all()


def test_reach_is_how_far_one_run_leaves_the_others() -> None:
    runs = [{"w": noise(1e-3, seed)} for seed in range(8)]
    assert 0.5 < replay.reach(runs) < replay.LIMIT
    assert replay.reach([*runs, {"w": noise(1e-1, 9)}]) > 30
    assert np.isnan(replay.reach(runs[:1]))
    assert np.isnan(replay.reach([]))


def test_out_knows_its_place() -> None:
    inner, outer = Out("blocks.11.att.w", 3, 4.0, 5.0), Out("head", 0, 4.0, 5.0)
    assert (inner.layer, inner.short) == (11, "att.w")
    assert (outer.layer, outer.short) == (None, "head")
