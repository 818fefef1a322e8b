import math
import xml.etree.ElementTree as ET
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import plots, svg
from reports.document import Figure
from reports.record import Observation, Record
from tests.reports import sample
from tests.reports.sample import CASE, F32, HOSTILE

NS = "{http://www.w3.org/2000/svg}"


def drawn(figure: Figure | None) -> ET.Element:
    assert figure is not None
    return ET.fromstring(figure.svg)


def words(root: ET.Element) -> str:
    return " ".join(node.text or "" for node in root.iter(f"{NS}text"))


def only(kind: str, suite: str, data: dict[str, Any], subject: str = F32) -> Record:
    return replace(sample.record(), observations=(Observation(suite, CASE, subject, kind, data),))


def test_every_plot_has_axes_with_units_and_is_well_formed() -> None:
    record = sample.record()
    figures = {
        "|error| (logit)": plots.error_by_rank(record, CASE),
        "RMS logit error (logit)": plots.errors_by_step(record, "prose")[0],
        "State error (relative)": plots.errors_by_step(record, "prose")[1],
        "KL (nat)": plots.kl_ladder(record, "prose"),
        "tokens/s, median with interval": plots.throughput(record, "prefill"),
        "ms per token": plots.latency(record, "decode"),
    }
    for axis, figure in figures.items():
        root = drawn(figure)
        assert axis in words(root)
        assert root.get("viewBox")
        assert root.find(f"{NS}title") is not None
        assert root.find(f"{NS}desc") is not None


def test_no_data_no_plot() -> None:
    record = sample.empty()
    assert plots.error_by_rank(record, CASE) is None
    assert plots.errors_by_step(record, CASE) == []
    assert plots.kl_ladder(record, CASE) is None
    assert plots.throughput(record, "decode") is None
    assert plots.latency(record, CASE) is None
    broken = only("samples", "speed", {"what": "decode", "median": "nan", "tokens": 1, "batch": 1})
    assert plots.throughput(broken, "decode") is None


def test_what_a_logarithm_cannot_show_is_said() -> None:
    zero = plots.error_by_rank(only("error_by_rank", "logits", {"rank": [1, 2], "abs_err": [0.0, 0.0]}), CASE)
    assert "zero everywhere" in words(drawn(zero))
    nan = plots.error_by_rank(only("error_by_rank", "logits", {"rank": [1, 2], "abs_err": ["nan", 1e-3]}), CASE)
    assert "(1 not finite)" in words(drawn(nan))


def test_names_are_escaped_and_cut() -> None:
    record = only("error_by_rank", "logits", {"rank": [1, 10], "abs_err": [1e-3, 1e-2]}, HOSTILE)
    root = drawn(plots.error_by_rank(record, CASE))
    assert "<script>alert(1)</script>" in words(root)
    assert "…" in words(root)


def test_both_errors_have_the_band_of_honest_runs() -> None:
    record = sample.record()
    titles = [figure.title for figure in plots.errors_by_step(record, "prose")]
    assert titles == [
        f"{what} by step, prose, {dtype}" for dtype in ("F32", "BF16") for what in ("RMS logit error", "State error")
    ]
    for figure, honest in zip(plots.errors_by_step(record, "prose")[1::2], ("honest@f32", "honest@bf16"), strict=True):
        root = drawn(figure)
        assert f"{honest}: median to largest" in words(root)
        assert len([node for node in root.iter(f"{NS}path") if node.get("class") == "band"]) == 1


def test_a_band_without_a_median_is_its_edge() -> None:
    record = only("band", "stepwise", {"step": [0, 1], "state_step": [0, 1], "rms_max": [1.0, 2.0]}, "honest@f32")
    series = plots._band("honest@f32", record.observations[0].data, "rms")
    assert series is not None
    assert series.name == "honest@f32: largest"
    assert [(low, high) for _, low, high in series.band] == [(1.0, 1.0), (2.0, 2.0)]


def test_a_subject_without_state_errors_has_no_state_plot() -> None:
    record = only("series", "stepwise", {"step": [0, 1], "rms": [1.0, 2.0], "max": [], "bias": [], "state": []})
    assert len(plots.errors_by_step(record, CASE)) == 1


def test_whiskers_fall_back_to_the_median() -> None:
    data = {"what": "decode", "tokens": 1, "batch": 2, "seconds": [1], "median": 50.0, "low": None, "high": None}
    figure = plots.throughput(only("samples", "speed", data), "decode")
    assert "1 tokens, batch 2" in words(drawn(figure))
    assert "50 (" in words(drawn(figure))


def test_latency_over_few_positions_is_linear() -> None:
    data = {"position": [0, 5, 10], "ms": [1.0, 1.1, 1.2]}
    assert "10" in words(drawn(plots.latency(only("latency", "speed", data), CASE)))


def test_longer_bars_are_faster() -> None:
    root = drawn(plots.throughput(sample.record(), "prefill"))
    widths = [float(node.get("width", "0")) for node in root.iter(f"{NS}rect")]
    assert len(widths) == 4
    assert widths[1] > widths[0] > widths[3] > widths[2]


@given(st.lists(st.floats(1e-300, 1e300), min_size=1, max_size=5))
def test_log_axis_holds_its_values_in_few_ticks(values: list[float]) -> None:
    axis = svg.log_axis("x", values)
    assert axis.low < axis.high
    assert 2 <= len(axis.ticks) <= 7
    assert all(0 <= axis.share(value) <= 1 for value in values)
    assert axis.share(axis.low) == 0


@given(st.lists(st.floats(0, 1e9), min_size=1, max_size=5))
def test_linear_axis_begins_at_zero(values: list[float]) -> None:
    axis = svg.linear_axis("x", values)
    assert axis.low == 0
    assert axis.high >= max(values) * (1 - 1e-9)
    assert 2 <= len(axis.ticks) <= 8


def test_axes_of_nothing() -> None:
    assert svg.log_axis("x", [0.0, math.nan]).ticks
    assert svg.linear_axis("x", [math.nan], from_zero=False).ticks


def test_thinning_keeps_the_worst() -> None:
    points = [(float(n), 1.0) for n in range(5000)]
    points[1234] = (1234.0, 9.0)
    kept = svg.thin(points)
    assert len(kept) == svg.MOST_POINTS
    assert (1234.0, 9.0) in kept
    assert svg.thin(points[:10]) == points[:10]


def test_lists_of_unequal_length_are_an_error() -> None:
    with pytest.raises(ValueError, match="zip"):
        plots.error_by_rank(only("error_by_rank", "logits", {"rank": [1], "abs_err": [1, 2]}), CASE)
