"""Streaming: stop texts over several tokens, characters over several tokens, and what is held back meanwhile."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from backends.errors import UsageError
from backends.streaming import TextStream


def pieces(stream: TextStream, *tokens: str | bytes) -> list[str]:
    return [stream.push(token.encode() if isinstance(token, str) else token) for token in tokens]


def test_a_stop_text_over_two_tokens() -> None:
    stream = TextStream(["\n\n"])
    assert pieces(stream, "Paris", ".\n", "\nUser") == ["Paris", ".", ""]
    assert (stream.stop, stream.shown) == ("\n\n", 6)
    assert stream.finish() == ""
    assert stream.push(b"more") == ""


def test_a_stop_text_over_three_tokens() -> None:
    stream = TextStream(["STOP"])
    assert pieces(stream, "abS", "T", "OP!") == ["ab", "", ""]
    assert (stream.stop, stream.shown) == ("STOP", 2)


def test_what_only_looked_like_a_stop_text_comes_late() -> None:
    stream = TextStream(["\n\nUser", "B: "])
    assert pieces(stream, "a\n", "\n", "Us", "ual B", ":", "x") == ["a", "", "", "\n\nUsual ", "", "B:x"]
    assert stream.stop == ""


def test_the_first_of_two_stop_texts_counts() -> None:
    stream = TextStream(["def", "bc"])
    assert pieces(stream, "abcdefg") == ["a"]
    assert stream.stop == "bc"


def test_a_stop_text_that_overlaps_itself() -> None:
    stream = TextStream(["aab"])
    assert pieces(stream, "a", "a", "a", "b") == ["", "", "a", ""]
    assert stream.stop == "aab"


def test_an_emoji_over_four_tokens() -> None:
    stream = TextStream()
    tokens = [bytes([byte]) for byte in "👍".encode()]
    assert pieces(stream, "a", *tokens, "b") == ["a", "", "", "", "👍", "b"]
    assert stream.shown == 6


def test_half_a_character_is_never_shown() -> None:
    stream = TextStream()
    assert pieces(stream, "a", b"\xf0\x9f") == ["a", ""]
    assert stream.finish() == ""
    assert stream.shown == 1


def test_bytes_that_are_no_text_show_as_such_once_that_is_certain() -> None:
    stream = TextStream(["\n\n"])
    assert pieces(stream, b"\xf0\x9f", b"x", b"\xff") == ["", "�x", "�"]
    assert pieces(stream, b"\xe2\x82", "\n\n") == ["", "�"]
    assert (stream.stop, stream.shown) == ("\n\n", 6)


def test_at_the_end_what_waited_is_text() -> None:
    stream = TextStream(["\n\n"])
    assert pieces(stream, "a\n") == ["a"]
    assert stream.finish() == "\n"
    assert stream.shown == 2


def test_empty_stop_texts_are_refused() -> None:
    with pytest.raises(UsageError, match="must not be empty"):
        TextStream(["a", ""])


@example("\naa", ["a", "\naa"], None)
@given(st.text(max_size=30), st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3), st.data())
def test_however_it_is_cut_the_text_is_that_before_the_first_stop(
    text: str, stops: list[str], data: st.DataObject | None
) -> None:
    raw = text.encode("utf-8", "ignore")
    cuts = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=12))) if data else [2]
    stream = TextStream(stops)
    parts = [stream.push(raw[a:b]) for a, b in zip([0, *cuts], [*cuts, len(raw)], strict=True)]
    got = "".join(parts) + stream.finish()
    whole = raw.decode()
    ends = [(whole.find(stop) + len(stop), whole.find(stop)) for stop in stops if stop in whole]  # complete first
    assert got == whole[: min(ends, default=(0, len(whole)))[1]]
    assert bool(stream.stop) == bool(ends)
    assert stream.shown == len(got.encode())
