"""Counting against the published sizes, and rates against a probe that says what it is told."""

from math import prod
from typing import Any

import pytest

from backends import layouts
from backends.base import Ids, ModelFacts
from backends.errors import BackendError
from harness.cells import Cell
from harness.limits import BYTES, Limits, Rates, Work, fraction, work_of
from tests.harness.clock import Clock, of_kind, rows
from tests.harness.stub import Stub

SIZES = {
    "0.1b": {"C": 768, "F": 3072, "H": 12, "L": 12, "Rw": 64, "Ra": 64, "Rv": 32, "Rg": 128},
    "0.4b": {"C": 1024, "F": 4096, "H": 16, "L": 24, "Rw": 64, "Ra": 64, "Rv": 32, "Rg": 128},
}
TOKEN, PROMPT = Cell("decode", 1, 1), Cell("prefill", 512, 1)


def counted(name: str) -> tuple[Work, int]:
    sizes = {**SIZES[name], "V": 65536, "N": 64, "Rv0": SIZES[name]["Rv"]}
    shapes = {n: layouts.canonical(letters, sizes) for n, letters, _ in layouts.shapes("7", sizes["L"])}
    facts = ModelFacts(name, "7", "", 65536, sizes["C"], sizes["L"], sizes["H"], 64, sizes["F"], 0)
    return work_of(shapes, facts), sum(map(prod, shapes.values()))


@pytest.mark.parametrize(
    ("name", "dtype", "megabytes"),
    [("0.1b", "f32", 563), ("0.1b", "bf16", 281), ("0.4b", "f32", 1535), ("0.4b", "bf16", 767)],
)
def test_bytes_of_a_token_are_the_published_ones(name: str, dtype: str, megabytes: int) -> None:
    work, parameters = counted(name)
    assert work.weights * BYTES[dtype] / 1e6 == pytest.approx(megabytes, rel=0.002)
    assert work.weights == parameters - 65536 * SIZES[name]["C"]  # the table is not read


@pytest.mark.parametrize(("name", "megaflop"), [("0.1b", 180.6), ("0.4b", 632)])
def test_operations_of_a_token_are_the_published_ones(name: str, megaflop: float) -> None:
    work, _ = counted(name)
    assert 2 * work.products / 1e6 == pytest.approx(megaflop, rel=0.002)
    C, gate = SIZES[name]["C"], SIZES[name]["Rg"]
    assert work.late == 10 * C * C + 2 * gate * C  # receptance, output, gate, and the two of the channel mix
    assert work.operations(PROMPT) == 512 * 2 * (work.products - work.late) + 2 * (work.late + work.head)
    assert work.operations(TOKEN) == 2 * (work.products + work.head)


@pytest.mark.parametrize(("name", "megabytes"), [("0.1b", 2.43), ("0.4b", 6.49)])
def test_the_state_is_of_the_published_size(name: str, megabytes: float) -> None:
    assert counted(name)[0].state / 1e6 == pytest.approx(megabytes, rel=0.005)


def test_the_state_of_rwkv_4_is_five_vectors() -> None:
    facts = ModelFacts("old", "4", "", 10, 8, 2, 0, 0, 32, 0)
    assert work_of({}, facts).state == 4 * 2 * 5 * 8


def test_rows_share_the_weights_and_have_a_state_each() -> None:
    work = Work(weights=1000, head=100, products=800, state=40)
    assert work.bytes(Cell("decode", 1, 1), "f32") == 4000 + 80
    assert work.bytes(Cell("decode", 10, 4), "bf16") == 10 * (2000 + 320)
    assert work.bytes(Cell("prefill", 10, 4), "f32") == 4000 + 320  # once for the prompt
    assert work.operations(Cell("decode", 10, 4)) == 2 * 4 * 10 * 900
    assert work.operations(Cell("prefill", 10, 4)) == 2 * 4 * (10 * 800 + 100)
    assert work.bytes(TOKEN, "f32", spared=1500) == 2500 + 80
    assert work.bytes(TOKEN, "f32", spared=9999) == 80
    assert work.bytes(Cell("decode", 2, 2), "f32", spared=1500) == 8000 - 1500 + 2 * 160  # of the whole sample
    assert work.operations(Cell("prefill", 10, 4), spared=600) == 2 * 4 * (10 * 800 + 100) - 600
    assert work.operations(Cell("prefill", 10, 4), spared=99999) == 0
    assert work.operations(Cell("decode", 10, 4), spared=600) == 2 * 4 * 10 * 900 - 600


def test_the_longer_of_the_two_times_binds() -> None:
    work = Work(weights=1000, head=100, products=800, state=0)
    cell = Cell("decode", 1, 1)
    assert Rates(4000.0, {"f32": 1e9}).seconds(work, cell, "f32") == (1.0, "memory")
    assert Rates(1e9, {"f32": 900.0}).seconds(work, cell, "f32") == (2.0, "arithmetic")


def test_a_share_is_taken_round_by_round() -> None:
    """A machine that doubles its speed in the middle: every round is held against its own limit."""
    data = fraction([1.0] * 10 + [0.5] * 10, [2.0] * 10 + [1.0] * 10)
    assert (data["fraction"], data["fraction_low"], data["fraction_high"]) == (0.5, 0.5, 0.5)
    assert not data["invalid"]
    assert fraction([1.06] * 9, [1.0] * 9)["invalid"]
    assert not fraction([1.04] * 9, [1.0] * 9)["invalid"]


class Told:
    """A probe that counts who asks."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def read(self) -> float:
        return 10.0

    def copy(self) -> float:
        return 20.0

    def gemm(self, dtype: str) -> float:
        self.asked.append(dtype)
        return 30.0


def test_a_device_is_probed_once_opened_and_asked_for_its_formats() -> None:
    told, opened = Told(), []

    def open_probe(device: str) -> Told:
        opened.append(device)
        return told

    limits = Limits(Work(1, 1, 1, 1), 0, open_probe)  # type: ignore[arg-type]
    turn = limits.turn("cpu", ("f32", "bf16"))
    assert turn is not None
    assert turn() == turn() == Rates(10.0, {"f32": 30.0, "bf16": 30.0}, 20.0)
    assert opened == ["cpu"]
    assert told.asked == ["f32", "bf16"] * 3  # once to try


def test_why_a_device_has_no_probe_is_kept() -> None:
    asked = []

    def open_probe(device: str) -> Told:
        asked.append(device)
        raise BackendError("there is none")

    limits = Limits(Work(1, 1, 1, 1), 0, open_probe)  # type: ignore[arg-type]
    assert limits.turn("npu", ("f32",)) is None
    assert limits.turn("npu", ("f32",)) is None
    assert asked == ["npu"]
    assert limits.missing == {"npu": "there is none"}


def test_a_device_that_cannot_multiply_in_a_format_has_no_limits() -> None:
    told = Told()

    def broken(dtype: str) -> float:
        raise BackendError(f"torch cannot gemm {dtype} on cpu.")

    told.gemm = broken  # type: ignore[method-assign]
    limits = Limits(Work(1, 1, 1, 1), 0, lambda device: told)  # type: ignore[arg-type, return-value]
    assert limits.turn("cpu", ("f16",)) is None
    assert limits.probe("cpu") is None
    assert limits.missing == {"cpu": "torch cannot gemm f16 on cpu."}


# ---- figures of a race --------------------------------------------------------------------------

WORK = Work(weights=1000, head=100, products=800, state=40)


class FakeProbe:
    """Reads, copies and multiplies at a given rate, and takes its time for that."""

    def __init__(self, clock: Clock, read: float, gemm: float = 1e12) -> None:
        self.clock, self.rates = clock, (read, gemm)

    def read(self) -> float:
        self.clock.order.append("probe")
        self.clock.now += 1.0
        return self.rates[0]

    def gemm(self, dtype: str) -> float:
        assert dtype == "f32"
        return self.rates[1]

    def copy(self) -> float:
        return 7.0


def limits_of(clock: Clock, read: float, gemm: float = 1e12, cache: int = 0) -> Limits:
    return Limits(WORK, cache, lambda device: FakeProbe(clock, read, gemm))  # type: ignore[arg-type, return-value]


def test_a_figure_stands_as_a_share_of_the_limit_probed_in_the_same_rounds(clock: Clock) -> None:
    limits = limits_of(clock, read=8e6)  # 4080 bytes a token: 0.51 ms, where 1 ms is taken
    measurements, observations = rows({"a": clock.session("a", 1e-3)}, limits, decode=32, prefill=[], probe=True)
    (data,) = of_kind(observations, "samples")
    assert data["fraction"] == pytest.approx(0.51, rel=0.01)
    assert data["fraction_low"] <= data["fraction"] <= data["fraction_high"]
    assert (data["bound"], data["invalid"]) == ("memory", False)
    assert len(data["limit_seconds"]) == len(data["seconds"]) == clock.order.count("probe") - 1
    (shown,) = of_kind(observations, "limits")
    assert (shown["device"], set(shown["read"]), set(shown["copy"])) == ("cpu", {8e6}, {7.0})
    assert next(m.value for m in measurements if m.name == "decode_T32_B1_of_limit") == data["fraction"]


def test_prompts_are_held_against_arithmetic(clock: Clock) -> None:
    limits = limits_of(clock, read=1e12, gemm=1.6e6)  # 1600 operations a token, 200 for the head: 32.125 ms
    _, observations = rows({"a": clock.session("a", 1e-3)}, limits, decode=0, prefill=[32], probe=True)
    (data,) = of_kind(observations, "samples")
    assert data["bound"] == "arithmetic"
    assert data["fraction"] == pytest.approx(32.125 / 32, rel=0.01)


def test_more_than_the_machine_can_do_is_invalid_unless_skipped_bytes_explain_it(clock: Clock) -> None:
    sessions = {"base": clock.session("base", 1e-3), "b": clock.session("b", 0.25e-3)}
    limits = limits_of(clock, read=8e6)
    _, observations = rows(sessions, limits, decode=32, prefill=[], probe=True)
    by_name = {o.subject: o.data for o in observations if o.kind == "samples"}
    assert (by_name["base"]["invalid"], by_name["b"]["invalid"]) == (False, True)
    assert [data["verdict"] for data in of_kind(observations, "ratio")] == ["invalid"]
    sessions["b"].skipped_bytes = 123_456  # before the bench: nothing of it counts
    _, observations = rows(sessions, limits, decode=32, prefill=[], probe=True)
    assert any(data["invalid"] for data in of_kind(observations, "samples"))
    steady = sessions["b"].step

    def step(tokens: Ids) -> None:
        steady(tokens)
        sessions["b"].skipped_bytes += 2400

    sessions["b"].step = step
    _, observations = rows(sessions, limits, decode=32, prefill=[], probe=True)
    assert not any(data["invalid"] for data in of_kind(observations, "samples"))
    assert [data["verdict"] for data in of_kind(observations, "ratio")] == ["faster"]


def test_operations_left_out_are_those_of_the_samples_themselves(clock: Clock) -> None:
    """A program that leaves out half of what 32 tokens ask, and nothing of 16; warm-ups are nobody's business."""
    session = clock.session("a", 1e-3)
    steady = session.step

    def step(tokens: Ids) -> None:
        steady(tokens)
        session.skipped_operations += 25_600 if tokens.size == 32 else 0

    session.step = step
    limits = limits_of(clock, read=1e12, gemm=1.6e6)
    _, observations = rows({"a": session}, limits, decode=4, prefill=[32, 16], probe=True)
    shortest = {(d["what"], d["tokens"]): d["limit_seconds"][0] for d in of_kind(observations, "samples")}
    whole = {(d["what"], d["tokens"]): d["whole_seconds"][0] for d in of_kind(observations, "samples")}
    assert whole == pytest.approx(shortest | {("prefill", 32): 32.125e-3})  # what leaving out is worth, in a history
    assert shortest == pytest.approx({("prefill", 32): 16.125e-3, ("prefill", 16): 16.125e-3, ("decode", 4): 4.5e-3})


def test_it_is_said_why_there_is_no_limit(clock: Clock) -> None:
    def words(limits: Limits, session: Stub) -> str:
        _, observations = rows({"a": session}, limits, decode=8, prefill=[], probe=True)
        (data,) = of_kind(observations, "samples")
        assert "fraction" not in data
        return str(data["no_limit"])

    assert "cache of 1 MiB" in words(limits_of(clock, 8e6, cache=1 << 20), clock.session("a", 1e-3))
    quantised = clock.session("a", 1e-3)
    quantised.own_file = "it reads a file of its own"
    assert words(limits_of(clock, 8e6), quantised) == "it reads a file of its own"
    elsewhere = clock.session("a", 1e-3, device="npu")
    assert words(Limits(WORK, 0, missing), elsewhere) == "no probe for npu"


def missing(device: str) -> Any:
    raise BackendError(f"no probe for {device}")


def test_without_being_asked_nothing_is_probed(clock: Clock) -> None:
    _, observations = rows({"a": clock.session("a", 1e-3)}, limits_of(clock, 8e6))
    assert "probe" not in clock.order
    assert not of_kind(observations, "limits")
