"""llama.cpp's saved sequences, taken apart and put together."""

import struct

import numpy as np
import pytest

from backends.engines import saved_state
from backends.engines.serve import Refusal


def saved(layers: int = 2, cells: int = 1, kind: int = 0) -> bytes:
    raw = saved_state.HEAD.pack(0xABC, 0, cells, 7, 0, 0, layers)
    for number in range(2 * layers):
        values = np.arange(4 if number < layers else 6, dtype="<f4") + 10 * number
        raw += saved_state.PART.pack(kind, values.nbytes) + values.tobytes()
    return raw


def test_parts_are_read_in_order() -> None:
    shifts, wkv = saved_state.read(saved(), 2)
    np.testing.assert_array_equal(shifts, [[0, 1, 2, 3], [10, 11, 12, 13]])
    np.testing.assert_array_equal(wkv[1], [30, 31, 32, 33, 34, 35])


def test_replaced_is_the_inverse() -> None:
    shifts, wkv = saved_state.read(saved(), 2)
    assert saved_state.replaced(saved(), [*shifts, *wkv]) == saved()
    other = saved_state.replaced(saved(), [*(shifts + 1), *(wkv * 2)])
    again, states = saved_state.read(other, 2)
    np.testing.assert_array_equal(again, shifts + 1)
    np.testing.assert_array_equal(states, wkv * 2)
    assert other[: saved_state.HEAD.size] == saved()[: saved_state.HEAD.size]


@pytest.mark.parametrize("raw", [saved(cells=2), saved(kind=1), saved()[:-3]], ids=["cells", "type", "cut"])
def test_another_layout_is_refused(raw: bytes) -> None:
    with pytest.raises(Refusal, match="in a way that is not known here"):
        saved_state.read(raw, 2)


def test_another_number_of_layers_or_sizes_is_refused() -> None:
    with pytest.raises(Refusal, match="4 parts of 3 layers"):
        saved_state.read(saved(), 3)
    with pytest.raises(Refusal, match="8 bytes, where 16 are due"):
        saved_state.replaced(saved(1), [np.zeros(2, dtype=np.float32), np.zeros(6, dtype=np.float32)])
    with pytest.raises(struct.error):
        saved_state.read(b"", 1)
