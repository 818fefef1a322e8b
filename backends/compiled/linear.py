"""The one place where a weight matrix meets activations."""

import torch
from torch import Tensor
from torch.nn import functional

from backends.native import ops

_ONEDNN = bool(torch._C._has_mkldnn) and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def linear(x: Tensor, W: Tensor) -> Tensor:
    """The product x Wᵀ: activations (B, T, in) by a matrix (out, in).

    On a CPU, float32 goes to oneDNN, which on AMD processors is faster than the BLAS behind `functional.linear`
    and, for one token, streams the matrix with every thread. Under the compiler one token is written as the
    sum it is, accumulated in float32: inductor makes that a loop at memory speed, fused with its inputs.
    """
    if x.device.type == "cpu":
        if torch.compiler.is_compiling() and x.shape[:-1].numel() == 1:
            return (x.float() * W.float()).sum(-1).to(x.dtype).view(*x.shape[:-1], -1)
        if _ONEDNN and x.dtype == torch.float32:
            product: Tensor = ops.linear(x, W) if torch.compiler.is_compiling() else ops.onednn(x, W)
            return product
    return functional.linear(x, W)
