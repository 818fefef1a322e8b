"""`torch-cpu-f32`: the reference as a backend. Pure PyTorch, float32, sequential; read, not raced."""

from backends.reference.session import EquationSession
from backends.weights import Weights


def open_torch_cpu(weights: Weights, *, device: str = "cpu", dtype: str = "f32", threads: int = 0) -> EquationSession:
    """The named equations evaluated in float32 on the CPU.

    Args:
        weights: the checkpoint, converted to float32.
        device: "cpu".
        dtype: "f32".
        threads: of torch; 0 leaves it as it is.
    """
    del device
    return EquationSession(weights, "torch-cpu-f32", dtype, threads)
