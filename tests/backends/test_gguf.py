"""The GGUF container: what is written reads back, and damage is told in words."""

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from backends import gguf
from backends.errors import InputError

VALUES = st.one_of(
    st.booleans(),
    st.integers(0, 2**32 - 1),
    st.floats(width=32, allow_nan=False),
    st.text(max_size=9),
    st.lists(st.binary(max_size=9).filter(lambda b: b.isascii()), max_size=5),
)


def entry(name: str, values: np.ndarray[tuple[int, ...], np.dtype[np.float32]]) -> gguf.Entry:
    return gguf.Entry(name, values.shape, "F32", values.nbytes, lambda: memoryview(values.tobytes()))


def plain(value: gguf.Value) -> object:
    if isinstance(value, np.ndarray):
        return value.tolist()
    return [one.decode() for one in value] if isinstance(value, list) else value


@given(st.dictionaries(st.text(min_size=1, max_size=8), VALUES, max_size=5))
@settings(max_examples=30, deadline=None)
def test_metadata_reads_back(tmp_path_factory: pytest.TempPathFactory, metadata: dict[str, gguf.Value]) -> None:
    path = tmp_path_factory.mktemp("gguf") / "m.gguf"
    gguf.write(path, metadata, [])
    assert gguf.read_header(path).metadata == {key: plain(value) for key, value in metadata.items()}


def test_tensors_lie_where_the_header_says(tmp_path: Path) -> None:
    """Read by hand: dimensions innermost first, every tensor at a multiple of 32."""
    a, b = np.arange(6, dtype=np.float32).reshape(2, 3), np.arange(5, dtype=np.float32)
    gguf.write(tmp_path / "m.gguf", {"n": np.array([1, -1], dtype=np.int32)}, [entry("a", a), entry("b", b)])
    raw = (tmp_path / "m.gguf").read_bytes()
    assert raw[:4] == b"GGUF"
    assert struct.unpack_from("<IQQ", raw, 4) == (3, 2, 1)
    at = raw.index(b"\x01\0\0\0\0\0\0\0a") + 9
    assert struct.unpack_from("<IQQIQ", raw, at) == (2, 3, 2, 0, 0)
    begin = len(raw) - 64
    assert begin % 32 == 0
    assert raw[begin : begin + 24] == a.tobytes()
    assert raw[begin + 32 : begin + 52] == b.tobytes()
    header = gguf.read_header(tmp_path / "m.gguf")
    assert header.tensors == {"a": ((2, 3), "F32"), "b": ((5,), "F32")}
    assert header.metadata == {"n": [1, -1]}
    assert header.types() == {"F32": 11}


def test_the_reader_of_ggml_agrees(tmp_path: Path) -> None:
    theirs = pytest.importorskip("gguf", reason="the package gguf is not installed")
    a = np.arange(6, dtype=np.float32).reshape(2, 3)
    gguf.write(tmp_path / "m.gguf", {"general.architecture": "x", "x.n": 7, "t": [b"p", b"q"]}, [entry("a", a)])
    reader = theirs.GGUFReader(tmp_path / "m.gguf")
    assert reader.fields["x.n"].contents() == 7
    assert reader.fields["t"].contents() == ["p", "q"]
    np.testing.assert_array_equal(reader.tensors[0].data, a)


def test_damage_is_told_in_words(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    with pytest.raises(InputError, match="cannot be read"):
        gguf.read_header(path)
    path.write_bytes(b"PK12")
    with pytest.raises(InputError, match="no GGUF"):
        gguf.read_header(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 1, 0, 0))
    with pytest.raises(InputError, match="version 1"):
        gguf.read_header(path)
    gguf.write(path, {"a": "text"}, [entry("b", np.zeros(40, dtype=np.float32))])
    whole = path.read_bytes()
    for size in range(5, whole.index(b"b") + 20, 3):
        path.write_bytes(whole[:size])
        with pytest.raises(InputError, match="damaged or cut"):
            gguf.read_header(path)
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**60))
    with pytest.raises(InputError, match="damaged or cut"):
        gguf.read_header(path)
