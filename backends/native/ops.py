"""The C scans and oneDNN's linear call as operators of torch, so that its compiler fuses around them."""

import torch
from torch import Tensor

from backends.native import build, library


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def ready() -> bool:
    """Whether the C program can be had here."""
    try:
        library.typed(build.chosen(), "f32")
    except build.NoProgramError:
        return False
    return True


def serves(S: Tensor) -> bool:
    """Whether the C scans take states like S, (B, H, N, N)."""
    N = S.shape[-1]
    return S.device.type == "cpu" and S.dtype == torch.float32 and N % 4 == 0 and N <= 128 and ready()


@torch.library.custom_op("rwkv_harness::wkv7", mutates_args=())
def wkv7(r: Tensor, w: Tensor, k: Tensor, v: Tensor, kk: Tensor, b: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """RWKV-7, S = S diag(w) - (S kk) b^T + v k^T, y = S r: vectors (B, T, H, N), S (B, H, N, N) -> y, new S."""
    return library.scan({"r": r, "w": w, "k": k, "v": v, "kk": kk, "b": b}, S)


@torch.library.custom_op("rwkv_harness::wkv6", mutates_args=())
def wkv6(r: Tensor, w: Tensor, k: Tensor, v: Tensor, u: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    """RWKV-5 and 6, y = S r + v sum(r u k), S = S diag(w) + v k^T: as `wkv7`, and u (H, N)."""
    return library.scan({"r": r, "w": w, "k": k, "v": v, "u": u}, S)


def onednn(x: Tensor, W: Tensor) -> Tensor:
    """The same without the operator around it, which costs as much as a small product."""
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, W, None, "none", [], "")
    return product


@torch.library.custom_op("rwkv_harness::linear", mutates_args=())
def linear(x: Tensor, W: Tensor) -> Tensor:
    """The product x W^T by oneDNN, which on AMD processors is twice as fast as the BLAS behind `functional.linear`."""
    return onednn(x, W)


@wkv7.register_fake
def _(r: Tensor, w: Tensor, k: Tensor, v: Tensor, kk: Tensor, b: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    del w, k, v, kk, b
    return r.new_empty(r.shape), S.new_empty(S.shape)


@wkv6.register_fake
def _(r: Tensor, w: Tensor, k: Tensor, v: Tensor, u: Tensor, S: Tensor) -> tuple[Tensor, Tensor]:
    del w, k, v, u
    return r.new_empty(r.shape), S.new_empty(S.shape)


@linear.register_fake
def _(x: Tensor, W: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], W.shape[0])
