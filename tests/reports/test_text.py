import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reports import text


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (None, "—"),
        ("no number", "—"),
        (True, "—"),
        (math.nan, "NaN"),
        ("nan", "NaN"),
        (math.inf, "∞"),
        ("-inf", "-∞"),
        (0.0, "0"),
        (65536, "65,536"),
        (2048.0, "2048"),
        (0.02735, "0.0273"),
        (2.9e-7, "2.90e-07"),
        (0.99997, "0.999970"),
        (-1.234, "-1.23"),
        (12345.6, "12,346"),
        (3.5e6 + 0.5, "3.50e+06"),
    ],
)
def test_num(value: object, words: str) -> None:
    assert text.num(value) == words


def test_cosine_near_one_is_not_rounded_to_one() -> None:
    assert text.num(0.9999999) != "1.000"
    assert float(text.num(0.9999999)) == pytest.approx(0.9999999, abs=1e-9)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0.0036, "0.36%"),
        (0.31, "31.0%"),
        (1.0, "100.0%"),
        (2.6e-8, "2.6e-06%"),
        (0.0, "0.00%"),
        (None, "—"),
        ("nan", "NaN"),
    ],
)
def test_share(value: object, words: str) -> None:
    assert text.share(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(1.1, "1.1x"), (73.2, "73x"), (150.4, "150x"), (4.2e6, "4.2e+06x"), (math.inf, "∞ x")]
)
def test_times(value: float, words: str) -> None:
    assert text.times(value) == words


@pytest.mark.parametrize(
    ("value", "words"), [(12, "12 B"), (12976128, "12.38 MiB"), (5e12, "4657 GiB"), (None, "—"), ("nan", "NaN")]
)
def test_size(value: object, words: str) -> None:
    assert text.size(value) == words


def test_fixed_keeps_its_decimals_and_says_nan() -> None:
    assert [text.fixed(value) for value in (7.5585, 1, None, "nan")] == ["7.5585", "1.0000", "—", "NaN"]


def test_listed_and_plural() -> None:
    assert [text.listed(list(names)) for names in ("", "a", "ab", "abc")] == ["", "a", "a and b", "a, b and c"]
    assert text.listed(list("abcdefgh"), most=2) == "a, b and 6 more"
    assert [text.plural(1, "case"), text.plural(2, "case"), text.plural(0, "criterion", "criteria")] == [
        "1 case",
        "2 cases",
        "0 criteria",
    ]


@given(st.text(alphabet=st.characters(codec=None)))
def test_visible_text_can_be_written_and_does_not_act(value: str) -> None:
    shown = text.visible(value)
    shown.encode("utf-8")
    assert not any(char in shown for char in "\n\r\t\x00\x1b\u202e\u2066\u200f\ud800")


def test_visible_keeps_letters_of_every_script() -> None:
    assert text.visible("词 שלום 😀 👩\u200d🔬 é") == "词 שלום 😀 👩\u200d🔬 é"
    assert text.visible("a\n\ud800\u202e\x1b") == "a\\n\\ud800\\u202e\\x1b"
    assert text.visible("a\nb\t", keep="\n") == "a\nb\\t"


def test_rich_text_joins() -> None:
    joined = text.rich("a ", text.code("b\n"), (text.dim("c"),))
    assert text.plain(joined) == "a b\\nc"
    assert [span.style for span in joined] == ["", "code", "dim"]
