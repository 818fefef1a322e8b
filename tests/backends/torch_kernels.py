"""What each kernel of `triton_step` and `triton_wkv` promises, in plain torch, for tests without Triton."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import group_norm, layer_norm, normalize

from backends.compiled import wkv
from backends.compiled.packed import ACTS

AFTER: dict[int, Callable[[Tensor], Tensor]] = {
    ACTS[""]: lambda z: z,
    ACTS["tanh"]: torch.tanh,
    ACTS["sigmoid"]: torch.sigmoid,
    ACTS["relu2"]: lambda z: torch.relu(z) ** 2,
}


class Launch:
    """A kernel as it is called: `kernel[grid](...)`; the grid has to be whole numbers from 1."""

    def __init__(self, kernel: Callable[..., None]) -> None:
        self._kernel = kernel

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        assert all(isinstance(size, int) and size >= 1 for size in grid)
        return self._kernel


def embed(ids: Tensor, table: Tensor, weight: Tensor, bias: Tensor, x: Tensor, C: int, EPS: float, **_: Any) -> None:
    x.copy_(layer_norm(table[ids[:, 0]].float(), (C,), weight.float(), bias.float(), EPS))


def shift(
    x: Tensor, weight: Tensor, bias: Tensor, last: Tensor, mixes: Tensor, out: Tensor, C: int, MIXES: int, EPS: float,
    **_: Any,
) -> None:  # fmt: skip
    h = layer_norm(x.float(), (C,), weight.float(), bias.float(), EPS).to(x.dtype)
    if not MIXES:
        out.copy_(h)
        return
    before, shares = last.float().clone(), mixes.float().view(MIXES, C)
    last.copy_(h)
    out.view(len(x), MIXES, C).copy_(h.float()[:, None] + (before - h.float())[:, None] * shares)


def product(
    x: Tensor, W: Tensor, table: Tensor, out: Tensor, B: int, x_stride: int, out_stride: int, ENTRY: int, ROWS: int,
    ADD: bool, **_: Any,
) -> None:  # fmt: skip
    assert table.shape[1] == ENTRY
    for begin, K, source, target, real, act in table.tolist():
        assert begin + ROWS * K <= len(W), "a block reads beyond its stack"
        assert real <= ROWS
        w = W[begin : begin + real * K].view(real, K).float()
        z = x.as_strided((B, K), (x_stride, 1), x.storage_offset() + source).float()
        place = out.as_strided((B, real), (out_stride, 1), out.storage_offset() + target)
        found = AFTER[act](z @ w.T)
        place.copy_(place.float() + found if ADD else found)


def attend(
    proj: Tensor, low: Tensor, vectors: Tensor, S: Tensor, v_first: Tensor, y: Tensor, bonus: Tensor, stride: int,
    H: int, N: int, ROWS: int, FIRST: bool, DECAY: float, FLOOR: float, EPS: float, **_: Any,
) -> None:  # fmt: skip
    B, C = len(proj), H * N
    assert proj.stride(0) == stride
    r, k, v = (proj[:, i * C : (i + 1) * C].float() for i in range(3))
    w0, a0, v0, k_k, k_a, r_k, weight, bias = vectors
    w, a, g, share = low.float().unbind(1)
    if FIRST:
        v_first.copy_(v)
    else:
        v = torch.lerp(v, v_first, torch.sigmoid(v0 + share))
    a = torch.sigmoid(a0 + a)
    kk = normalize((k * k_k).view(B, H, N), dim=-1, eps=FLOOR)
    k = k * (1 + (a - 1) * k_a)
    vectors_7 = (r, -DECAY * torch.sigmoid(w0 + w), k, v, kk, a)
    read, after = wkv.wkv_step(wkv.Inputs(*(z.reshape(B, H, N) for z in vectors_7)), S)
    S.copy_(after)
    more = (r * k * r_k).view(B, H, N).sum(-1, keepdim=True) * v.view(B, H, N)
    if ROWS < N:
        y.copy_(read.reshape(B, C))
        bonus.copy_(more.reshape(B, C))
        return
    y.copy_((group_norm(read.reshape(B, C), H, weight, bias, EPS) + more.reshape(B, C)) * g)


def finish(read: Tensor, bonus: Tensor, low: Tensor, vectors: Tensor, y: Tensor, H: int, EPS: float, **_: Any) -> None:
    y.copy_((group_norm(read, H, vectors[6], vectors[7], EPS) + bonus) * low[:, 2].float())


def sparse(
    k: Tensor, W: Tensor, sums: Tensor, zeros: Tensor, F: int, C: int, COLUMNS: int, DEPTH: int, EACH: int, **_: Any
) -> None:
    assert (EACH % DEPTH, W.shape) == (0, (F, C))
    assert EACH * len(sums) >= F, "inputs are left out"
    for part in range(len(sums)):
        own = slice(part * EACH, (part + 1) * EACH)
        sums[part] = k[0, own].float() @ W[own].float()
    zeros += (k == 0).sum()


def collect(sums: Tensor, x: Tensor, C: int, PARTS: int, COLUMNS: int) -> None:
    assert len(sums) == PARTS
    x.copy_(x.float() + sums.sum(0))


def scan(inputs: tuple[Tensor, ...], S: Tensor) -> tuple[Tensor, Tensor]:
    y, after = wkv.wkv(wkv.Inputs(*inputs), S)
    return y.contiguous(), after.clone()


def chunks(inputs: tuple[Tensor, ...], S: Tensor, exact: bool) -> tuple[Tensor, Tensor]:
    return scan(inputs, S)


_KERNELS = (embed, shift, product, attend, finish, sparse, collect)
MODULES = {
    "triton_step": SimpleNamespace(**{f"{kernel.__name__}_kernel": Launch(kernel) for kernel in _KERNELS}),
    "triton_wkv": SimpleNamespace(scan=scan, chunks=chunks),
}
"""Module of `backends.compiled` that imports Triton -> the same names in torch."""
