/* y = x W^T: activations x (columns, K), a matrix W (rows, K), y (columns, rows).
 *
 * W lies in panels of ROWS rows: the first weight of every row, the second of every row, and so on (two at a time in
 * bf16). A kernel reads a panel in one stream (two streams at a time already halve what memory gives), and lanes are
 * rows, so that nothing is summed over lanes. K is a multiple of STEP, with zeros where a checkpoint has no weights.
 *
 * A tile of ROWS x COLUMNS sums stays in registers while SHORT weights of each row pass by, and is then added to the
 * sums of those before: short sums lose fewer digits than a long one. Each sum has its own lane and the same order
 * of additions in every tile, so a result depends neither on the number of columns nor on that of threads. */
#ifndef MATMUL_H
#define MATMUL_H

#include "vec.h"

#define VECTORS 2
#define ROWS (VECTORS * LANES)
#if LANES == 16
#define COLUMNS 12 /* 24 of 32 registers */
#else
#define COLUMNS 6 /* 12 of 16 */
#endif
#define SHORT 256
#define FEW (sizeof(weight) == 4 ? 3 : 4) /* columns up to which hardware alone keeps up */
#define FAR 8192                          /* bytes */

/* What a tile asks memory for besides, into the second-level cache. */
struct ahead {
    int bytes;          /* of its own stream; 0 where the panel is near already */
    const weight *next; /* the panel that this thread needs a block later, or NULL; */
    int turn, turns;    /* tiles that share that panel, and which of them this is */
};

INLINE void ask(const weight *p) {
    for (int i = 0; i < ROWS * STEP; i += 64 / (int)sizeof(weight)) __builtin_prefetch(p + i, 0, 2);
}

/* Sums of one tile, out[column][row]; `columns` is a constant wherever this is expanded. */
INLINE void tile(int columns, int K, const weight *W, const weight *x, int stride, vec out[][VECTORS],
                 struct ahead ahead) {
    for (int c = 0; c < columns; c++)
        for (int i = 0; i < VECTORS; i++) out[c][i] = (vec){0};
    for (int start = 0; start < K; start += SHORT) {
        const int end = start + SHORT < K ? start + SHORT : K;
        vec y[COLUMNS][VECTORS];
#pragma GCC unroll 12
        for (int c = 0; c < columns; c++)
#pragma GCC unroll 2
            for (int i = 0; i < VECTORS; i++) y[c][i] = (vec){0};
        for (int k = start; k < end; k += STEP, W += ROWS * STEP) {
            if (columns > FEW && ahead.bytes) ask((const weight *)((const char *)W + ahead.bytes));
            if (ahead.next && ahead.turn-- == 0) {
                ahead.turn = ahead.turns - 1;
                ask(ahead.next + (size_t)k * ROWS);
            }
            word w[VECTORS];
#pragma GCC unroll 2
            for (int i = 0; i < VECTORS; i++) w[i] = words(W + i * LANES * STEP);
#pragma GCC unroll 12
            for (int c = 0; c < columns; c++) {
                const word z = spread(x + (size_t)c * stride + k);
#pragma GCC unroll 2
                for (int i = 0; i < VECTORS; i++) y[c][i] = dot(y[c][i], w[i], z);
            }
        }
#pragma GCC unroll 12
        for (int c = 0; c < columns; c++)
#pragma GCC unroll 2
            for (int i = 0; i < VECTORS; i++) out[c][i] += y[c][i];
    }
}

/* What is done with a sum before it is kept. */
enum after { KEEP, TANH, SIGMOID, SQUARED_RELU, ADD };

struct matmul {
    int rows, K;
    const weight *W, *x;
    int stride; /* of x: from column to column */
    enum after after;
    float *y;        /* (columns, rows), unless the result meets the next matrix: */
    weight *narrowed; /* (columns, width) */
    int width;
};

/* Keep the sums of a column for `rows` rows, at most LANES. */
INLINE void keep(const struct matmul *m, int column, int row, vec y, int rows) {
    float *at = m->y + (size_t)column * m->rows + row;
    switch (m->after) {
    case KEEP: store_n(at, y, rows); break;
    case TANH: store_n(at, v_tanh(y), rows); break;
    case SIGMOID: store_n(at, v_sigmoid(y), rows); break;
    case ADD: store_n(at, load_n(at, rows) + y, rows); break;
    case SQUARED_RELU:
        y = choose(y < 0.0f, (vec){0}, y); /* NaN is not less and stays */
        store_narrowed(m->narrowed + (size_t)column * m->width + row, y * y, rows);
    }
}

static void tiles(const struct matmul *m, int row, int columns, int column, struct ahead ahead) {
    const weight *W = m->W + (size_t)row * m->K, *x = m->x + (size_t)column * m->stride;
    vec out[COLUMNS][VECTORS];
    switch (columns) {
#define CASE(n) case n: tile(n, m->K, W, x, m->stride, out, ahead); break
        CASE(1); CASE(2); CASE(3); CASE(4); CASE(5); CASE(6);
#if COLUMNS > 6
        CASE(7); CASE(8); CASE(9); CASE(10); CASE(11); CASE(12);
#endif
#undef CASE
    }
    for (int i = 0; i < VECTORS && row < m->rows; i++, row += LANES)
        for (int c = 0; c < columns; c++) keep(m, column + c, row, out[c][i], m->rows - row);
}

#define BLOCK 32            /* rows a job, where arithmetic decides; */
#define PORTION (96 * 1024) /* bytes, where memory does */

INLINE int block_rows(const struct matmul *m, int columns) {
    int rows = (int)(PORTION / (m->K * sizeof(weight))) / ROWS * ROWS;
    return columns > COLUMNS ? BLOCK : rows ? rows : ROWS;
}

INLINE int jobs_of(const struct matmul *m, int columns) {
    int rows = block_rows(m, columns);
    return (m->rows + rows - 1) / rows;
}

INLINE const weight *block_of(const struct matmul *m, int job, int columns) {
    return m->W + (size_t)job * block_rows(m, columns) * m->K;
}

/* One block of rows for all columns. A tile's activations stay near while the block's rows pass. All tiles but the
 * first find the block in the cache; they share the fetching of `next`, the block after it; NULL for none. */
static void matmul_job(const struct matmul *m, int job, int columns, const weight *next) {
    const int rows = block_rows(m, columns), start = job * rows, end = start + rows < m->rows ? start + rows : m->rows;
    int tiles_after_first = (columns - 1) / COLUMNS;
    for (int c = 0, turn = -1; c < columns; c += COLUMNS, turn++)
        for (int row = start; row < end; row += ROWS) {
            struct ahead ahead = {c ? 0 : FAR, NULL, turn, tiles_after_first};
            if (c && next) ahead.next = next + (size_t)(row - start) * m->K;
            tiles(m, row, columns - c < COLUMNS ? columns - c : COLUMNS, c, ahead);
        }
}

#endif
