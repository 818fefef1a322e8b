"""Which program evaluates a recurrence: Triton or the C scan where they serve, else chunks of matrix products.

A single token under torch's compiler stays in torch, which fuses it with what stands around it.
"""

import torch
from torch import Tensor

from backends.compiled import triton_ops, wkv, wkv_diagonal
from backends.native import ops


def seven(x: wkv.Inputs, S: Tensor, exact: bool = True) -> tuple[Tensor, Tensor]:
    """RWKV-7; see `wkv.wkv`. Unless `exact`, products may keep 21 bits of their factors."""
    if _fused(x.r):
        return wkv.wkv(x, S)
    if triton_ops.serves(S):
        y, after = triton_ops.wkv7(*x, S, exact)
        return y, after
    if not ops.serves(S):
        return wkv.wkv(x, S)
    y, after = ops.wkv7(x.r, x.log_w.exp(), x.k, x.v, x.kk, x.kk * x.a, S)
    return y, after


def diagonal(x: wkv_diagonal.Inputs, u: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """RWKV-5 and 6; see `wkv_diagonal.wkv`."""
    if _fused(x.r) or not ops.serves(S):
        return wkv_diagonal.wkv(x, u, S)
    y, after = ops.wkv6(x.r, x.w, x.k, x.v, u, S)
    return y, after


def _fused(r: Tensor) -> bool:
    return torch.compiler.is_compiling() and r.shape[1] == 1
