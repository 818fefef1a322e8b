"""The bytes that llama.cpp saves a sequence of a recurrent model as, taken apart.

Magic, sequence, number of cells, position and ids of the cell, a flag, the number of layers; then every layer's token
shifts (type, size, the time mix's and the channel mix's), then every layer's WKV state (type, size, numbers).
"""

import struct
from collections.abc import Sequence

import numpy as np

from backends.engines.serve import Array, Refusal

HEAD = struct.Struct("<IiIiIII")
"""Magic, sequence, cells, position, ids in the cell, transposed or not, layers."""

PART = struct.Struct("<iQ")
"""Type and bytes of one layer's part."""

F32 = 0


def read(raw: bytes, layers: int) -> tuple[Array, Array]:
    """The shifts (L, 2 C) and the WKV states (L, H N N).

    Raises:
        Refusal: another layout than the one described above.
    """
    found = [np.frombuffer(raw, "<f4", size // 4, offset) for offset, size in parts(raw)]
    if len(found) != 2 * layers:
        raise Refusal(f"llama.cpp saved {len(found)} parts of {layers} layers, where two a layer are known here")
    return np.stack(found[:layers]), np.stack(found[layers:])


def replaced(raw: bytes, rows: Sequence[Array]) -> bytes:
    """The same sequence with other numbers, in the order of `parts`."""
    new = bytearray(raw)
    for (offset, size), row in zip(parts(raw), rows, strict=True):
        flat = np.ascontiguousarray(row, dtype="<f4").tobytes()
        if len(flat) != size:
            raise Refusal(f"a part of the state has {len(flat)} bytes, where {size} are due")
        new[offset : offset + size] = flat
    return bytes(new)


def parts(raw: bytes) -> list[tuple[int, int]]:
    """Where the numbers of every part begin, and their bytes."""
    _, _, cells, _, ids, transposed, _ = HEAD.unpack_from(raw)
    found, offset = [], HEAD.size
    known = (cells, ids, transposed) == (1, 0, 0)
    while known and offset < len(raw):
        kind, size = PART.unpack_from(raw, offset)
        offset += PART.size + size
        known = kind == F32 and offset <= len(raw)
        found.append((offset - size, size))
    if not known:
        raise Refusal("this llama.cpp saves sequences in a way that is not known here")
    return found
