"""The file in the package, and what docs/demo.md says about it."""

import re
import string
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from backends import registry
from backends.base import Array, Ids, Want
from backends.checkpoint import open_checkpoint
from backends.demo import baselines, corpus, export, training
from backends.demo.initial import Shape
from backends.demo.training import Plan
from backends.errors import InputError
from backends.weights import Weights
from tests.backends.demo.test_export import header

PAGE = (Path(__file__).parents[3] / "docs" / "demo.md").read_text(encoding="utf-8")
FACTS = header(export.FILE)["__metadata__"]
LIBRARY = Path(sysconfig.get_paths()["stdlib"])
SHORT = [
    LIBRARY / name for name in ("ast.py", "calendar.py", "json/encoder.py", "random.py") if (LIBRARY / name).exists()
]
"""Held out by their names, under every Python version."""


@pytest.fixture(scope="module")
def demo() -> Iterator[Weights]:
    with open_checkpoint("demo") as weights:
        yield weights


def test_it_is_the_model_of_the_page(demo: Weights) -> None:
    facts, shape = demo.facts, Shape()
    assert facts.parameters == 1_756_480
    assert (facts.version, facts.stored, facts.tokenizer) == ("7", "bf16", "bytes")
    assert (facts.n_layer, facts.n_embd, facts.n_head, facts.head_size) == (shape.L, shape.C, shape.H, shape.N)
    assert "5 layers of 160, 5 heads of 32, hidden width 640, vocabulary = the 256 bytes" in PAGE
    assert f"| parameters | {facts.parameters:,} |" in PAGE


def test_it_has_at_most_four_megabytes() -> None:
    size = export.FILE.stat().st_size
    assert size <= 4_000_000
    assert f"({size / 1e6:.1f} MB, BF16)" in PAGE


def test_it_says_where_it_comes_from() -> None:
    assert FACTS["licence"] == export.LICENCE
    assert f"| `demo`, BF16 weights | {FACTS['bits_per_byte']} |" in PAGE
    assert f"the standard library of Python {FACTS['python']}:" in PAGE
    assert float(FACTS["bits_per_byte"]) < 1.9


def test_the_script_s_own_plan_made_it() -> None:
    assert FACTS["steps"] == str(Plan().total)


def test_it_has_no_seed() -> None:
    with pytest.raises(InputError, match="demo is one trained file and has no seed"):
        open_checkpoint("demo?seed=1")


@pytest.mark.skipif(not SHORT, reason="this Python comes without the sources of its standard library")
def test_held_out_text_takes_fewer_than_1_9_bits_a_byte(demo: Weights) -> None:
    assert all(corpus.held_out(path.relative_to(LIBRARY).as_posix()) for path in SHORT)
    texts = [path.read_bytes() for path in SHORT]
    weights = {name: demo.get(name, "f32") for name in demo}
    reached = training.bits_per_byte(weights, Shape(), texts, "chunks", 1024)
    assert reached < 1.9
    assert reached < baselines.gzip_bits([text[:1024] for text in texts])


def test_a_backend_that_shares_nothing_with_the_training_finds_the_same_cost(demo: Weights) -> None:
    text = b"def held_out(name):\n    return name in names\n" * 4
    weights = {name: demo.get(name, "f32") for name in demo}
    session = registry.open_session(registry.parse("torch-cpu-f32"), demo)
    logits = session.forward(np.frombuffer(b"\0" + text[:-1], dtype=np.uint8).astype(np.int64), want=Want("all")).logits
    assert logits is not None
    shifted = logits[0].astype(np.float64)
    nats = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(text)), np.frombuffer(text, dtype=np.uint8)]
    found = training.bits_per_byte(weights, Shape(), [text], "chunks")
    assert found == pytest.approx(nats.mean() / np.log(2), rel=1e-4)


def test_what_it_writes_has_the_words_of_the_library(demo: Weights) -> None:
    session = registry.open_session(registry.parse("torch-cpu-f32"), demo)
    draw = np.random.default_rng(0)

    def sampler(logits: Array) -> Ids:
        p = np.exp((logits[0] - logits[0].max()) / 0.7)
        return np.array([draw.choice(len(p), p=p / p.sum())])

    prompt = np.frombuffer(b"import os\n\n\ndef fibonacci(n):\n    ", dtype=np.uint8).astype(np.int64)
    written = bytes(int(ids[0]) for ids in session.generate(prompt, sampler, 200)).decode("ascii")
    assert set(written) <= {*string.printable}
    assert written.count("\n    ") > 3
    words = re.findall(r"[A-Za-z_]{2,}", written)
    known = set(re.findall(r"[A-Za-z_]{2,}", b"\n".join(corpus.read().training).decode("utf-8", "replace")))
    assert len(words) > 20
    assert sum(word in known for word in words) / len(words) > 0.8


def test_the_corpus_and_gzip_on_the_page() -> None:
    text = corpus.read()
    if text.fingerprint() != FACTS["corpus"]:
        pytest.skip("this Python has another standard library than the one that demo was trained on")
    sides = re.search(r"(\d+) files, ([\d,]+) bytes to train on; (\d+) files, ([\d,]+) bytes held out", PAGE)
    assert sides
    assert sides.groups() == tuple(
        told for part in (text.training, text.held_out) for told in (str(len(part)), f"{sum(map(len, part)):,}")
    )
    assert f"in one stream | {baselines.gzip_bits(text.held_out):.4f} |" in PAGE
