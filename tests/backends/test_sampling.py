"""Sampling: distributions computed by hand, the `rwkv` package, and where the two semantics differ."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.base import Array
from backends.errors import BackendError, UsageError
from backends.sampling import BLANKS_AND_DIGITS, PRESETS, SEMANTICS, Params, Sampler, is_exempt, noise, softmax
from backends.tokenizer import Bytes, World, open_tokenizer

PLAIN = Params(temperature=1.0, top_p=1.0, presence=0.0, frequency=0.0, decay=1.0)
LOGITS = np.log(np.array([0.4, 0.3, 0.2, 0.1]))
"""Four tokens with the probabilities 0.4, 0.3, 0.2, 0.1."""


def shaped(way: str, logits: Array = LOGITS, **params: Any) -> list[float]:
    p = Sampler(replace(PLAIN, **params), way).probabilities(logits)
    assert p.sum() == pytest.approx(1.0, abs=1e-12)
    return [float(value) for value in p]


def close(*values: float) -> Any:
    return pytest.approx(values, abs=1e-12)


# ---- by hand --------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", SEMANTICS)
def test_alike_where_only_one_thing_is_set(way: str) -> None:
    assert shaped(way) == close(0.4, 0.3, 0.2, 0.1)
    assert shaped(way, top_p=0.7) == close(4 / 7, 3 / 7, 0, 0)
    assert shaped(way, top_p=0.71) == close(4 / 9, 3 / 9, 2 / 9, 0)
    assert shaped(way, top_k=3) == close(4 / 9, 3 / 9, 2 / 9, 0)
    assert shaped(way, top_k=4) == shaped(way, top_k=9) == close(0.4, 0.3, 0.2, 0.1)
    assert shaped(way, temperature=0.5) == close(16 / 30, 9 / 30, 4 / 30, 1 / 30)
    assert shaped(way, temperature=0.0) == [1, 0, 0, 0]


def test_order_of_top_p_and_temperature() -> None:
    # official: top-p at temperature 1 needs three tokens for 0.75, then squares what is left
    assert shaped("official", temperature=0.5, top_p=0.75) == close(16 / 29, 9 / 29, 4 / 29, 0)
    # candle: squared first, two tokens reach 25/30
    assert shaped("candle", temperature=0.5, top_p=0.75) == close(16 / 25, 9 / 25, 0, 0)


def test_top_k_with_top_p() -> None:
    # official: each cuts by itself; candle: top-p counts the mass that top-k left, of the whole
    assert shaped("official", top_k=2, top_p=0.85) == close(4 / 7, 3 / 7, 0, 0)
    assert shaped("candle", top_k=2, top_p=0.85) == close(4 / 7, 3 / 7, 0, 0)
    assert shaped("candle", top_k=3, top_p=0.5, temperature=0.5) == close(1, 0, 0, 0)
    assert shaped("official", top_k=3, top_p=0.5, temperature=0.5) == close(16 / 25, 9 / 25, 0, 0)


def test_ties_at_the_cutoff() -> None:
    tied = np.log(np.array([0.4, 0.2, 0.2, 0.2]))
    assert shaped("official", tied, top_p=0.5) == close(0.4, 0.2, 0.2, 0.2)
    assert shaped("candle", tied, top_p=0.5) == close(2 / 3, 1 / 3, 0, 0)


def test_greedy_ties() -> None:
    tied = np.array([1.0, 3.0, 3.0, 0.0])
    assert shaped("official", tied, temperature=0.0) == close(0, 0.5, 0.5, 0)
    assert shaped("official", tied, top_p=0.0) == close(0, 0.5, 0.5, 0)
    assert shaped("candle", tied, temperature=0.0) == [0, 0, 1, 0]
    assert shaped("candle", tied, temperature=1e-8) == [0, 0, 1, 0]


def test_candle_takes_a_top_p_of_zero_for_none() -> None:
    assert shaped("candle", top_p=0.0) == close(0.4, 0.3, 0.2, 0.1)
    assert shaped("official", top_p=0.0) == close(1, 0, 0, 0)


def test_penalties_by_hand() -> None:
    params = replace(PLAIN, presence=0.5, frequency=0.25, decay=0.5)
    logits = np.zeros(4)
    official, candle = (Sampler(params, way) for way in ("official", "candle"))
    for sampler in (official, candle):
        sampler.start([2, 1])
        sampler.counts.add(3)
        sampler.counts.add(3)
    # official: token 3 was counted 1 * 0.5 + 1; the prompt not at all
    assert official.counts.seen == {3: 1.5}
    assert official.counts.penalised(logits) == close(0, 0, 0, -0.5 - 0.25 * 1.5)
    # candle: the prompt's 1 and 0.5 faded over two steps
    assert candle.counts.seen == {2: 0.125, 1: 0.25, 3: 1.5}
    assert candle.counts.penalised(logits) == close(0, -0.5 - 0.25 * 0.25, -0.5 - 0.25 * 0.125, -0.875)
    expected = np.exp([0, 0, 0, -0.875])
    assert official.probabilities(logits) == pytest.approx(expected / expected.sum(), abs=1e-15)


def test_official_counts_begin_anew_and_candles_go_on() -> None:
    for way, after in (("official", {}), ("candle", {5: 0.9, 6: 1.0})):
        sampler = Sampler(replace(PLAIN, decay=0.9), way)
        sampler.counts.add(5)
        sampler.start([6])
        assert sampler.counts.seen == after


def test_blanks_and_digits_are_exempt_from_the_frequency_only_officially() -> None:
    params = replace(PLAIN, presence=1.0, frequency=1.0)
    for way, cost in (("official", 1.0), ("candle", 2.0)):
        sampler = Sampler(params, way, tokenizer=Bytes())
        sampler.counts.add(ord("7"))
        sampler.counts.add(ord("x"))
        penalised = sampler.counts.penalised(np.zeros(256))
        assert (penalised[ord("7")], penalised[ord("x")]) == (-cost, -2.0)


def test_candle_forgets_what_faded_to_nothing() -> None:
    for way, cost in (("official", -1.0), ("candle", 0.0)):
        sampler = Sampler(replace(PLAIN, presence=1.0, decay=0.0), way)
        sampler.counts.add(2)
        sampler.counts.add(3)
        assert sampler.counts.penalised(np.zeros(4))[2] == cost


def test_exempt_text_is_a_setting() -> None:
    sampler = Sampler(replace(PLAIN, frequency=1.0, exempt="xyz"), tokenizer=Bytes())
    for token in b"y7":
        sampler.counts.add(token)
    assert sampler.counts.seen == {ord("y"): 0.0, ord("7"): 1.0}


def test_what_is_exempt() -> None:
    world = open_tokenizer("world")
    (two,) = world.encode("12")
    assert is_exempt(world, two, BLANKS_AND_DIGITS)
    assert not is_exempt(world, world.encode("21")[0], BLANKS_AND_DIGITS)  # no substring of 0123456789
    assert not is_exempt(world, 0, BLANKS_AND_DIGITS)
    assert not is_exempt(world, 129, BLANKS_AND_DIGITS)  # half a character
    assert not is_exempt(None, 32, BLANKS_AND_DIGITS)


# ---- the draw -------------------------------------------------------------------------------------


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler(replace(PLAIN, temperature=0.5))
    drawn = np.concatenate([sampler(LOGITS[None]) for _ in range(4000)])
    sampler.rows.clear()
    shares = np.bincount(drawn, minlength=4) / len(drawn)
    expected = np.array([16, 9, 4, 1]) / 30
    assert np.abs(shares - expected).max() < 4 * np.sqrt(0.25 / len(drawn))


def test_a_seed_repeats_itself_and_a_batch_has_its_own_luck() -> None:
    def run(seed: int, draws: int = 0) -> list[list[int]]:
        sampler = Sampler(PLAIN, seed=seed, draws=draws)
        return [sampler(np.stack([LOGITS, LOGITS])).tolist() for _ in range(40)]

    assert run(3) == run(3) != run(4)
    assert run(3, draws=7)[:33] == run(3)[7:]
    one, two = zip(*run(3), strict=True)
    assert one != two


def test_rows_have_their_own_counts() -> None:
    sampler = Sampler(replace(PLAIN, temperature=0.0, presence=9.0))
    logits = np.stack([LOGITS, LOGITS[::-1]])
    assert sampler(logits).tolist() == [0, 3]
    assert sampler(logits).tolist() == [1, 2]
    assert [counts.seen for counts in sampler.rows] == [{0: 1.0, 1: 1.0}, {3: 1.0, 2: 1.0}]


def test_noise_is_that_of_the_suites() -> None:
    expected = np.random.default_rng([5, 2]).gumbel(size=7)
    assert np.array_equal(noise(5, 2, 7), expected)
    assert not np.array_equal(noise(5, 2, 7, row=1), expected)


def test_logits_are_left_alone_and_banned_ids_never_drawn() -> None:
    logits = LOGITS.astype(np.float32)
    before = logits.copy()
    sampler = Sampler(replace(PLAIN, presence=1.0), banned=[0, 3])
    drawn = {int(sampler(logits[None])[0]) for _ in range(60)}
    assert drawn == {1, 2}
    assert np.array_equal(logits, before)


@pytest.mark.parametrize("way", SEMANTICS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_logits_that_are_not_finite_are_an_error(way: str, bad: float) -> None:
    with pytest.raises(BackendError, match="NaN or infinity"):
        Sampler(PLAIN, way).probabilities(np.array([0.0, bad, 1.0]))
    with pytest.raises(BackendError, match="every token is ruled out"):
        Sampler(PLAIN, way, banned=range(2)).probabilities(np.zeros(2))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("temperature", -0.1), ("temperature", float("nan")), ("temperature", float("inf")), ("top_p", 1.1),
        ("top_k", -1), ("decay", 1.01), ("presence", float("inf")), ("frequency", float("nan")),
    ],
)  # fmt: skip
def test_parameters_out_of_range(name: str, value: float) -> None:
    with pytest.raises(UsageError, match=f"^{name.replace('_', '-')} must be .*, got"):
        replace(PLAIN, **{name: value})  # type: ignore[arg-type]


def test_presets_and_defaults() -> None:
    def numbers(p: Params) -> tuple[float, ...]:
        return (p.temperature, p.top_p, p.presence, p.frequency, p.decay)

    assert numbers(PRESETS["chat"]) == (1.0, 0.5, 2.0, 0.1, 0.99)
    assert numbers(PRESETS["creative"]) == (0.6, 0.7, 2.0, 0.2, 0.99)
    assert numbers(SEMANTICS["official"].defaults) == (1.0, 0.85, 0.2, 0.2, 0.996)
    with pytest.raises(UsageError, match="Known: candle, official"):
        Sampler(PLAIN, "offical")


def test_tiny_temperatures_do_not_underflow() -> None:
    assert shaped("official", temperature=0.001, top_p=0.9) == close(1, 0, 0, 0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=40),
    st.floats(0, 3),
    st.floats(0, 1),
    st.integers(0, 50),
    st.sampled_from(sorted(SEMANTICS)),
)
def test_always_a_distribution_over_the_best(
    logits: list[float], temperature: float, top_p: float, top_k: int, way: str
) -> None:
    values = np.array(logits)
    p = np.array(shaped(way, values, temperature=temperature, top_p=top_p, top_k=top_k))
    assert (p >= 0).all()
    assert np.isfinite(p).all()
    assert p[values >= values.max() - 1e-9].sum() > 0  # softmax cannot tell logits apart that are nearer
    if p.min() == 0:  # whatever was left out is no better than what was kept
        assert values[p == 0].max() <= values[p > 0].min() + 1e-9
    if top_k:
        assert (p > 0).sum() <= top_k


# ---- against the `rwkv` package -------------------------------------------------------------------


@pytest.fixture(scope="module")
def package() -> Iterator[Any]:
    """A PIPELINE of the package without a model; its draws are caught, so that the distribution is seen."""
    pytest.importorskip("rwkv", reason="the rwkv package is not installed")
    before = dict(os.environ)
    os.environ |= {"RWKV_V7_ON": "1", "RWKV_JIT_ON": "0", "RWKV_CUDA_ON": "0"}
    from rwkv import utils

    pipeline = object.__new__(utils.PIPELINE)
    yield utils, pipeline
    os.environ.clear()
    os.environ.update(before)


class Caught(Exception):  # noqa: N818 - no error
    def __init__(self, p: Array) -> None:
        self.p = p


def of_package(package: Any, monkeypatch: pytest.MonkeyPatch, logits: Array, **params: Any) -> Array:
    import torch

    utils, pipeline = package

    def choice(a: int, p: Array) -> int:
        raise Caught(p)

    monkeypatch.setattr(utils.np.random, "choice", choice)
    with pytest.raises(Caught) as caught:
        pipeline.sample_logits(torch.from_numpy(logits.astype(np.float32)), **params)
    return np.asarray(caught.value.p, dtype=np.float64)


GRID = [
    {"temperature": temperature, "top_p": top_p, "top_k": top_k}
    for temperature in (0.0, 0.6, 1.0, 1.7)
    for top_p in (0.0, 0.3, 0.5, 0.85, 0.95)
    for top_k in (0, 1, 7)
]


@pytest.mark.parametrize("params", GRID, ids=str)
def test_official_is_what_the_package_does(
    params: dict[str, float], package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.random.default_rng(1).normal(size=300) * 3
    expected = of_package(package, monkeypatch, logits, **params)
    got = np.array(shaped("official", logits, **params))
    assert np.array_equal(got > 0, expected > 0)
    assert np.abs(got - expected).max() < 1e-6
    if params["top_p"] >= 0.85 and params["temperature"] not in (0.0, 1.0) and params["top_k"] == 0:
        assert np.abs(np.array(shaped("candle", logits, **params)) - expected).max() > 1e-3


def test_ties_at_the_cutoff_as_in_the_package(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tied = np.log(np.array([0.4, 0.2, 0.2, 0.2]))
    assert of_package(package, monkeypatch, tied, top_p=0.5) == pytest.approx([0.4, 0.2, 0.2, 0.2], abs=1e-6)


def test_the_package_makes_a_top_p_of_one_greedy_and_here_it_is_off(
    package: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = np.random.default_rng(2).normal(size=65536)
    sums = np.cumsum(np.sort(softmax(logits.astype(np.float32)))[::-1], dtype=np.float32)
    theirs = of_package(package, monkeypatch, logits, top_p=1.0)
    assert (sums[-1] < 1) == ((theirs > 0).sum() == 1)
    assert min(shaped("official", logits, top_p=1.0)) > 0


class Model:
    """Gives the same logits whatever it is fed; remembers nothing."""

    def __init__(self, rows: Sequence[Array]) -> None:
        self.rows, self.calls = rows, 0

    def forward(self, tokens: list[int], state: Any) -> tuple[Any, Any]:
        import torch

        self.calls += 1
        return torch.from_numpy(self.rows[self.calls - 1].astype(np.float32).copy()), state


def test_penalties_count_as_the_packages_generate_does(package: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its generate, with its draws replaced by ours: the distributions of 60 steps are the same."""
    utils, pipeline = package
    world = World()
    words = world.encode(" the 12 cat\n7 \t0 sat 123 on")
    rows = [np.full(65536, -30.0) for _ in range(60)]
    for row in rows:
        row[words] = 2.0
        row[0] = 1.0
    sampler = Sampler(Params(temperature=0.8, top_p=0.9, presence=0.4, frequency=0.3, decay=0.9), tokenizer=world)
    sampler.start(world.encode("the 12 cat"))
    seen: list[float] = []

    def choice(a: int, p: Array) -> int:
        logits = rows[len(seen)]
        ours = sampler.probabilities(logits)
        seen.append(float(np.abs(ours - p).max()))
        return int(sampler(logits[None])[0])

    monkeypatch.setattr(utils.np.random, "choice", choice)
    from rwkv.rwkv_tokenizer import TRIE_TOKENIZER

    from backends.tokenizer import find_vocabulary

    pipeline.tokenizer = TRIE_TOKENIZER(str(find_vocabulary()))
    pipeline.model = Model(rows)
    arguments = utils.PIPELINE_ARGS(
        temperature=0.8, top_p=0.9, alpha_presence=0.4, alpha_frequency=0.3, alpha_decay=0.9
    )
    pipeline.generate("the 12 cat", 60, arguments)
    assert len(seen) == 60
    assert len(sampler.counts.seen) > 5
    assert max(seen) < 1e-5
