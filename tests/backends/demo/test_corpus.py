"""The standard library as a corpus: what is left out, how it is split, what a batch is."""

import hashlib
import re
import sysconfig
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.demo import corpus
from backends.demo.corpus import END, Corpus, Rows, Starts
from backends.errors import InputError
from tests.backends.demo import tiny

TRAINED, HELD_OUT = "os.py", "ast.py"
"""Two names on either side of the split."""


def _written(root: Path, texts: dict[str, bytes]) -> Path:
    for name, text in texts.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(text)
    return root


def test_the_split_is_by_the_hash_of_the_name() -> None:
    assert hashlib.sha256(b"ast.py").hexdigest()[:2] == "b4"
    assert 0xB4 % 20 == 0
    assert corpus.held_out("ast.py")
    assert hashlib.sha256(b"os.py").hexdigest()[:2] == "d9"
    assert 0xD9 % 20 != 0
    assert not corpus.held_out("os.py")
    many = [f"folder/name{i}.py" for i in range(4000)]
    assert 0.04 < sum(map(corpus.held_out, many)) / len(many) < 0.06


def test_what_is_left_out(tmp_path: Path) -> None:
    kept = ["json/tool.py", "os.py", "pack/test.py", "re/_parser.py"]
    out = [
        "test/test_os.py", "pack/tests/a.py", "idlelib/idle_test/a.py", "encodings/cp037.py", "pydoc_data/topics.py",
        "site-packages/numpy/a.py", "dist-packages/a.py", "__pycache__/os.cpython-311.pyc", "os.txt",
    ]  # fmt: skip
    _written(tmp_path, dict.fromkeys([*kept, *out], b"x = 1\n"))
    (tmp_path / "folder.py").mkdir()
    assert corpus.names(tmp_path) == kept


def test_reading_keeps_both_sides_apart(tmp_path: Path) -> None:
    texts = {TRAINED: b"a\n", HELD_OUT: b"b\n", "empty.py": b"", "nul.py": b"c\0d\n", "zipfile.py": b"\xff\n"}
    found = corpus.read(_written(tmp_path, texts))
    assert found == Corpus((b"a\n", b"\xff\n"), (b"b\n",))


@pytest.mark.parametrize("texts", [{}, {TRAINED: b"a\n"}, {HELD_OUT: b"b\n"}, {TRAINED: b"a", HELD_OUT: b""}])
def test_too_few_sources(tmp_path: Path, texts: dict[str, bytes]) -> None:
    with pytest.raises(InputError, match="too few Python sources to train on; is the standard library installed"):
        corpus.read(_written(tmp_path, texts))


def test_the_running_python_s_own_library_is_the_default() -> None:
    names = corpus.names(Path(sysconfig.get_paths()["stdlib"]))
    assert {"os.py", "ast.py", "json/encoder.py"} <= set(names)
    assert not [name for name in names if re.search(r"(^|/)(tests?|encodings|pydoc_data|site-packages)/", name)]


def test_the_fingerprint_sees_every_byte_and_the_split() -> None:
    splits = [("ab", "c"), ("a b", "c"), ("ab c", ""), ("ab", "d"), ("b a", "c")]
    parts = [[tuple(side.encode().split()) for side in split] for split in splits]
    prints = {Corpus(training, held_out).fingerprint() for training, held_out in parts}
    assert len(prints) == 5
    assert all(re.fullmatch("[0-9a-f]{16}", found) for found in prints)


def test_documents_end_with_byte_0() -> None:
    assert corpus.stream([b"ab", b"c"]).tobytes() == b"\0ab\0c\0"
    assert corpus.stream([b"ab", b"c", b"d"], [2, 0]).tobytes() == b"\0d\0ab\0"


def _rows(seed: int = 0, carried: int = 3) -> Rows:
    return Rows(tiny.FILES, rows=3, tokens=20, carried=carried, seed=seed)


def test_a_row_is_read_in_step_through_the_shuffled_files() -> None:
    rows = _rows()
    count = sum(map(len, tiny.FILES)) + len(tiny.FILES)
    assert rows.per_epoch == count // 60
    batches = [rows.batch(step) for step in range(rows.per_epoch)]
    assert {(batch.shape, batch.dtype) for batch in batches} == {((3, 21), np.dtype(np.int64))}
    for before, after in pairwise(batches):
        assert (before[:, -1] == after[:, 0]).all()
    joined = bytes(np.concatenate([batch[row, :20] for row in range(3) for batch in batches]).tolist())
    assert joined[0] == END
    assert set(joined.split(b"\0")[1:-1]) <= set(tiny.FILES)
    assert len(joined.split(b"\0")) == len(tiny.FILES) + 1


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    one, two = _rows(), _rows()
    steps = [0, one.per_epoch, 2 * one.per_epoch, 1]
    told = [one.batch(step).tolist() for step in steps]
    assert told[::-1] == [two.batch(step).tolist() for step in reversed(steps)]
    assert told[0] != told[1] != told[2]
    assert told[0] != _rows(seed=1).batch(0).tolist()


@given(step=st.integers(0, 200), carried=st.integers(1, 5))
def test_every_row_begins_anew_every_so_many_segments(step: int, carried: int) -> None:
    rows = _rows(carried=carried)
    fresh = np.array([rows.fresh(s) for s in range(step, step + carried)])
    assert fresh.shape == (carried, 3)
    assert fresh.any(axis=0).all()
    place = np.array([s % rows.per_epoch for s in range(step, step + carried)])
    assert fresh[place == 0].all()
    assert (fresh[place > 0].sum(axis=0) <= 1 + (place == 0).any()).all()


def test_rows_do_not_all_begin_anew_at_once() -> None:
    assert [_rows().fresh(step).tolist() for step in (1, 2, 3)] == [
        [False, False, True],
        [False, True, False],
        [True, False, False],
    ]


@pytest.mark.parametrize("place", range(4))
def test_rows_of_the_finish_begin_where_a_statement_does(place: int) -> None:
    starts = Starts(tiny.FILES, rows=16, tokens=10, carried=4, seed=0)
    whole = corpus.stream(tiny.FILES).tobytes()
    parts = [starts.batch(4 * place + step) for step in range(4)]
    assert {batch.shape for batch in parts} == {(16, 11)}
    rows = [bytes(np.concatenate([batch[row, :10] for batch in parts]).tolist()) for row in range(16)]
    assert all(row in whole for row in rows)
    assert all(re.match(rb"\0import|import|def |class ", row) for row in rows), rows
    assert len(set(rows)) > 4
    assert [starts.fresh(step).tolist() for step in (0, 1, 4)] == [[True] * 16, [False] * 16, [True] * 16]


def test_rows_of_the_finish_are_seeded() -> None:
    def batch(seed: int, step: int) -> list[list[int]]:
        found: list[list[int]] = Starts(tiny.FILES, 4, 10, 2, seed).batch(step).tolist()
        return found

    assert batch(0, 6) == batch(0, 6)
    assert batch(0, 6) != batch(1, 6)
    assert batch(0, 6) != batch(0, 8)


@pytest.mark.parametrize(
    ("line", "begins"),
    [
        (b"def f():", True), (b"class A:", True), (b"@cache", True), (b"# said", True), (b"x = 1", True),
        (b"async def f():", True), (b"    return 1", False), (b")", False), (b"defer()", False), (b"x == 1", False),
    ],
)  # fmt: skip
def test_where_a_statement_begins(line: bytes, begins: bool) -> None:
    text = b"(\n" + line + b"\n"
    assert [match.start() for match in corpus._STATEMENT.finditer(text)] == ([2] if begins else [])


def test_too_small_for_a_batch() -> None:
    with pytest.raises(InputError, match="too small for one batch of 2 x 8 bytes"):
        Rows([b"abc", b"defghij"], 2, 8, 1, 0)
    with pytest.raises(InputError, match="too small for rows of 16 bytes"):
        Starts([b"abc", b"defghij"], 2, 8, 2, 0)
