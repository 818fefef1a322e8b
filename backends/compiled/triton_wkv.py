"""The WKV-7 recurrence in Triton: token by token, and in chunks of matrix products. Imports triton.

Both work on what `wkv.Inputs` holds, float32 (B, T, H, N) contiguous, and on S (B, H, N value, N key). A row of S needs
its own value and nothing of the other rows, so a head is split over several programs by value rows: one prompt alone
has too few heads to fill a card.

The chunks are the WY form of `wkv.wkv_chunks`, which has the derivation; the letters are the same.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

CHUNK = 32
"""Tokens a chunk: the most whose matrices stay in the registers of a block (docs/cuda.md)."""

ROWS = 16
"""Rows of a state that one block of threads carries; the least that a product takes."""

WARPS = {"scan": 1, "solve": 8, "walk": 4, "answer": 8}
"""Warps of a block."""


@triton.jit  # type: ignore[untyped-decorator]
def scan_kernel(
    r: tl.tensor, log_w: tl.tensor, k: tl.tensor, v: tl.tensor, kk: tl.tensor, a: tl.tensor,
    S: tl.tensor, y: tl.tensor, S_out: tl.tensor, T: tl.tensor,
    H: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr,
) -> None:  # fmt: skip
    """Program (b h, part): ROWS rows of one head's state in registers while the tokens pass."""
    head, part = tl.program_id(0), tl.program_id(1)
    n = tl.arange(0, N)
    rows = part * ROWS + tl.arange(0, ROWS)
    at = (head // H).to(tl.int64) * T * H * N + (head % H) * N
    cells = head.to(tl.int64) * N * N + rows[:, None] * N + n[None, :]
    s = tl.load(S + cells)
    for _ in range(T):
        w_t, k_t, kk_t = tl.exp(tl.load(log_w + at + n)), tl.load(k + at + n), tl.load(kk + at + n)
        b_t, r_t, v_t = kk_t * tl.load(a + at + n), tl.load(r + at + n), tl.load(v + at + rows)
        removed = tl.sum(s * kk_t[None, :], axis=1)
        s = s * w_t[None, :] - removed[:, None] * b_t[None, :] + v_t[:, None] * k_t[None, :]
        tl.store(y + at + rows, tl.sum(s * r_t[None, :], axis=1))
        at += H * N
    tl.store(S_out + cells, s)


@triton.jit  # type: ignore[untyped-decorator]
def power(x: tl.tensor) -> tl.tensor:
    """e^x of a float64 as float32. A card's exponential of float32 is off by |x| of its last bits, up to 20 here."""
    y = x * 1.4426950408889634  # log2 e
    whole = tl.floor(y + 0.5)
    return tl.exp2((y - whole).to(tl.float32)) * tl.exp2(whole.to(tl.float32))


@triton.jit  # type: ignore[untyped-decorator]
def inverse(M: tl.tensor, t: tl.tensor, LEVELS: tl.constexpr, PRECISION: tl.constexpr) -> tl.tensor:
    """(I - M)^-1 of a strictly lower triangular M, (2^LEVELS, 2^LEVELS).

    Diagonal blocks of size s are inverted; two neighbours and what stands below them give one of size 2 s:
    X21 = X22 M21 X11. That is substitution by blocks, as stable as by rows. The series I + M + M² + ... is not: where
    a key repeats, its terms grow like binomials and cancel.
    """
    i, j = t[:, None], t[None, :]
    X = tl.where(i == j, 1.0, 0.0) + tl.where(i // 2 == j // 2, M, 0.0)
    for level in tl.static_range(1, LEVELS):
        below = tl.where((i // (2 << level) == j // (2 << level)) & (i // (1 << level) != j // (1 << level)), M, 0.0)
        X += tl.dot(X, tl.dot(below, X, input_precision=PRECISION), input_precision=PRECISION)
    return X


@triton.jit  # type: ignore[untyped-decorator]
def solve_kernel(
    log_w: tl.tensor, k: tl.tensor, v: tl.tensor, kk: tl.tensor, a: tl.tensor,
    from_S: tl.tensor, from_v: tl.tensor, kept: tl.tensor, added: tl.tensor, T: tl.tensor, chunks: tl.tensor,
    H: tl.constexpr, N: tl.constexpr, L: tl.constexpr, LEVELS: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Program (chunk, b h): how a chunk changes the state, S kept + added, and its u_t, linear in S too.

    Tokens behind the prompt's end are zeros with a decay of 1, which change nothing.
    """
    c, head = tl.program_id(0), tl.program_id(1)
    t, n = tl.arange(0, L), tl.arange(0, N)
    inside = (c * L + t < T)[:, None]
    at = ((head // H).to(tl.int64) * T + c * L + t)[:, None] * H * N + (head % H) * N + n[None, :]
    log = tl.load(log_w + at, mask=inside, other=0.0).to(tl.float64)  # as in wkv.py: their sums need the bits
    log_P, last = tl.cumsum(log, axis=0), tl.sum(log, axis=0)
    middle = tl.sum(tl.where(t[:, None] == (L - 1) // 2, log_P, 0.0), axis=0)
    down = power(middle[None, :] - log_P)
    removal = tl.load(kk + at, mask=inside, other=0.0)
    A = -removal * power(log_P - log - middle[None, :])
    D = removal * tl.load(a + at, mask=inside, other=0.0) * down
    K = tl.load(k + at, mask=inside, other=0.0) * down
    V = tl.load(v + at, mask=inside, other=0.0)

    before = t[:, None] > t[None, :]
    AK = tl.where(before, tl.dot(A, tl.trans(K), input_precision=PRECISION), 0.0)
    AD = tl.where(before, tl.dot(A, tl.trans(D), input_precision=PRECISION), 0.0)
    X = inverse(AD, t, LEVELS, PRECISION)
    by_v = tl.dot(X, tl.dot(AK, V, input_precision=PRECISION), input_precision=PRECISION)
    by_S = tl.dot(X, A, input_precision=PRECISION)

    block = head.to(tl.int64) * chunks + c
    rows = block * L * N + t[:, None] * N + n[None, :]
    tl.store(from_v + rows, by_v)
    tl.store(from_S + rows, by_S)
    to_end = power(last - middle)[None, :]
    D, K = D * to_end, K * to_end
    cells = block * N * N + n[:, None] * N + n[None, :]
    more = tl.dot(tl.trans(V), K, input_precision=PRECISION)
    tl.store(added + cells, tl.dot(tl.trans(by_v), D, acc=more, input_precision=PRECISION))
    turned = tl.dot(tl.trans(by_S), D, input_precision=PRECISION) * power(middle)[:, None]
    P_last = power(last)[None, :]
    tl.store(kept + cells, turned + tl.where(n[:, None] == n[None, :], P_last, 0.0))


@triton.jit  # type: ignore[untyped-decorator]
def walk_kernel(
    kept: tl.tensor, added: tl.tensor, starts: tl.tensor, S: tl.tensor, S_out: tl.tensor, chunks: tl.tensor,
    N: tl.constexpr, ROWS: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Program (b h, part): ROWS rows of one head's state walk over the chunks; `starts` is it before each."""
    head, part = tl.program_id(0), tl.program_id(1)
    n = tl.arange(0, N)
    cells = (part * ROWS + tl.arange(0, ROWS))[:, None] * N + n[None, :]
    s = tl.load(S + head.to(tl.int64) * N * N + cells)
    for c in range(chunks):
        block = (head.to(tl.int64) * chunks + c) * N * N
        M = tl.load(kept + block + n[:, None] * N + n[None, :])
        more = tl.load(added + block + cells)
        tl.store(starts + block + cells, s)
        s = tl.dot(s, M, acc=more, input_precision=PRECISION)
    tl.store(S_out + head.to(tl.int64) * N * N + cells, s)


@triton.jit  # type: ignore[untyped-decorator]
def answer_kernel(
    r: tl.tensor, log_w: tl.tensor, k: tl.tensor, v: tl.tensor, kk: tl.tensor, a: tl.tensor,
    from_S: tl.tensor, from_v: tl.tensor, starts: tl.tensor, y: tl.tensor, T: tl.tensor, chunks: tl.tensor,
    H: tl.constexpr, N: tl.constexpr, L: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Program (chunk, b h): what every token of a chunk reads, given the state before it."""
    c, head = tl.program_id(0), tl.program_id(1)
    t, n = tl.arange(0, L), tl.arange(0, N)
    inside = (c * L + t < T)[:, None]
    at = ((head // H).to(tl.int64) * T + c * L + t)[:, None] * H * N + (head % H) * N + n[None, :]
    log_P = tl.cumsum(tl.load(log_w + at, mask=inside, other=0.0).to(tl.float64), axis=0)
    middle = tl.sum(tl.where(t[:, None] == (L - 1) // 2, log_P, 0.0), axis=0)
    up, down = power(log_P - middle[None, :]), power(middle[None, :] - log_P)
    block = head.to(tl.int64) * chunks + c
    S = tl.load(starts + block * N * N + n[:, None] * N + n[None, :]) * power(middle)[None, :]
    start = tl.trans(S)  # (N key, N value)
    rows = block * L * N + t[:, None] * N + n[None, :]
    u = tl.dot(tl.load(from_S + rows), start, acc=tl.load(from_v + rows), input_precision=PRECISION)

    within = t[:, None] >= t[None, :]
    R = tl.load(r + at, mask=inside, other=0.0) * up
    out = tl.dot(R, start, input_precision=PRECISION)
    D = tl.load(kk + at, mask=inside, other=0.0) * tl.load(a + at, mask=inside, other=0.0) * down
    RD = tl.where(within, tl.dot(R, tl.trans(D), input_precision=PRECISION), 0.0)
    out = tl.dot(RD, u, acc=out, input_precision=PRECISION)
    K = tl.load(k + at, mask=inside, other=0.0) * down
    RK = tl.where(within, tl.dot(R, tl.trans(K), input_precision=PRECISION), 0.0)
    V = tl.load(v + at, mask=inside, other=0.0)
    tl.store(y + at, tl.dot(RK, V, acc=out, input_precision=PRECISION), mask=inside)


def scan(inputs: tuple[Tensor, ...], S: Tensor) -> tuple[Tensor, Tensor]:
    """Token by token.

    Args:
        inputs: r, log w, k, v, κ̂, a, each (B, T, H, N) float32.
        S: (B, H, N, N) float32, the state before; not written to.

    Returns:
        y (B, T, H, N) and the state after the last token.
    """
    B, T, H, N = inputs[0].shape
    y, after = S.new_empty(B, T, H, N), torch.empty_like(S.contiguous())
    rows = min(N, ROWS)
    grid = (B * H, N // rows)
    scan_kernel[grid](*_flat(inputs), S.contiguous(), y, after, T, H=H, N=N, ROWS=rows, num_warps=WARPS["scan"])
    return y, after


def chunks(inputs: tuple[Tensor, ...], S: Tensor, exact: bool, L: int = CHUNK) -> tuple[Tensor, Tensor]:
    """In chunks of L tokens, a power of two; as `scan`.

    Args:
        inputs: as for `scan`.
        S: as for `scan`.
        exact: whether products are float32 throughout; else each factor is split in two of tensor-core format, which
            keeps some 21 bits.
        L: tokens a chunk.
    """
    B, T, H, N = inputs[0].shape
    r, *rest = flat = _flat(inputs)
    count, levels = triton.cdiv(T, L), L.bit_length() - 1
    precision = "ieee" if exact else "tf32x3"
    sizes = {"H": H, "N": N, "L": L, "PRECISION": precision}
    y, after = torch.empty_like(r), torch.empty_like(S.contiguous())
    from_S, from_v, kept, added, starts = (S.new_empty(B * H, count, edge, N) for edge in (L, L, N, N, N))
    grid = (count, B * H)
    solve_kernel[grid](*rest, from_S, from_v, kept, added, T, count, **sizes, LEVELS=levels, num_warps=WARPS["solve"])
    rows = min(N, ROWS)
    walk = {"N": N, "ROWS": rows, "PRECISION": precision, "num_warps": WARPS["walk"]}
    walk_kernel[B * H, N // rows](kept, added, starts, S.contiguous(), after, count, **walk)
    answer_kernel[grid](*flat, from_S, from_v, starts, y, T, count, **sizes, num_warps=WARPS["answer"])
    return y, after


def _flat(inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(z.contiguous() for z in inputs)
