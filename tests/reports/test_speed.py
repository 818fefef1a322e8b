"""Section Speed: what its tables and sentences say, from records made by hand."""

from dataclasses import replace
from typing import Any

import pytest

from reports import speed, timings
from reports.document import Bullets, Figure, Table
from reports.record import Observation, Record
from reports.text import plain
from tests.reports import sample
from tests.reports.sample import BF16, F32


def with_data(kind: str, subject: str = "", **changes: Any) -> Record:
    """The sample with other data in the observations of a kind."""
    record = sample.record()

    def changed(seen: Observation) -> Observation:
        mine = seen.suite == "speed" and seen.kind == kind and subject in ("", seen.subject)
        return replace(seen, data=seen.data | changes) if mine else seen

    return replace(record, observations=tuple(map(changed, record.observations)))


def said(record: Record) -> str:
    return "\n".join(timings.sentences(record))


def tables(record: Record) -> dict[str, list[list[str]]]:
    found = [block for block in speed.speed(record) if isinstance(block, Table)]
    return {block.caption: [[plain(cell) for cell in row] for row in block.rows] for block in found}


def test_everything_that_was_timed_is_there() -> None:
    blocks = speed.speed(sample.record())
    assert isinstance(blocks[0], Bullets)
    assert sum(isinstance(block, Figure) for block in blocks) == 3
    found = tables(sample.record())
    assert list(found) == [
        *("Speed", "Speed ratios", "Opening and memory", "Time of single tokens"),
        "The machine's limits, median and range of the rounds",
        "Against the baseline of 2026-01-01T00:00:00+00:00",
    ]
    assert [row[8] for row in found["Speed"]] == ["—", "—", "50.0% (memory)", "—", "—", "81.5% (memory)"]
    assert found["Speed ratios"][1][4:] == ["itself (control)", "1.002 ×", "0.991–1.013", "equivalent"]
    assert found["Opening and memory"][0][1:] == [
        *("1.31 s", "0.420 s", "+600 MiB", "+80 MiB", "—", "—", "2.32 MiB", "0.210 ms"),
    ]
    assert found["Time of single tokens"][0][4:] == ["11.2", "11.9", "14", "576", "0.310 J"]
    (limits,) = (rows for caption, rows in found.items() if "limits" in caption)
    assert limits == [["decode", "64", "1", "cpu", "39.5 (38–41)", "61 (60–62)", "F32 450 (440–460)"]]


def test_the_limit_is_a_line_across_the_bar() -> None:
    figures = [block for block in speed.speed(sample.record()) if isinstance(block, Figure)]
    decode = next(figure for figure in figures if figure.title == "Decode speed")
    assert decode.svg.count('class="limit"') == 2
    assert "dashed: the machine" in decode.svg
    prefill = next(figure for figure in figures if figure.title == "Prefill speed")
    assert 'class="limit"' not in prefill.svg
    far = speed.speed(with_data("samples", fraction=0.02, bound="memory"))
    assert not any('class="limit"' in block.svg for block in far if isinstance(block, Figure))


def test_a_control_that_holds_is_told() -> None:
    assert f"Control: {F32}, timed twice in the same rounds, reads equivalent to itself in 1 of 1 cells." in said(
        sample.record()
    )


def test_a_noisy_machine_is_told() -> None:
    text = said(with_data("control", verdict="inconclusive", low=0.7, high=1.4))
    assert "Too noisy" in text
    assert "in 1 of 1 cells (decode 64 x 1: 1.002x (0.700–1.400)); verdicts there are inconclusive." in text
    assert "Control:" not in text


def test_whoever_stands_in_for_a_first_subject_that_broke_is_named() -> None:
    record = sample.record()
    (control,) = (seen for seen in record.observations if seen.kind == "control")
    other = replace(control, subject=BF16, data=control.data | {"what": "prefill"})
    text = said(replace(record, observations=(*record.observations, other)))
    assert f"Control: {F32}, timed twice in the same rounds, reads equivalent to itself in 1 of 1 cells." in text
    assert f"Control: {BF16}, timed twice in the same rounds, reads equivalent to itself in 1 of 1 cells." in text
    ratios = [[plain(cell) for cell in row][5] for row in timings.terminal(with_data("ratio", versus=BF16))[1:]]
    assert [f"of {BF16}" in ratio for ratio in ratios if ratio] == [True] * len([ratio for ratio in ratios if ratio])


def test_nobody_is_faster_than_himself() -> None:
    rows = tables(with_data("control", verdict="faster"))["Speed ratios"]
    assert [row[-1] for row in rows] == ["faster", "too noisy (faster)"]


def test_who_else_was_busy_is_named() -> None:
    text = said(sample.record())
    assert "Others kept 0.40 threads busy on average while cells were timed, the busiest: cc1." in text
    assert "gave 0.20 threads' worth of time to other machines" in text
    quiet = said(with_data("noise", foreign=0.0, stolen=0.0, busiest=[]))
    assert "Nobody else was busy while cells were timed." in quiet
    assert "hypervisor" not in quiet
    assert "none of them visible from here" in said(with_data("noise", busiest=[]))


@pytest.mark.parametrize(("cost", "words"), [("constant", "constant, within 3%"), ("grows", "grows")])
def test_cost_by_position_is_a_sentence(cost: str, words: str) -> None:
    line = f"{F32}: cost of a token from position 1 to 10,000: +0.4% (-1.0% to +1.2%): {words}."
    assert line in said(with_data("latency", cost=cost))


def test_what_cannot_be_true_is_told() -> None:
    record = with_data("samples", BF16, fraction=1.3, bound="memory", invalid=True)
    assert f"Invalid: {BF16}, decode 64 x 1: 130.0% of what the machine can do" in said(record)
    assert "130.0% (memory): invalid" in [row[8] for row in tables(record)["Speed"]]


def test_why_there_is_no_limit_is_told_once() -> None:
    text = said(with_data("samples", no_limit="the weights fit into the cache", fraction=None))
    assert text.count("the weights fit into the cache") == 1
    assert f"{F32} (prefill), {F32} (decode), {BF16} (prefill) and {BF16} (decode)" in text


def test_who_shares_no_batch_is_told_where_batches_were_timed() -> None:
    alone = with_data("opening", single_rows=True)
    assert "its single rows" not in said(alone)
    many = replace(alone, observations=tuple(
        replace(seen, data=seen.data | {"batch": 4}) if seen.kind == "samples" and seen.subject == BF16 else seen
        for seen in alone.observations
    ))  # fmt: skip
    assert f"{F32} takes the rows of a batch one after another, if at all: only single rows are timed." in said(many)


def test_other_processes_and_energy_are_told() -> None:
    text = said(sample.record())
    assert f"{F32} answers from another process: an empty call takes 0.210 ms, part of every figure." in text
    assert "Energy: all processor packages (RAPL)." in text


def test_a_verdict_that_the_control_took_is_shown_beside() -> None:
    record = with_data("ratio", verdict="inconclusive", without_control="faster")
    assert tables(record)["Speed ratios"][0][-1] == "inconclusive (without the control: faster)"
    record = with_data("ratio", verdict="inconclusive", without_control="inconclusive")
    assert tables(record)["Speed ratios"][0][-1] == "inconclusive"


def test_history_says_by_what_it_compared_or_why_not() -> None:
    (rows,) = (rows for caption, rows in tables(sample.record()).items() if "baseline" in caption)
    assert rows[0][4:] == ["0.910 ×", "0.890–0.930", "slower", "share of the limit"]
    assert rows[1][4:] == ["—", "—", "incomparable", "another torch: 2.0 then, 2.13.0 now"]


def test_the_terminal_shows_a_line_a_cell() -> None:
    rows = [list(map(plain, row)) for row in timings.terminal(sample.record())]
    assert rows[0] == ["", "", "tokens/s", "interval", "of the limit", "ratio", "verdict"]
    assert ["decode 64 x 1", BF16, "143", "139–149", "81.5% (memory)", "1.630x", "faster"] in rows
    assert len(rows) == 7


def test_without_timings_there_is_no_section() -> None:
    record = replace(sample.record(), observations=())
    assert speed.speed(record) == ()
    assert said(record) == ""
    assert len(timings.terminal(record)) == 1


def test_history_is_told_cell_by_cell_and_reasons_once() -> None:
    text = said(sample.record())
    assert f"Since the baseline: {F32}, decode 64 x 1: 0.910x (0.890–0.930), slower." in text
    assert "Incomparable with the baseline, 1 of 2 cells: another torch: 2.0 then, 2.13.0 now." in text
