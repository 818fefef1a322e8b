"""Honest runs kept between runs: the same ones come back, and nothing else does."""

from pathlib import Path

import numpy as np
import pytest
import torch

from backends.checkpoint import open_checkpoint
from harness import envelope, shelf
from harness.measures import layers
from harness.measures.base import Spread
from harness.replay import Error
from harness.shelf import Shelf
from harness.trials import selection
from tests.backends.random_model import random_rwkv7
from tests.harness.conftest import Command
from tests.harness.stub import small_suites

TYPED = (
    "validate",
    "--model",
    "conformance",
    "--backend",
    "torch-cpu-f32",
    "--suite",
    "logits,layers",
    "--no-diagnosis",
)


def opened_runs(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is measured, and not taken from the shelf."""
    calls: list[str] = []
    spreads, bands = envelope.measure_envelope, layers.bands

    def measured(*arguments: object) -> object:
        calls.append("spreads")
        return spreads(*arguments)  # type: ignore[arg-type]

    def taken(*arguments: object) -> object:
        calls.append("bands")
        return bands(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(envelope, "measure_envelope", measured)
    monkeypatch.setattr(layers, "bands", taken)
    return calls


def test_the_second_run_takes_none_and_judges_alike(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    selection()  # what power puts to its subjects is no part of this, and is read from the whole suites
    small_suites(monkeypatch)
    calls = opened_runs(monkeypatch)
    first = command(*TYPED)
    assert first.code == 0, first.err
    taken = list(calls)
    assert "spreads" in taken
    assert "bands" in taken
    second = command(*TYPED)
    assert calls == taken
    assert first.code == second.code == 0

    def bounds(result: object) -> list[tuple[str, str, float | None, float | None]]:
        return [(v.criterion, v.case, v.value, v.bound) for v in result.record.verdicts]  # type: ignore[attr-defined]

    assert bounds(first) == bounds(second)
    command(*TYPED, "--fresh")
    assert calls == taken * 2


@pytest.mark.parametrize("what", ["", "{", "[]", '{"spreads": {"rms": []}, "evidence": []}'])
def test_a_damaged_file_is_measured_again(tmp_path: Path, what: str) -> None:
    found = Shelf(tmp_path, "x")
    key = found.key(tokens=np.arange(3))
    found.keep_spreads(key, ({"rms": Spread(1.0, float("inf"))}, [("band", {"a": [1]})]))
    assert found.spreads(key) == ({"rms": Spread(1.0, float("inf"))}, [("band", {"a": [1]})])
    file = next((tmp_path / "cache").glob("*.json"))
    file.write_text(what)
    assert found.spreads(key) is None
    assert found.arrays(key) is None
    file.with_suffix(".npz").write_bytes(what.encode())
    assert found.arrays(key) is None


def test_everything_that_decides_is_in_the_key(tmp_path: Path) -> None:
    one, other = Shelf(tmp_path, "x"), Shelf(tmp_path, "y")
    keys = {one.key(tokens=np.arange(3)), one.key(tokens=np.arange(4)), other.key(tokens=np.arange(3))}
    assert len(keys) == 3
    assert one.key(tokens=np.arange(3)) == Shelf(tmp_path / "elsewhere", "x").key(tokens=np.arange(3))


def test_a_folder_that_cannot_be_written_costs_only_time(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("in the way")
    found = Shelf(tmp_path, "x")
    found.keep_spreads("k", ({}, []))
    found.keep_arrays("k", {"a": np.zeros(1)})
    assert found.spreads("k") is None
    assert found.arrays("k") is None


def test_one_changed_weight_is_another_checkpoint(tmp_path: Path) -> None:
    tensors = random_rwkv7(C=64, N=32, L=2, V=50)
    contents = []
    for change in (0.0, 1e-3):
        tensors["blocks.1.ffn.value.weight"][3, 5] += change
        torch.save(tensors, tmp_path / "m.pth")
        with open_checkpoint(str(tmp_path / "m.pth")) as weights:
            contents.append(shelf.shelf(tmp_path, weights).content)
    assert contents[0] != contents[1]
    with open_checkpoint("conformance?seed=1") as one, open_checkpoint("conformance") as other:
        assert shelf.shelf(tmp_path, one).content != shelf.shelf(tmp_path, other).content


def test_bands_come_back_bit_by_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)

    def errors() -> dict[str, Error]:
        names = ("emb", "blocks.0.att.w")
        return {n: Error(rng.random(5), rng.random(5), rng.random(5), float(rng.random()), 0.5) for n in names}

    bands = layers.Bands(errors(), errors(), 2.5, 16)
    found = Shelf(tmp_path, "x")
    found.keep_arrays("k", layers.arrays_of(bands))
    arrays = found.arrays("k")
    assert arrays is not None
    again = layers.bands_of(arrays)
    assert (again.reach, again.runs) == (2.5, 16)
    for part in ("contributed", "total"):
        for name, error in getattr(bands, part).items():
            back: Error = getattr(again, part)[name]
            np.testing.assert_array_equal([error.rms, error.largest, error.size], [back.rms, back.largest, back.size])
            assert (error.factor, error.share) == (back.factor, back.share)
