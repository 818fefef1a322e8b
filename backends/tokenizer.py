"""Text to token ids and back: the World vocabulary, the byte vocabulary, and a second opinion.

The World vocabulary has the ids 1 to 65529; id 0 ends a document and has no bytes. Its file is not part of this
project: two PyPI packages carry it (`pyrwkv-tokenizer`, a dependency, and `rwkv`), and it is read
from whichever is installed, without importing either.
"""

import ast
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from backends.base import ModelFacts, Tokenizer
from backends.errors import BackendError, InputError, unknown

VOCABULARY = "rwkv_vocab_v20230424.txt"
"""File name of the World vocabulary; the date is part of the official name."""

_PACKAGES = ("pyrwkv_tokenizer", "rwkv")

Node = dict[int, tuple[int, "Node"]]
"""One level of the trie: next byte -> (id of the token that ends here or 0, next level)."""


def find_vocabulary() -> Path:
    """The vocabulary file inside an installed package.

    Raises:
        InputError: no installed package carries it.
    """
    for package in _PACKAGES:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(folder) / VOCABULARY
            if path.is_file():
                return path
    raise InputError(f"the World vocabulary {VOCABULARY} was not found: pip install pyrwkv-tokenizer (or rwkv).")


def read_vocabulary(path: Path) -> list[bytes]:
    """The bytes of every token, by id; id 0 has none.

    Every line is `<id> <python literal> <length in bytes>`. The literal is a str (its UTF-8 is the token) or a
    bytes literal for what is not UTF-8. Copies with CRLF line ends circulate.

    Raises:
        InputError: unreadable, or not such a file.
    """
    try:
        # Split at "\n" only: str.splitlines would also split at separators that are tokens themselves.
        lines = path.read_bytes().decode().replace("\r\n", "\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"the vocabulary {path.name} cannot be read: {error}.") from error
    table = [b""]
    for number, line in enumerate(lines, 1):
        if line:
            table.append(_token(path, number, line, len(table)))
    return table


def _token(path: Path, number: int, line: str, expected: int) -> bytes:
    try:
        head, rest = line.split(" ", 1)
        literal, length = rest.rsplit(" ", 1)
        # Most literals are plain; parsing those too would take ten times as long.
        plain = literal[0] in "'\"" and "\\" not in literal
        value = literal[1:-1] if plain else ast.literal_eval(literal)
        token = value.encode() if isinstance(value, str) else value
        if isinstance(token, bytes) and int(head) == expected and int(length) == len(token) > 0:
            return token
    except (ValueError, SyntaxError, TypeError, IndexError):
        pass
    raise InputError(f"line {number} of the vocabulary {path.name} is not '{expected} <literal> <length>'.")


def _trie(table: Sequence[bytes]) -> Node:
    root: Node = {}
    for ident, token in enumerate(table):
        level = root
        for byte in token[:-1]:
            level = level.setdefault(byte, (0, {}))[1]
        if token:
            last = token[-1]
            level[last] = (ident, level[last][1] if last in level else {})
    return root


def _utf8(text: str) -> bytes:
    """UTF-8 of a text, or words about the character that has none."""
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"the text holds a lone surrogate U+{ord(text[error.start]):04X} at position {error.start}, which no byte "
            "sequence encodes: repair the text (it was probably cut inside a UTF-16 pair)."
        ) from error


def _lookup(table: Sequence[bytes], name: str, ids: Sequence[int]) -> bytes:
    """The tokens of `ids` joined, or words about the first id that is none."""
    for ident in ids:
        if not 0 <= ident < len(table):
            raise InputError(f"{ident} is no id of the {name} vocabulary, which has 0 to {len(table) - 1}.")
    return b"".join([table[ident] for ident in ids])


class World:
    """The official tokenizer of the RWKV World models: always the longest token that matches.

    Matching never looks back, so encode(a) + encode(b) may differ from encode(a + b). Every text has
    an encoding, because all 256 single bytes are tokens.
    """

    name = "world"

    def __init__(self, path: Path | None = None) -> None:
        """Read the vocabulary.

        Args:
            path: a vocabulary file; None finds the installed one.
        """
        self._table = read_vocabulary(path or find_vocabulary())
        self._root = _trie(self._table)
        self._reach = max(map(len, self._table))
        if len(self._root) < 256:
            raise InputError("the vocabulary lacks single bytes, so that not every text could be encoded.")

    @property
    def vocab_size(self) -> int:
        """Number of ids, the empty id 0 included."""
        return len(self._table)

    def encode(self, text: str) -> list[int]:
        """Ids of `text`, nothing added in front.

        Raises:
            InputError: the text holds a lone surrogate.
        """
        data, reach, root = _utf8(text), self._reach, self._root
        ids: list[int] = []
        start, size = 0, len(data)
        while start < size:
            level, position, found, end = root, start, 0, start
            for byte in data[start : start + reach]:
                node = level.get(byte)
                if node is None:
                    break
                position += 1
                ident, level = node
                if ident:
                    found, end = ident, position
            ids.append(found)
            start = end
        return ids

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes of `ids`; id 0 has none, and the last character may be cut.

        Raises:
            InputError: an id that the vocabulary lacks.
        """
        return _lookup(self._table, "World", ids)


class Bytes:
    """The vocabulary of small models: the id is the value of the byte."""

    name = "bytes"
    vocab_size = 256
    _table = tuple(bytes([value]) for value in range(256))

    def encode(self, text: str) -> list[int]:
        """The UTF-8 bytes of `text`; lone surrogates are an InputError."""
        return list(_utf8(text))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The bytes themselves; an id above 255 is an InputError."""
        return _lookup(self._table, "byte", ids)


class Pyrwkv:
    """The `pyrwkv-tokenizer` package (Rust) as it is, for a second opinion on `World`.

    Known to differ when decoding: id 0 becomes a NUL, and ids above the vocabulary as well as tokens that end inside
    a character panic, which arrives in Python as a BaseException and is turned into a BackendError here.
    """

    name = "pyrwkv"

    def __init__(self) -> None:
        try:
            from pyrwkv_tokenizer import RWKVTokenizer
        except ImportError as error:
            raise InputError("pyrwkv-tokenizer is not installed: pip install pyrwkv-tokenizer.") from error
        self._inner: Any = RWKVTokenizer()

    @property
    def vocab_size(self) -> int:
        """Number of ids that the package counts."""
        return int(self._inner.vocab_size())

    def encode(self, text: str) -> list[int]:
        """Ids of `text`; lone surrogates are an InputError."""
        _utf8(text)
        return list(_guarded(self._inner.encode, text))

    def decode_bytes(self, ids: Sequence[int]) -> bytes:
        """The UTF-8 of what the package decodes; BackendError where it panics."""
        if not all(0 <= ident < self.vocab_size for ident in ids):  # known to panic, loudly, on stderr
            raise BackendError(
                f"pyrwkv-tokenizer decodes ids 0 to {self.vocab_size - 1} only, got {min(ids)}..{max(ids)}."
            )
        return str(_guarded(self._inner.decode, list(ids))).encode()


def _guarded(call: Callable[[Any], Any], argument: Any) -> Any:
    """Call into Rust; a panic does not derive from Exception and would take the whole run along."""
    try:
        return call(argument)
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = str(error).partition("\n")[0]
        raise BackendError(f"pyrwkv-tokenizer failed with {type(error).__name__}: {reason}") from error


_KINDS: dict[str, Callable[[], Tokenizer]] = {"world": World, "bytes": Bytes, "pyrwkv": Pyrwkv}


@cache
def open_tokenizer(name: str) -> Tokenizer:
    """A tokenizer by name; opened once per process, since reading the World vocabulary takes 0.2 s.

    Args:
        name: "world", "bytes" or "pyrwkv".

    Raises:
        UsageError: another name.
        InputError: its vocabulary or package is not installed.
    """
    if name not in _KINDS:
        raise unknown("tokenizer", name, _KINDS)
    return _KINDS[name]()


def for_model(facts: ModelFacts) -> Tokenizer | None:
    """The tokenizer that belongs to a checkpoint; None where none is known for its vocabulary."""
    return open_tokenizer(facts.tokenizer) if facts.tokenizer else None


def none_because(facts: ModelFacts) -> str:
    """Why a session of a checkpoint has no tokenizer, in words."""
    from backends.detect import tokenizer_for

    if facts.tokenizer:  # it is known and could be had
        return f"this backend has no tokenizer for its vocabulary of {facts.vocab_size}"
    if tokenizer_for(facts.vocab_size) == World.name:
        return "the World vocabulary is not installed (pip install pyrwkv-tokenizer)"
    return f"no tokenizer is known for this vocabulary of {facts.vocab_size}"
