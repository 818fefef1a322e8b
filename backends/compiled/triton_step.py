"""One token through RWKV-7 in Triton: the kernels. Imports triton; `step.py` launches them.

A token reads every weight once and computes next to nothing, so a launch has to be long or not there: everything
between two products is one kernel, and matrices that meet the same activations are one product. Sums are float32; what
is stored between kernels is in the activations' format.
"""

import triton
import triton.language as tl


@triton.jit  # type: ignore[untyped-decorator]
def normed(
    row: tl.tensor, weight: tl.tensor, bias: tl.tensor, n: tl.tensor, C: tl.constexpr, EPS: tl.constexpr
) -> tl.tensor:
    """Layer norm of a row of C."""
    apart = tl.where(n < C, row - tl.sum(row, axis=0) / C, 0.0)
    scaled = apart / tl.sqrt(tl.sum(apart * apart, axis=0) / C + EPS)
    w = tl.load(weight + n, mask=n < C, other=0.0).to(tl.float32)
    return scaled * w + tl.load(bias + n, mask=n < C, other=0.0).to(tl.float32)


@triton.jit  # type: ignore[untyped-decorator]
def embed_kernel(
    ids: tl.tensor, table: tl.tensor, weight: tl.tensor, bias: tl.tensor, x: tl.tensor,
    C: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Program b: a row of the table, which may lie in the host's pinned memory, through ln0."""
    b, n = tl.program_id(0), tl.arange(0, BLOCK)
    row = tl.load(table + tl.load(ids + b) * C + n, mask=n < C, other=0.0).to(tl.float32)
    tl.store(x + b * C + n, normed(row, weight, bias, n, C, EPS).to(x.dtype.element_ty), mask=n < C)


@triton.jit  # type: ignore[untyped-decorator]
def shift_kernel(
    x: tl.tensor, weight: tl.tensor, bias: tl.tensor, last: tl.tensor, mixes: tl.tensor, out: tl.tensor,
    C: tl.constexpr, MIXES: tl.constexpr, EPS: tl.constexpr, BLOCK: tl.constexpr,
) -> None:  # fmt: skip
    """Program b: norm, then MIXES token shifts, (B, MIXES, C). `last`, (B, C), becomes the normed row.

    Without mixes the normed row itself goes out.
    """
    b, n = tl.program_id(0), tl.arange(0, BLOCK)
    kind = out.dtype.element_ty
    h = normed(tl.load(x + b * C + n, mask=n < C, other=0.0).to(tl.float32), weight, bias, n, C, EPS).to(kind)
    if MIXES == 0:
        tl.store(out + b * C + n, h, mask=n < C)
    else:
        before = tl.load(last + b * C + n, mask=n < C, other=0.0).to(tl.float32)
        tl.debug_barrier()  # read by every thread that has a copy, before one of them writes
        tl.store(last + b * C + n, h, mask=n < C)
        h = h.to(tl.float32)
        for j in tl.static_range(MIXES):
            share = tl.load(mixes + j * C + n, mask=n < C, other=0.0).to(tl.float32)
            tl.store(out + (b * MIXES + j) * C + n, (h + (before - h) * share).to(kind), mask=n < C)


@triton.jit  # type: ignore[untyped-decorator]
def followed(z: tl.tensor, act: tl.tensor) -> tl.tensor:
    """What stands behind a product: 1 tanh, 2 sigmoid, 3 the square of relu, else nothing."""
    e = tl.exp(-2.0 * tl.abs(z))
    bent = (1.0 - e) / (1.0 + e)
    square = z * z
    near = z * (1.0 - square * (1.0 / 3 - square * (2.0 / 15 - square * (17.0 / 315))))  # where 1 - e cancels
    tanh = tl.where(tl.abs(z) < 0.1, near, tl.where(z < 0, -bent, bent))
    positive = tl.maximum(z, 0.0)
    z = tl.where(act == 1, tanh, tl.where(act == 2, tl.sigmoid(z), z))
    return tl.where(act == 3, positive * positive, z)


@triton.jit  # type: ignore[untyped-decorator]
def product_kernel(
    x: tl.tensor, W: tl.tensor, table: tl.tensor, out: tl.tensor, B: tl.tensor, x_stride: tl.tensor,
    out_stride: tl.tensor, ENTRY: tl.constexpr, ROWS: tl.constexpr, DEPTH: tl.constexpr, BATCH: tl.constexpr,
    STAGES: tl.constexpr, ADD: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
) -> None:  # fmt: skip
    """Program (block of rows, block of the batch): out = act(x Wᵀ), or with ADD out += x Wᵀ.

    The table says of every block: where its weights begin, how many inputs a row has (a multiple of 16, as all offsets
    are), where its input and its output begin in a row of the batch, how many of its rows are real, what follows. So
    matrices of several shapes with several inputs are one launch. Weights may be read beyond a matrix, never beyond W.

    BATCH 1 is a sum in registers, more is a product of 16 rows or more. WIDE: factors as float32, for the interpreter.
    """
    entry = table + tl.program_id(0) * ENTRY
    begin, K = tl.multiple_of(tl.load(entry), 16), tl.multiple_of(tl.load(entry + 1), 16)
    source = tl.multiple_of(tl.load(entry + 2), 16)
    target = tl.multiple_of(tl.load(entry + 3), 16 if ROWS > 16 else ROWS)  # of a block inside a matrix
    real, act = tl.load(entry + 4), tl.load(entry + 5)
    row, depth = tl.arange(0, ROWS), tl.arange(0, DEPTH)
    weights = W + begin + row[:, None] * K + depth[None, :]
    if BATCH == 1:
        total = tl.zeros((ROWS, DEPTH), tl.float32)
        for d in tl.range(0, K, DEPTH, num_stages=STAGES):  # so many loads are under way
            inside = d + depth < K
            w = tl.load(weights + d, mask=inside[None, :], other=0.0).to(tl.float32)
            total += w * tl.load(x + source + d + depth, mask=inside, other=0.0).to(tl.float32)[None, :]
        z = followed(tl.sum(total, axis=1), act)
        place = out + target + row
        if ADD:
            z += tl.load(place, mask=row < real, other=0.0).to(tl.float32)
        tl.store(place, z.to(out.dtype.element_ty), mask=row < real)
    else:
        b = tl.program_id(1) * BATCH + tl.arange(0, BATCH)
        inputs = x + b[:, None] * x_stride + source + depth[None, :]
        many = tl.zeros((BATCH, ROWS), tl.float32)
        for d in tl.range(0, K, DEPTH, num_stages=STAGES):
            inside = (d + depth < K)[None, :]
            w = tl.load(weights + d, mask=inside, other=0.0)
            z = tl.load(inputs + d, mask=inside & (b < B)[:, None], other=0.0)
            if WIDE:
                w, z = w.to(tl.float32), z.to(tl.float32)
            many = tl.dot(z, tl.trans(w), acc=many, input_precision=PRECISION)
        many = followed(many, act)
        places = out + b[:, None] * out_stride + target + row[None, :]
        valid = (b < B)[:, None] & (row < real)[None, :]
        if ADD:
            many += tl.load(places, mask=valid, other=0.0).to(tl.float32)
        tl.store(places, many.to(out.dtype.element_ty), mask=valid)


@triton.jit  # type: ignore[untyped-decorator]
def attend_kernel(
    proj: tl.tensor, low: tl.tensor, vectors: tl.tensor, S: tl.tensor, v_first: tl.tensor, y: tl.tensor,
    bonus: tl.tensor, stride: tl.tensor, H: tl.constexpr, N: tl.constexpr, ROWS: tl.constexpr, FIRST: tl.constexpr,
    DECAY: tl.constexpr, FLOOR: tl.constexpr, EPS: tl.constexpr,
) -> None:  # fmt: skip
    """Program (b h, part): ROWS rows of one head, from the projections on; the state is written in place.

    proj is (B, stride), r k v in front; low (B, 4, C), the low-rank outputs w a g v; vectors (8, C) float32: w0 a0 v0
    k_k k_a r_k, weight and bias of the group norm; S (B, H, N, N); v_first (B, C) float32, written in layer 0 (FIRST),
    read in the others. A program that has a whole head writes the gated output to y, (B, C). Else y takes what the head
    reads and bonus its bonus, both float32, and `finish_kernel` does the rest.
    """
    head, part = tl.program_id(0), tl.program_id(1)
    C: tl.constexpr = H * N
    b, h = head // H, head % H
    n, m = h * N + tl.arange(0, N), h * N + part * ROWS + tl.arange(0, ROWS)
    ours, own = proj + b * stride, low + b * 4 * C
    w = tl.exp(-DECAY * tl.sigmoid(tl.load(vectors + n) + tl.load(own + n).to(tl.float32)))
    a = tl.sigmoid(tl.load(vectors + C + n) + tl.load(own + C + n).to(tl.float32))
    r, k = tl.load(ours + n).to(tl.float32), tl.load(ours + C + n).to(tl.float32)
    v = tl.load(ours + 2 * C + m).to(tl.float32)
    if FIRST:
        tl.store(v_first + b * C + m, v)
    else:
        share = tl.sigmoid(tl.load(vectors + 2 * C + m) + tl.load(own + 3 * C + m).to(tl.float32))
        v += (tl.load(v_first + b * C + m) - v) * share
    kk = k * tl.load(vectors + 3 * C + n)
    kk = kk / tl.maximum(tl.sqrt(tl.sum(kk * kk, axis=0)), FLOOR)
    k = k * (1 + (a - 1) * tl.load(vectors + 4 * C + n))

    rows = part * ROWS + tl.arange(0, ROWS)
    cells = S + head.to(tl.int64) * N * N + rows[:, None] * N + tl.arange(0, N)[None, :]
    s = tl.load(cells)
    tl.debug_barrier()  # as above: in small heads several threads have the same entry
    removed = tl.sum(s * kk[None, :], axis=1)
    s = s * w[None, :] - removed[:, None] * (kk * a)[None, :] + v[:, None] * k[None, :]
    tl.store(cells, s)
    read = tl.sum(s * r[None, :], axis=1)
    more = v * tl.sum(r * k * tl.load(vectors + 5 * C + n), axis=0)
    if ROWS == N:
        z = grouped(read, more, vectors + 6 * C + m, vectors + 7 * C + m, N, EPS)
        tl.store(y + b * C + m, (z * tl.load(own + 2 * C + m).to(tl.float32)).to(y.dtype.element_ty))
    else:
        tl.store(y + b * C + m, read)
        tl.store(bonus + b * C + m, more)


@triton.jit  # type: ignore[untyped-decorator]
def grouped(
    read: tl.tensor, bonus: tl.tensor, weight: tl.tensor, bias: tl.tensor, N: tl.constexpr, EPS: tl.constexpr
) -> tl.tensor:
    """The norm of one head, and the bonus behind it."""
    apart = read - tl.sum(read, axis=0) / N
    scaled = apart / tl.sqrt(tl.sum(apart * apart, axis=0) / N + EPS)
    return scaled * tl.load(weight) + tl.load(bias) + bonus


@triton.jit  # type: ignore[untyped-decorator]
def finish_kernel(
    read: tl.tensor, bonus: tl.tensor, low: tl.tensor, vectors: tl.tensor, y: tl.tensor,
    H: tl.constexpr, N: tl.constexpr, EPS: tl.constexpr,
) -> None:  # fmt: skip
    """Program b h: norm, bonus and gate of a head whose rows several programs had."""
    b, h = tl.program_id(0) // H, tl.program_id(0) % H
    C: tl.constexpr = H * N
    n = h * N + tl.arange(0, N)
    z = grouped(tl.load(read + b * C + n), tl.load(bonus + b * C + n), vectors + 6 * C + n, vectors + 7 * C + n, N, EPS)
    tl.store(y + b * C + n, (z * tl.load(low + (b * 4 + 2) * C + n).to(tl.float32)).to(y.dtype.element_ty))


@triton.jit  # type: ignore[untyped-decorator]
def sparse_kernel(
    k: tl.tensor, W: tl.tensor, sums: tl.tensor, zeros: tl.tensor, F: tl.tensor, C: tl.tensor,
    COLUMNS: tl.constexpr, DEPTH: tl.constexpr, EACH: tl.constexpr, STAGES: tl.constexpr,
) -> None:  # fmt: skip
    """Program (columns, part): one row times W, (F, C), over EACH of its inputs; rows of W at a zero are not read.

    A load that is masked off fetches nothing, and the mask covers whole rows of W. Sums go to `sums`, (parts, C);
    `zeros` counts the rows spared, for the bench.
    """
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    part, depth = tl.program_id(1), tl.arange(0, DEPTH)
    C, F = tl.multiple_of(C, 16), tl.multiple_of(F, 16)
    total = tl.zeros((DEPTH, COLUMNS), tl.float32)
    spared = tl.zeros((DEPTH,), tl.int32)
    for d in tl.range(0, EACH, DEPTH, num_stages=STAGES):
        f = part * EACH + d + depth
        z = tl.load(k + f, mask=f < F, other=0.0).to(tl.float32)
        read = (z != 0.0)[:, None] & (c < C)[None, :]
        w = tl.load(W + f.to(tl.int64)[:, None] * C + c[None, :], mask=read, other=0.0)
        total += w.to(tl.float32) * z[:, None]
        spared += ((z == 0.0) & (f < F)).to(tl.int32)
    tl.store(sums + part * C + c, tl.sum(total, axis=0), mask=c < C)
    if tl.program_id(0) == 0:
        tl.atomic_add(zeros, tl.sum(spared, axis=0).to(tl.int64))


@triton.jit  # type: ignore[untyped-decorator]
def collect_kernel(sums: tl.tensor, x: tl.tensor, C: tl.tensor, PARTS: tl.constexpr, COLUMNS: tl.constexpr) -> None:
    """Program columns: x += the sum over parts, in a fixed order."""
    c = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((COLUMNS,), tl.float32)
    for part in range(PARTS):
        total += tl.load(sums + part * C + c, mask=c < C, other=0.0)
    place = x + c
    total += tl.load(place, mask=c < C, other=0.0).to(tl.float32)
    tl.store(place, total.to(x.dtype.element_ty), mask=c < C)
