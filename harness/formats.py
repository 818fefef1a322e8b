"""Which number format an array was held in, told by its values alone.

A float32 array whose every entry fits into eight significant bits was stored in bf16 somewhere: of thousands of
computed entries nearly all use the last bits of their format. No tolerance is needed, and no trace.
"""

import numpy as np

from backends.base import Array

SIGNIFICAND = {"bf16": 8, "f16": 11, "f32": 24, "f64": 53}
"""Number format -> its significant bits, the hidden one counted."""

ENTRIES = 64
"""Fewer entries than these, zeros apart, say nothing."""


def significant_bits(values: Array) -> int:
    """Bits that the widest entry needs; 0 where too few entries are finite and not zero to tell.

    Args:
        values: any shape, float32 or float64.
    """
    entries = values[np.isfinite(values) & (values != 0)]
    if entries.size < ENTRIES:
        return 0
    mantissas = np.ldexp(np.frexp(np.abs(entries.astype(np.float64)))[0], SIGNIFICAND["f64"]).astype(np.uint64)
    lowest = int(np.bitwise_or.reduce(mantissas))
    trailing = (lowest & -lowest).bit_length() - 1
    return SIGNIFICAND["f64"] - trailing


def held_in(values: Array) -> str:
    """The low-precision format whose grid holds every entry: "bf16", "f16"; empty for float32 and wider."""
    bits = significant_bits(values)
    if not 0 < bits <= SIGNIFICAND["f16"]:
        return ""
    return "bf16" if bits <= SIGNIFICAND["bf16"] else "f16"
