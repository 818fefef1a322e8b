"""Work in a thread of its own: order, errors, and an end."""

import threading
import time
from collections.abc import Iterator

import pytest

from harness import envelope
from harness.ahead import ahead
from reports.record import Record
from tests.harness.stub import measured, small_suites


def counted(n: int, seen: list[int], error: BaseException | None = None) -> Iterator[int]:
    for number in range(n):
        seen.append(number)
        yield number
    if error is not None:
        raise error


def test_items_come_in_order_from_another_thread() -> None:
    names: list[str] = []

    def items() -> Iterator[int]:
        for number in range(5):
            names.append(threading.current_thread().name)
            yield number

    with ahead(items()) as found:
        assert list(found) == [0, 1, 2, 3, 4]
    assert threading.current_thread().name not in names


def test_it_does_not_wait_to_be_read() -> None:
    seen: list[int] = []
    with ahead(counted(3, seen)) as found:
        until = time.monotonic() + 10
        while len(seen) < 3 and time.monotonic() < until:
            time.sleep(0.001)
        assert seen == [0, 1, 2]
        assert list(found) == [0, 1, 2]


def test_two_run_at_once() -> None:
    meeting = threading.Barrier(2, timeout=10)  # breaks where one waits for the other to end

    def items() -> Iterator[int]:
        yield meeting.wait()

    with ahead(items()) as one, ahead(items()) as other:
        assert sorted([*one, *other]) == [0, 1]


@pytest.mark.parametrize("error", [ValueError("broken"), KeyboardInterrupt()])
def test_what_it_raises_comes_behind_the_items_before(error: BaseException) -> None:
    with ahead(counted(2, [], error)) as found:
        assert [next(found), next(found)] == [0, 1]
        with pytest.raises(type(error)):
            next(found)


def test_leaving_ends_it_behind_the_item_at_hand() -> None:
    seen: list[int] = []
    going = threading.Event()

    def items() -> Iterator[int]:
        for number in range(1000):
            seen.append(number)
            going.set()
            time.sleep(0.01)
            yield number

    with ahead(items()):
        going.wait(10)
    at_end = len(seen)
    time.sleep(0.05)
    assert len(seen) == at_end < 1000


def test_number_formats_at_once_come_to_the_same_as_one_after_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    small_suites(monkeypatch)
    one, two = (
        measured("torch-cpu-f32", "honest:3@bf16", suites=("logits", "stepwise"), diagnosis=False, threads=threads)
        for threads in (1, 0)
    )
    assert [s.id for s in one.subjects] == [s.id for s in two.subjects]
    assert one.measurements == two.measurements
    assert one.observations == two.observations


@pytest.mark.parametrize("threads", [0, 1])
def test_what_breaks_in_honest_runs_ends_the_run(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    small_suites(monkeypatch)
    kept: list[Record] = []

    def broken(*_: object) -> None:
        raise MemoryError("no room for honest runs")

    monkeypatch.setattr(envelope, "measure_envelope", broken)
    with pytest.raises(MemoryError, match="no room"):
        measured("torch-cpu-f32", "honest:3@bf16", suites=("logits",), keep=kept.append, threads=threads)
    assert kept[-1].status == "crashed"
