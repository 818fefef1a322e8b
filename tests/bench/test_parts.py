"""How long the parts take: `pytest tests/bench --benchmark-only`; docs/benchmarking.md says how to keep and compare.

No test asserts a time. Without `--benchmark-only` each part runs once, so that it is known to work.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from backends import registry
from backends.base import Session, Want
from backends.checkpoint import open_checkpoint
from backends.tokenizer import open_tokenizer
from backends.weights import Weights
from harness import judge, metrics
from harness.suite import prompts
from reports import record
from reports.render import html, markdown
from tests.harness.stub import measured, small_suites

Part = Callable[..., Any]
"""Times a function of no arguments; returns what it returned."""

NOTHING_BY_THEMSELVES = ("fault", "process", "recorded")
"""Backends that need an argument."""

CPU = sorted(
    name
    for name, row in registry.table().items()
    if "cpu" in row.devices and row.requires == ("torch",) and name not in NOTHING_BY_THEMSELVES
)
"""Our own: other engines open files, and their speed is the bench's business."""


@pytest.fixture
def part(benchmark: Any, request: pytest.FixtureRequest) -> Part:
    """pytest-benchmark, which finds rounds that fill a second; one call where nobody asked for times."""
    if request.config.getoption("benchmark_only"):
        return cast(Part, benchmark)
    return lambda call: benchmark.pedantic(call, rounds=1)


@pytest.fixture(scope="module")
def weights() -> Weights:
    return open_checkpoint("conformance")


@pytest.fixture(scope="module")
def made() -> record.Record:
    """A record with every kind of evidence but speed."""
    with pytest.MonkeyPatch.context() as patch:
        small_suites(patch)
        suites = ("tokenization", "logits", "distribution", "stepwise", "consistency", "generation", "state")
        return measured("torch-cpu-f32", suites=suites)


@pytest.mark.parametrize("name", ["world", "pyrwkv", "bytes"])
def test_tokenizer(part: Part, name: str) -> None:
    tokenizer, text = open_tokenizer(name), prompts()["long"].text
    assert tokenizer.decode_bytes(part(lambda: tokenizer.encode(text))) == text.encode()


def test_open_made_checkpoint(part: Part) -> None:
    assert part(lambda: open_checkpoint("conformance")).facts.vocab_size == 256


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_open_checkpoint_and_read_it(part: Part, suffix: str, weights: Weights, tmp_path: Path) -> None:
    file = tmp_path / f"model{suffix}"
    tensors = {name: weights.get(name).contiguous() for name in weights}
    if suffix == ".pth":
        torch.save(tensors, file)
    else:
        from safetensors.torch import save_file

        save_file(tensors, file)

    def read() -> int:
        with open_checkpoint(str(file)) as opened:
            return sum(opened.get(name).numel() for name in opened)

    assert part(read) == sum(tensor.numel() for tensor in tensors.values())


@pytest.fixture(params=[*CPU, "torch-compile@bf16"])
def session(request: pytest.FixtureRequest, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> Session:
    if "TORCH_COMPILE_DISABLE" not in os.environ:  # set it to 0 to time what users run
        monkeypatch.setenv("TORCH_COMPILE_DISABLE", "1")  # compiling takes longer than everything else here
    return registry.open_session(registry.parse(request.param), weights, 1)


@pytest.mark.parametrize("tokens", [1, 64])
def test_forward(part: Part, session: Session, tokens: int) -> None:
    ids = np.resize(np.frombuffer(prompts()["long"].text.encode(), dtype=np.uint8), tokens).astype(np.int64)
    with session:
        out = part(lambda: session.forward(ids, want=Want(logits="last", state=True)))
    assert out.logits.shape == (1, 1, 256)
    assert np.isfinite(out.logits).all()


@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_honest_runs(part: Part, weights: Weights, dtype: str) -> None:
    """What a first validation spends most of its time on."""
    ids = np.resize(np.frombuffer(prompts()["long"].text.encode(), dtype=np.uint8), 64).astype(np.int64)
    with registry.open_session(registry.parse(f"honest:0@{dtype}"), weights, 1) as session:
        out = part(lambda: session.forward(np.tile(ids, (16, 1)), want=Want(logits="all")))
    assert out.logits.shape == (16, 64, 256)


@pytest.mark.parametrize(("tokens", "vocabulary"), [(512, 256), (8, 65536), (512, 65536)])
def test_logit_numbers(part: Part, tokens: int, vocabulary: int) -> None:
    random = np.random.default_rng(0)
    want = random.standard_normal((tokens, vocabulary), dtype=np.float32)
    got = want + np.float32(1e-3) * random.standard_normal(want.shape, dtype=np.float32)
    assert part(lambda: metrics.logit_numbers(got, want))["rms"] == pytest.approx(1e-3, rel=0.05)


def test_distribution_numbers(part: Part) -> None:
    random = np.random.default_rng(0)
    want = random.normal(size=(8, 65536))
    got = (want + 1e-3 * random.normal(size=want.shape)).astype(np.float32)
    assert 0 < part(lambda: metrics.distribution_numbers(got, want, np.arange(8)))["kl_max"] < 1e-5


def test_judge(part: Part, made: record.Record) -> None:
    profile = judge.load("strict")
    assert part(lambda: judge.judge(made, profile)) == made.verdicts


def test_record_there_and_back(part: Part, made: record.Record) -> None:
    assert part(lambda: record.Record.from_json(made.to_json())) == made


@pytest.mark.parametrize("draw", [html, markdown], ids=["html", "markdown"])
def test_render(part: Part, made: record.Record, draw: Callable[[record.Record], str]) -> None:
    assert made.model["name"] in part(lambda: draw(made))
