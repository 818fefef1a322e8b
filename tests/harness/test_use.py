"""The candidates at work on a trained checkpoint, shown beside what is judged."""

import argparse
from typing import Any

import pytest

from backends.weights import Weights
from harness import cli, options, use
from reports.record import Record
from reports.render import markdown
from tests.harness import fakes
from tests.harness.stub import measured, small_suites


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    small_suites(monkeypatch, most=1)
    monkeypatch.setattr(use, "LENGTH", 24)


def seen(record: Record) -> dict[str, dict[str, Any]]:
    return {o.subject: dict(o.data) for o in record.observations if o.kind == use.KIND}


def refuses_another(weights: Weights) -> Any:
    if weights.facts.name != "conformance":
        raise RuntimeError("this port has one model inside")
    return fakes.Broken(weights, lambda out: out)


def test_what_each_subject_writes_and_predicts() -> None:
    with fakes.registered(inside=refuses_another):
        record = measured("torch-cpu-f32", "fault:ln-out-missing", "inside", suites=("logits",), use="demo")
    found = seen(record)
    assert list(found) == ["reference-f64", "torch-cpu-f32", "fault:ln-out-missing", "inside"]
    truth, right, wrong = (found[name] for name in ("reference-f64", "torch-cpu-f32", "fault:ln-out-missing"))
    assert {data["model"] for data in found.values()} == {"demo"}
    assert truth["written"] == "if isinstance(item, type"
    assert right["written"] == truth["written"]
    assert (right["same"], right["tokens"], truth["kl"]) == (24, 24, 0.0)
    assert right["kl"] < 1e-9
    assert right["bits_per_byte"] == pytest.approx(truth["bits_per_byte"], rel=1e-6)
    assert truth["bits_per_byte"] < 1.9  # of Python sources; five bytes of context reach 1.74
    assert wrong["kl"] > 1e-3
    assert wrong["same"] < 24
    assert found["inside"] == {"model": "demo", "error": "RuntimeError: this port has one model inside"}
    assert record.status == "complete"
    assert not any(v.suite == use.SUITE for v in record.verdicts)


def test_the_report_shows_it() -> None:
    with fakes.registered(inside=refuses_another):
        record = measured("torch-cpu-f32", "inside", suites=("logits",), use="demo")
    text = markdown(record)
    part = text.partition("## In use")[2].partition("\n## ")[0]
    assert "shown, not judged" in part
    assert "24 of 24" in part
    assert "this port has one model inside" in part
    assert part.count("```python") == 1  # both write the same, so it stands there once
    assert "Written greedily by reference-f64 and torch-cpu-f32" in part
    assert "## In use" not in markdown(measured("torch-cpu-f32", suites=("logits",)))


@pytest.mark.parametrize(
    ("typed", "shown"),
    [
        ([], "demo"),
        (["--use", "none"], ""),
        (["--use", "my.pth", "--suite", "logits"], "my.pth"),
        (["--suite", "logits"], ""),
        (["--model", "my.pth"], ""),
    ],
)
def test_what_is_shown_by_default(typed: list[str], shown: str) -> None:
    asked: argparse.Namespace = options.parser().parse_args(["validate", *typed])
    assert cli._job(asked).use == shown
