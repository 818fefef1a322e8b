"""Files that a test's result must equal; RWKV_REGEN=1 rewrites them, and that run still fails."""

import os
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "golden"


def agrees(path: Path, text: str) -> None:
    """Compare with a golden file; what differs is written beside it or over it.

    A golden here is made from `sample.py` alone, so its inputs stand next to it.
    """
    if path.exists() and path.read_text(encoding="utf-8") == text:
        return
    if os.environ.get("RWKV_REGEN"):
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
        pytest.fail(f"rewrote {path.name}; look at the difference, then run again without RWKV_REGEN")
    pytest.fail(f"{path.name} differs from what the code writes; RWKV_REGEN=1 pytest rewrites it")
