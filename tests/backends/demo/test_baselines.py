"""The n-gram model and gzip: by hand, and by a slow program that counts in dictionaries."""

import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends.demo import baselines
from backends.demo.baselines import NGram, gzip_bits


def test_gzip_is_one_stream_over_all_files() -> None:
    noise = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
    one = gzip_bits([noise])
    assert 8 < one < 8.1
    assert gzip_bits([noise, noise]) == pytest.approx(one / 2, abs=0.2)
    assert gzip_bits([b"a" * 10_000, b"a" * 10_000]) < 0.03


def test_one_byte_of_context_by_hand() -> None:
    """Trained on "ababc", as ␀␀ababc␀ with the byte before the first.

    Pairs: ab twice, ␀␀ ␀a ba bc c␀ once: discount 5 / (5 + 2) = 5/7. Bytes by how many different bytes stand before
    them: ␀ 2, a 2, b 1, c 1, in all 6 of 4 kinds: discount 2 / (2 + 4) = 1/3.
    """
    model = NGram([b"ababc"], order=1)
    a = (2 - 1 / 3) / 6 + 4 / 3 / 6 / 256
    b = (1 - 1 / 3) / 6 + 4 / 3 / 6 / 256
    x = 4 / 3 / 6 / 256
    a_first = (1 - 5 / 7) / 2 + 5 / 7 * 2 / 2 * a  # behind ␀, which two kinds follow
    b_after_a = (2 - 5 / 7) / 2 + 5 / 7 * 1 / 2 * b
    assert model.bits_per_byte([b"ab"]) == pytest.approx(-math.log2(a_first * b_after_a) / 2, abs=1e-12)
    x_first = 5 / 7 * x
    assert model.bits_per_byte([b"xa"]) == pytest.approx(-math.log2(x_first * a) / 2, abs=1e-12)  # nothing followed x
    assert model.bits_per_byte([b"a", b"x"]) == pytest.approx(-math.log2(a_first * x_first) / 2, abs=1e-12)


def test_a_byte_that_is_new_costs_a_finite_number_of_bits() -> None:
    assert NGram([b"aa"], order=0).bits_per_byte([b"b"]) < 20


def test_order_zero_is_the_share_of_each_byte() -> None:
    """␀aab␀: each of ␀ and a twice, b once: discount 1 / (1 + 4) = 1/5."""
    left = 3 * (1 / 5) / 5 / 256
    a, b = (2 - 1 / 5) / 5 + left, (1 - 1 / 5) / 5 + left
    assert NGram([b"aab"], order=0).bits_per_byte([b"ba"]) == pytest.approx(-math.log2(a * b) / 2, abs=1e-12)


class Slow:
    """The same model counted in dictionaries, one n-gram at a time."""

    def __init__(self, files: list[bytes], order: int) -> None:
        self.order = order
        text = self.padded(files)
        counts: Counter[bytes] = Counter(text[i : i + order + 1] for i in range(len(text) - order))
        self.levels = {order: counts}
        for length in range(order - 1, -1, -1):
            self.levels[length] = Counter(gram[1:] for gram in self.levels[length + 1])

    def padded(self, files: list[bytes]) -> bytes:
        return b"\0" * self.order + b"\0" + b"".join(file + b"\0" for file in files)

    def probability(self, context: bytes, byte: int, length: int) -> float:
        if length < 0:
            return 1 / 256
        counts, before = self.levels[length], context[len(context) - length :]
        following = {gram[-1]: n for gram, n in counts.items() if gram[:-1] == before}
        shorter = self.probability(context, byte, length - 1)
        if not following:
            return shorter
        sizes = Counter(counts.values())
        ones = sizes[1] or 1
        discount = ones / (ones + 2 * sizes[2])
        own = following[byte] - discount if byte in following else 0.0
        return (own + discount * len(following) * shorter) / sum(following.values())

    def bits_per_byte(self, files: list[bytes]) -> float:
        text, bits = self.padded(files), []
        for place in range(self.order + 1, len(text)):
            if text[place]:
                context = text[place - self.order : place]
                bits.append(-math.log2(self.probability(context, text[place], self.order)))
        return sum(bits) / len(bits)


_texts = st.lists(st.text("abc\xff", min_size=1, max_size=12).map(lambda text: text.encode("latin-1")), min_size=1)


@settings(max_examples=40, deadline=None)
@given(training=_texts, judged=_texts, order=st.integers(0, 7))
def test_any_order_is_what_counting_slowly_gives(training: list[bytes], judged: list[bytes], order: int) -> None:
    assert NGram(training, order).bits_per_byte(judged) == pytest.approx(
        Slow(training, order).bits_per_byte(judged), rel=1e-12
    )


@settings(max_examples=15, deadline=None)
@given(training=_texts, context=st.binary(max_size=6))
def test_what_may_follow_a_context_sums_to_one(training: list[bytes], context: bytes) -> None:
    slow = Slow(training, baselines.ORDER)
    padded = (b"\0" * 6 + context)[-baselines.ORDER :]
    assert sum(slow.probability(padded, byte, slow.order) for byte in range(256)) == pytest.approx(1.0)


def test_the_order_of_the_document() -> None:
    assert baselines.ORDER == 5
    text = b"def f(x):\n    return x\n" * 20
    assert NGram([text]).bits_per_byte([text]) < 0.1 < NGram([text], order=1).bits_per_byte([text])
