"""A number format is told by the values that it holds."""

import numpy as np
import pytest
import torch

from harness.formats import ENTRIES, held_in, significant_bits

VALUES = torch.randn(4096, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize(
    ("dtype", "bits", "name"),
    [
        (torch.bfloat16, 8, "bf16"),
        (torch.float16, 11, "f16"),
        (torch.float32, 24, ""),
        (torch.float64, 53, ""),
    ],
)
def test_every_format_uses_its_bits(dtype: torch.dtype, bits: int, name: str) -> None:
    for wide in (torch.float32, torch.float64):
        values = VALUES.to(dtype).to(wide).numpy()
        assert significant_bits(values) == min(bits, 24 if wide is torch.float32 else 53)
        assert held_in(values) == name


def test_one_entry_off_the_grid_is_enough() -> None:
    values = VALUES.bfloat16().float().numpy()
    values[7] = 0.1
    assert held_in(values) == ""


def test_zeros_and_what_is_not_finite_say_nothing() -> None:
    values = np.zeros(4096, dtype=np.float32)
    assert significant_bits(values) == 0
    values[: ENTRIES - 1] = 1.0
    values[-1] = np.nan
    assert significant_bits(values) == 0
    values[ENTRIES] = -0.5
    assert (significant_bits(values), held_in(values)) == (1, "bf16")


def test_powers_of_two_and_subnormals() -> None:
    assert significant_bits(np.ldexp(np.ones(ENTRIES), np.arange(-ENTRIES, 0))) == 1
    assert significant_bits(np.full(ENTRIES, 3e-45, dtype=np.float32)) <= 2
