"""What the registry asks about engines: are they installed, and what does an argument say. Imports nothing heavy."""

import re
from collections.abc import Mapping
from pathlib import Path

from backends import gguf
from backends.engines.interpreter import missing
from backends.errors import InputError, UsageError

FORMATS = {"f32": "fp32", "bf16": "bf16", "f16": "fp16"}
"""Number format -> its name in a strategy of the rwkv package."""

_STAGE = re.compile(r"(cuda(?::\d+)?|cpu|mps|dml) (fp16|fp32|bf16)(i8)?(?: \*\d+\+?)?")


def official_missing() -> str:
    """Why `official` cannot run here; "" if it can."""
    return missing("official", ("rwkv", "torch", "numpy"), "pip install 'rwkv-harness[official]'")


def llama_missing() -> str:
    """Why `llama-cpp` cannot run here; "" if it can."""
    return missing("llama-cpp", ("llama_cpp", "numpy"), "pip install 'rwkv-harness[llama-cpp]'")


def hf_missing() -> str:
    """Why `hf` cannot run here; "" if it can."""
    return missing("hf", ("rwkv7_hf", "transformers", "torch", "numpy"), "pip install 'rwkv-harness[hf]'")


def strategy_says(argument: str) -> Mapping[str, str]:
    """The device and number format of a strategy of the rwkv package: those of its first stage.

    Raises:
        UsageError: no strategy string of the package.
    """
    stages = [_STAGE.fullmatch(stage.strip()) for stage in argument.split("->")]
    first = stages[0]
    if first is None or None in stages:
        raise UsageError(
            f"{argument!r} is no strategy of the rwkv package; write official:'cpu fp32', 'cuda fp16', "
            "'cuda fp16 *10 -> cpu fp32', 'cuda fp16i8'."
        )
    short = {long: short for short, long in FORMATS.items()}
    return {"device": first[1], "dtype": short[first[2]]}


def gguf_says(argument: str) -> Mapping[str, str]:
    """The number format of a GGUF file: that of most of its parameters, f16 for quantised ones.

    Quantised weights have no honest rounding of their own here; the file is judged against f16, and the report says so.
    A file that is missing is complained about when it is opened.
    """
    try:
        most = next(iter(gguf.read_header(Path(argument)).types()), "F32")
    except InputError:
        return {}
    return {"dtype": {"F32": "f32", "BF16": "bf16"}.get(most, "f16")}
