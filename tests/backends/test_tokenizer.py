"""The World trie against published encodings and a second implementation; bytes; awkward input."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import tokenizer
from backends.base import ModelFacts, Tokenizer
from backends.errors import BackendError, InputError, UsageError
from backends.tokenizer import Bytes, Pyrwkv, World

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)
# Pieces that share prefixes with long tokens, so that greedy matching has something to decide.
PIECES = st.lists(
    st.sampled_from(
        [" ", "  ", "\n", "\r\n", "\t", "the", " the", "def ", "==", "----", "0", "é", "🏽", "👍", "中国", "\0"]
    ),
    max_size=40,
).map("".join)

GOLDENS = {
    "def fibonacci(n):\n    ": [7334, 21676, 41943, 41, 111, 501, 28352],
    "Hello, world!": [33155, 45, 40213, 34],
    "The Eiffel tower is in the city of": [6699, 304, 25740, 109, 39990, 4600, 4596, 22590, 30449, 4706],
    "User: hi\n\nAssistant:": [24281, 59, 4571, 261, 5585, 41693, 59],
    "埃菲尔铁塔在哪个城市？": [11514, 16081, 11979, 17571, 11559, 11454, 11187, 10283, 11517, 12154, 19156],
    "a\r\nb\r\n\r\nc": [98, 263, 99, 19244, 100],
    "👍🏽": [28333, 3319, 144, 190],
    " " * 129: [65529, 33],
    "✿prefix✿✿suffix✿B✿middle✿A": [10060, 42093, 10060, 10060, 42337, 10060, 67, 10060, 41851, 10060, 66],
    "\0": [1],
    "": [],
}
"""Encodings on which the `rwkv` and `pyrwkv-tokenizer` packages agree."""


@pytest.fixture(scope="module")
def world() -> Tokenizer:
    return tokenizer.open_tokenizer("world")


@pytest.fixture(scope="module")
def pyrwkv() -> Tokenizer:
    return tokenizer.open_tokenizer("pyrwkv")


@pytest.mark.parametrize("text", GOLDENS)
def test_published_encodings(world: Tokenizer, text: str) -> None:
    assert world.encode(text) == GOLDENS[text]
    assert world.decode_bytes(GOLDENS[text]) == text.encode()


@settings(max_examples=300, deadline=None)
@given(TEXT | PIECES)
def test_round_trip_and_second_opinion(text: str) -> None:
    ours, theirs = tokenizer.open_tokenizer("world"), tokenizer.open_tokenizer("pyrwkv")
    ids = ours.encode(text)
    assert ours.decode_bytes(ids) == text.encode()
    assert theirs.encode(text) == ids
    assert 0 not in ids


@settings(deadline=None)
@given(TEXT)
def test_bytes_round_trip(text: str) -> None:
    ids = Bytes().encode(text)
    assert ids == list(text.encode())
    assert Bytes().decode_bytes(ids) == text.encode()


def test_every_token_that_is_text_encodes_to_itself() -> None:
    world = World()
    table = tokenizer.read_vocabulary(tokenizer.find_vocabulary())
    texts = {ident: token.decode() for ident, token in enumerate(table) if ident and _is_text(token)}
    assert len(texts) == 65043
    assert all(world.encode(text) == [ident] for ident, text in texts.items())
    assert world.vocab_size == len(table) == 65530


def _is_text(token: bytes) -> bool:
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True


def test_document_end_has_no_bytes_and_characters_may_be_cut(world: Tokenizer) -> None:
    assert world.decode_bytes([0]) == b""
    assert world.decode_bytes([98, 0, 129]) == b"a\x80"


@pytest.mark.parametrize("ident", [-1, 65530, 65536])
def test_unknown_id_of_world(world: Tokenizer, ident: int) -> None:
    with pytest.raises(InputError, match=f"^{ident} is no id of the World vocabulary, which has 0 to 65529"):
        world.decode_bytes([98, ident])


@pytest.mark.parametrize("name", ["world", "bytes", "pyrwkv"])
def test_lone_surrogates_are_refused_in_words(name: str) -> None:
    with pytest.raises(InputError, match=r"lone surrogate U\+D83D at position 2"):
        tokenizer.open_tokenizer(name).encode("ab\ud83d")


def test_unknown_byte() -> None:
    with pytest.raises(InputError, match="256 is no id of the byte vocabulary"):
        Bytes().decode_bytes([65, 256])


def test_second_opinion_survives_panics(pyrwkv: Tokenizer) -> None:
    assert pyrwkv.decode_bytes(GOLDENS["Hello, world!"]) == b"Hello, world!"
    with pytest.raises(BackendError, match="PanicException"):
        pyrwkv.decode_bytes([129])
    with pytest.raises(BackendError, match=r"0 to 65529 only, got -1\.\.98"):
        pyrwkv.decode_bytes([98, -1])
    assert pyrwkv.encode("still alive") == World().encode("still alive")


def test_second_opinion_does_not_swallow_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        tokenizer._guarded(interrupted, None)


def test_packages_that_are_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "_PACKAGES", ("no_such_package",))
    with pytest.raises(InputError, match="pip install pyrwkv-tokenizer"):
        World()
    monkeypatch.setitem(sys.modules, "pyrwkv_tokenizer", None)
    with pytest.raises(InputError, match="pip install pyrwkv-tokenizer"):
        Pyrwkv()


def test_vocabulary_with_crlf_reads_the_same(tmp_path: Path) -> None:
    path = tokenizer.find_vocabulary()
    plain = path.read_bytes().replace(b"\r\n", b"\n")
    copy = tmp_path / "crlf.txt"
    copy.write_bytes(plain.replace(b"\n", b"\r\n"))
    assert tokenizer.read_vocabulary(copy) == tokenizer.read_vocabulary(path)


@pytest.mark.parametrize(
    "lines",
    [
        "2 'a' 1",  # ids start at 1
        "1 'a' 2",  # wrong length
        "1 '' 0",
        "1 __import__('os') 1",
        "1 [1] 1",
        "1 'a",
        "rubbish",
        "1 'a' 1\n3 'b' 1",
    ],
)
def test_damaged_vocabulary(tmp_path: Path, lines: str) -> None:
    path = tmp_path / "vocabulary.txt"
    path.write_text(lines)
    number = lines.count("\n") + 1
    with pytest.raises(InputError, match=rf"line {number} of the vocabulary vocabulary\.txt is not '{number} "):
        World(path)


def test_vocabulary_that_is_unreadable_or_incomplete(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.txt cannot be read"):
        World(tmp_path / "gone.txt")
    (tmp_path / "latin.txt").write_bytes(b"1 '\xe9' 1")
    with pytest.raises(InputError, match=r"latin\.txt cannot be read"):
        World(tmp_path / "latin.txt")
    (tmp_path / "short.txt").write_text("1 'a' 1\n")
    with pytest.raises(InputError, match="lacks single bytes"):
        World(tmp_path / "short.txt")


def test_unknown_tokenizer_names_near_matches() -> None:
    with pytest.raises(UsageError, match=re.escape("unknown tokenizer 'word'. Did you mean world?")):
        tokenizer.open_tokenizer("word")


@pytest.mark.parametrize(("name", "kind"), [("world", "world"), ("bytes", "bytes"), ("", None)])
def test_tokenizer_of_a_model(name: str, kind: str | None) -> None:
    facts = ModelFacts("m", "7", "", 256, 64, 1, 1, 64, 256, 0, tokenizer=name)
    found = tokenizer.for_model(facts)
    assert (found and found.name) == kind


def test_importing_it_loads_no_torch() -> None:
    code = "import sys, backends.tokenizer as t; t.open_tokenizer('world'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
