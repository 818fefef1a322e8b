"""`official`: the `rwkv` package, which most people mean by "what RWKV computes". It opens the .pth by itself."""

from backends.engines.files import WRITTEN, own_pth, provide_pth
from backends.engines.known import FORMATS
from backends.engines.session import EngineSession, Setup
from backends.weights import Weights

EMBEDDING = (
    "of RWKV-4 to 6 the package normalises the embedding table while it loads, in the file's own bf16, so that every "
    "strategy carries this rounding; from a float32 copy of the file (convert --dtype f32) it does not"
)


def open_official(
    weights: Weights, *, device: str = "cpu", dtype: str = "f32", threads: int = 0, argument: str = ""
) -> EngineSession:
    """The package on a checkpoint.

    Args:
        weights: an official .pth is opened as it is; anything else is written as one first.
        device: "cpu", "cuda".
        dtype: "f32", "bf16", "f16".
        threads: of torch in the child process.
        argument: a strategy string; empty makes one of device and dtype.

    Raises:
        BackendError: the package refuses it.
    """
    strategy = argument or f"{device} {FORMATS[dtype]}"
    notes = ["weights in int8, quantised by the package"] if "i8" in strategy else []
    notes += [] if own_pth(weights) else [WRITTEN]
    facts = weights.facts
    notes += [EMBEDDING] if "bf16" in facts.stored and facts.version[0] in "456" else []
    settings = {"version": facts.version, "strategy": strategy, "tokenizer": facts.tokenizer}
    setup = Setup("official", "official", settings, provide_pth, tuple(notes))
    return EngineSession(weights, setup, dtype, device, threads)
