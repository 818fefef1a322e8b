/* y = x W^T where much of x is zero, as behind a squared ReLU: what would be multiplied by zero is left out.
 *
 * Marks say which words of a column are not zero; a word holds STEP activations. NEAR words of GROUP panels are laid
 * side by side where the first-level cache keeps them for all columns of a job, and a column's sums stay in registers
 * while it goes through its marks. Sums are taken in the order of matmul.h, and a product with zero adds nothing: the
 * bits are the same, unless a weight is infinite or NaN. Matrices that hold such are not multiplied here. */
#ifndef SKIP_H
#define SKIP_H

#include "matmul.h"

#if LANES == 16
#include <immintrin.h>
#endif

#define LONG 64  /* columns from which it pays: all of them meet what was fetched once */
#define SPAN 128 /* columns a job, at most */
#define GROUP 6  /* panels */
#define NEAR 32  /* words: bits of a mark */

/* With more words than this share, leaving out costs more than it saves. */
INLINE int sparse(long set, long words) { return set * 8 < words * 5; }

INLINE int marks_of(int K) { return (K / STEP + NEAR - 1) / NEAR; }

/* Mark the words of one column; returns how many are not zero. */
INLINE int mark(const weight *x, int words, uint32_t *marks) {
    int set = 0;
    for (int k = 0; k < words; k += NEAR) {
        uint32_t bits = 0;
#if LANES == 16
        for (int i = 0; i < NEAR && k + i < words; i += LANES) {
            const __m512i some = (__m512i)load_n((const float *)(x + (size_t)(k + i) * STEP), words - k - i);
            bits |= (uint32_t)_mm512_test_epi32_mask(some, some) << i;
        }
#else
        for (int i = 0; i < NEAR && k + i < words; i++) {
            uint32_t word;
            memcpy(&word, x + (size_t)(k + i) * STEP, sizeof word);
            bits |= (uint32_t)(word != 0) << i;
        }
#endif
        marks[k / NEAR] = bits;
        set += __builtin_popcount(bits);
    }
    return set;
}

/* Some words of some panels, side by side. */
INLINE void collect(int panels, const struct matmul *m, int row, int word, int count, weight *out) {
    const size_t size = ROWS * STEP;
    const weight *W = m->W + (size_t)row * m->K + word * size;
    for (int k = 0; k < count; k++)
        for (int p = 0; p < panels; p++, out += size)
            memcpy(out, W + (size_t)p * ROWS * m->K + k * size, size * sizeof(weight));
}

/* Rows from `row` on of `panels` panels for some columns; `panels` is a constant wherever this is expanded. */
INLINE void group(int panels, const struct matmul *m, const uint32_t *marks, int row, int column, int columns) {
    const int words_ = m->K / STEP, portion = SHORT / STEP, V = panels * VECTORS;
    vec part[SPAN][GROUP * VECTORS], total[SPAN][GROUP * VECTORS];
    weight W[NEAR * GROUP * ROWS * STEP] __attribute__((aligned(64)));
    for (int k = 0; k < words_; k += NEAR) {
        const int first = k % portion == 0, last = (k + NEAR) % portion == 0 || k + NEAR >= words_;
        collect(panels, m, row, k, words_ - k < NEAR ? words_ - k : NEAR, W);
        for (int c = 0; c < columns; c++) {
            const weight *x = m->x + (size_t)(column + c) * m->stride + (size_t)k * STEP;
            vec *to = last ? total[c] : part[c], s[GROUP * VECTORS];
#pragma GCC unroll 12
            for (int i = 0; i < V; i++) s[i] = first ? (vec){0} : part[c][i];
            for (uint32_t bits = marks[(size_t)(column + c) * marks_of(m->K) + k / NEAR]; bits; bits &= bits - 1) {
                const int set = __builtin_ctz(bits);
                const word z = spread(x + set * STEP);
#pragma GCC unroll 12
                for (int i = 0; i < V; i++) s[i] = dot(s[i], words(W + (set * V + i) * LANES * STEP), z);
            }
            if (last && k >= portion)
#pragma GCC unroll 12
                for (int i = 0; i < V; i++) s[i] = to[i] + s[i];
#pragma GCC unroll 12
            for (int i = 0; i < V; i++) to[i] = s[i];
        }
    }
    for (int i = 0; i < V && row + i * LANES < m->rows; i++)
        for (int c = 0; c < columns; c++) keep(m, column + c, row + i * LANES, total[c][i], m->rows - row - i * LANES);
}

/* Columns a job: fewer where there would be too few jobs for the threads. */
INLINE int span_of(const struct matmul *m, int columns, int threads) {
    const int groups = (m->rows + GROUP * ROWS - 1) / (GROUP * ROWS);
    int span = SPAN;
    while (span > 16 && groups * ((columns + span - 1) / span) < 4 * threads) span /= 2;
    return span;
}

/* One job; returns 0 if there is none of that number. */
static int skip_job(const struct matmul *m, const uint32_t *marks, int job, int columns, int span) {
    const int spans = (columns + span - 1) / span, column = job % spans * span, row = job / spans * GROUP * ROWS;
    if (row >= m->rows) return 0;
    const int some = columns - column < span ? columns - column : span;
    switch ((m->rows - row + ROWS - 1) / ROWS) {
#define CASE(n) case n: group(n, m, marks, row, column, some); break
        CASE(1); CASE(2); CASE(3); CASE(4); CASE(5);
#undef CASE
    default: group(GROUP, m, marks, row, column, some);
    }
    return 1;
}

#endif
