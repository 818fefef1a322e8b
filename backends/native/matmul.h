/* y = x W^T: activations x (columns, K), a matrix W (rows, K), y (columns, rows).
 *
 * W lies in panels of ROWS rows, STEP weights of each row in turn, so that a kernel reads it in one stream: two streams
 * at a time already halve what memory gives. K is a multiple of STEP, with zeros where a checkpoint has no weights.
 *
 * A tile of ROWS x COLUMNS sums stays in registers while K passes by. Each sum has its own register and the same order
 * of additions in every tile, so a result depends neither on the number of columns nor on that of threads. */
#ifndef MATMUL_H
#define MATMUL_H

#include "vec.h"

#define ROWS 4
#if LANES == 16
#define COLUMNS 6 /* 24 of 32 registers */
#else
#define COLUMNS 3 /* 12 of 16 */
#endif

/* out[column][row] of one tile; `columns` is a constant wherever this is expanded. */
INLINE void tile(int columns, int K, const weight *W, const weight *x, float out[][ROWS]) {
    vec y[COLUMNS][ROWS];
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++)
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) y[c][i] = (vec){0};
    for (int k = 0; k < K; k += STEP, W += ROWS * STEP) {
        word w[ROWS];
#pragma GCC unroll 8
        for (int i = 0; i < ROWS; i++) w[i] = words(W + i * STEP);
#pragma GCC unroll 8
        for (int c = 0; c < columns; c++) {
            word z = words(x + (size_t)c * K + k);
#pragma GCC unroll 8
            for (int i = 0; i < ROWS; i++) y[c][i] = dot(y[c][i], w[i], z);
        }
    }
#pragma GCC unroll 8
    for (int c = 0; c < columns; c++) sums(out[c], y[c][0], y[c][1], y[c][2], y[c][3]);
}

/* What is done with a sum before it is kept. */
enum after { KEEP, TANH, SIGMOID, SQUARED_RELU, ADD };

struct matmul {
    int rows, K;
    const weight *W, *x;
    enum after after;
    float *y;        /* (columns, rows), unless the result meets the next matrix: */
    weight *narrowed; /* (columns, width) */
    int width;
};

INLINE void keep(const struct matmul *m, int column, int row, float y) {
    float *at = m->y + (size_t)column * m->rows + row;
    switch (m->after) {
    case KEEP: *at = y; break;
    case TANH: *at = tanhf(y); break;
    case SIGMOID: *at = 1.0f / (1.0f + expf(-y)); break;
    case SQUARED_RELU: m->narrowed[(size_t)column * m->width + row] = narrow(y < 0.0f ? 0.0f : y * y); break;
    case ADD: *at += y; break;
    }
}

static void tiles(const struct matmul *m, int row, int columns, int column) {
    const weight *W = m->W + (size_t)row * m->K, *x = m->x + (size_t)column * m->K;
    float out[COLUMNS][ROWS];
    switch (columns) {
    case 1: tile(1, m->K, W, x, out); break;
    case 2: tile(2, m->K, W, x, out); break;
    case 3: tile(3, m->K, W, x, out); break;
#if COLUMNS > 3
    case 4: tile(4, m->K, W, x, out); break;
    case 5: tile(5, m->K, W, x, out); break;
    case 6: tile(6, m->K, W, x, out); break;
#endif
    }
    int rows = m->rows - row < ROWS ? m->rows - row : ROWS;
    for (int c = 0; c < columns; c++)
        for (int i = 0; i < rows; i++) keep(m, column + c, row + i, out[c][i]);
}

#define BLOCK 32 /* rows a job */

INLINE int jobs_of(const struct matmul *m) { return (m->rows + BLOCK - 1) / BLOCK; }

/* One block of rows for all columns; a tile's activations stay near while the block's rows pass. */
static void matmul_job(const struct matmul *m, int job, int columns) {
    int start = job * BLOCK, end = start + BLOCK < m->rows ? start + BLOCK : m->rows;
    for (int c = 0; c < columns; c += COLUMNS)
        for (int row = start; row < end; row += ROWS)
            tiles(m, row, columns - c < COLUMNS ? columns - c : COLUMNS, c);
}

#endif
