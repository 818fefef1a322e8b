/* y = x W^T where much of x is zero, as behind a squared ReLU: what would be multiplied by zero is left out.
 *
 * Marks say which words of a column are not zero; a word holds STEP activations. Sums are taken in the order of
 * matmul.h, and a product with zero adds nothing: the bits are the same, unless a weight is infinite or NaN. Matrices
 * that hold such are not multiplied here.
 *
 * Many columns leave out arithmetic: NEAR words of GROUP panels are laid side by side, 32 KiB at most, so that they stay
 * in the nearest caches for all columns of a job, and a column's sums stay in registers while it goes through its marks.
 *
 * A single column leaves weights unread: every panel is read at its words alone, where these fill cache lines. */
#ifndef SKIP_H
#define SKIP_H

#include "matmul.h"

#if LANES == 16
#include <immintrin.h>
#endif

#define LONG 64        /* columns from which it pays: all of them meet what was fetched once */
#define SPAN 256       /* columns a job, at most */
#define GROUP 4        /* panels */
#define NEAR 64        /* words: bits of a mark */
#ifndef MOST
#define MOST (1 << 15) /* words that a list has room for */
#endif
#define SOON 16        /* of them: how far ahead memory is asked */

/* With more words than this share, leaving out costs more than it saves. */
INLINE int sparse(long set, long words) { return set * 16 < words * 11; }

INLINE int marks_of(int K) { return (K / STEP + NEAR - 1) / NEAR; }

/* Mark the words of one column; returns how many are not zero. */
INLINE int mark(const weight *x, int words, uint64_t *marks) {
    int set = 0;
    for (int k = 0; k < words; k += NEAR) {
        uint64_t bits = 0;
#if LANES == 16
        for (int i = 0; i < NEAR && k + i < words; i += LANES) {
            const __m512i some = (__m512i)load_n((const float *)(x + (size_t)(k + i) * STEP), words - k - i);
            bits |= (uint64_t)_mm512_test_epi32_mask(some, some) << i;
        }
#else
        for (int i = 0; i < NEAR && k + i < words; i++) {
            uint32_t word;
            memcpy(&word, x + (size_t)(k + i) * STEP, sizeof word);
            bits |= (uint64_t)(word != 0) << i;
        }
#endif
        marks[k / NEAR] = bits;
        set += __builtin_popcountll(bits);
    }
    return set;
}

/* The words of one column that are not zero. */
struct list {
    int count;
    int ends[MOST * STEP / SHORT]; /* of every portion of SHORT weights: how many there are up to there */
    uint16_t words[MOST + SOON];  /* SOON more of the last */
};

/* List them; 0 if they are too many for it to pay: what is skipped has to make up for the order, in which memory gives
 * half of its rate. */
static int list_words(const struct matmul *m, struct list *list) {
    const int words_ = m->K / STEP, portion = SHORT / STEP;
    uint64_t marks[MOST / NEAR];
    int n = 0;
    if (ROWS * sizeof(word) / LANES < 64 || words_ > MOST || mark(m->x, words_, marks) * 8 > words_ * 3) return 0;
    for (int i = 0; i < marks_of(m->K); i++) {
        for (uint64_t bits = marks[i]; bits; bits &= bits - 1) list->words[n++] = i * NEAR + __builtin_ctzll(bits);
        list->ends[i * NEAR / portion] = n;
    }
    for (int i = 0; i < SOON; i++) list->words[n + i] = n ? list->words[n - 1] : 0;
    list->count = n;
    return 1;
}

/* One panel; returns 0 if there is none of that number. */
static int list_job(const struct matmul *m, const struct list *list, int job) {
    const int row = job * ROWS;
    const weight *W = m->W + (size_t)row * m->K;
    if (row >= m->rows) return 0;
    vec total[VECTORS] = {{0}};
    for (int p = 0, at = 0; p * SHORT < m->K; p++) {
        vec part[VECTORS] = {{0}};
        for (; at < list->ends[p]; at++) {
            const int k = list->words[at] * STEP;
            const word z = spread(m->x + k);
            ask(W + (size_t)list->words[at + SOON] * STEP * ROWS);
            for (int i = 0; i < VECTORS; i++) part[i] = dot(part[i], words(W + (size_t)k * ROWS + i * LANES * STEP), z);
        }
        for (int i = 0; i < VECTORS; i++) total[i] += part[i];
    }
    for (int i = 0; i < VECTORS && row + i * LANES < m->rows; i++)
        keep(m, 0, row + i * LANES, total[i], m->rows - row - i * LANES);
    return 1;
}

/* Some words of some panels, side by side. */
INLINE void collect(int panels, const struct matmul *m, int row, int word, int count, weight *out) {
    const size_t size = ROWS * STEP;
    const weight *W = m->W + (size_t)row * m->K + word * size;
    for (int k = 0; k < count; k++)
        for (int p = 0; p < panels; p++, out += size)
            memcpy(out, W + (size_t)p * ROWS * m->K + k * size, size * sizeof(weight));
}

/* One column's share of asking for what is collected next, into the second-level cache. */
INLINE void ask_share(int panels, const struct matmul *m, int row, int word, int count, int column, int columns) {
    const int size = ROWS * STEP * sizeof(weight), lines = count * size / 64, each = (lines + columns - 1) / columns;
    const char *W = (const char *)(m->W + (size_t)row * m->K) + (size_t)word * size;
    for (int p = 0; p < panels; p++)
        for (int i = column * each; i < (column + 1) * each && i < lines; i++)
            __builtin_prefetch(W + (size_t)p * ROWS * m->K * sizeof(weight) + i * 64, 0, 2);
}

/* Rows from `row` on of `panels` panels for some columns; `panels` is a constant wherever this is expanded. */
INLINE void group(int panels, const struct matmul *m, const uint64_t *marks, int row, int column, int columns) {
    const int words_ = m->K / STEP, portion = SHORT / STEP, V = panels * VECTORS;
    vec part[SPAN][GROUP * VECTORS], total[SPAN][GROUP * VECTORS];
    weight W[NEAR * GROUP * ROWS * STEP] __attribute__((aligned(64)));
    for (int k = 0; k < words_; k += NEAR) {
        const int first = k % portion == 0, last = (k + NEAR) % portion == 0 || k + NEAR >= words_;
        collect(panels, m, row, k, words_ - k < NEAR ? words_ - k : NEAR, W);
        const int left = words_ - k - NEAR, then = left < NEAR ? left : NEAR;
        for (int c = 0; c < columns; c++) {
            const weight *x = m->x + (size_t)(column + c) * m->stride + (size_t)k * STEP;
            for (int i = 0; i < NEAR * 4; i += 64) __builtin_prefetch((const char *)(x + m->stride) + i);
            if (then > 0) ask_share(panels, m, row, k + NEAR, then, c, columns);
            vec *to = last ? total[c] : part[c], s[GROUP * VECTORS];
#pragma GCC unroll 8
            for (int i = 0; i < V; i++) s[i] = first ? (vec){0} : part[c][i];
            for (uint64_t bits = marks[(size_t)(column + c) * marks_of(m->K) + k / NEAR]; bits; bits &= bits - 1) {
                const int set = __builtin_ctzll(bits);
                const word z = spread(x + set * STEP);
#pragma GCC unroll 8
                for (int i = 0; i < V; i++) s[i] = dot(s[i], words(W + (set * V + i) * LANES * STEP), z);
            }
            if (last && k >= portion)
#pragma GCC unroll 8
                for (int i = 0; i < V; i++) s[i] = to[i] + s[i];
#pragma GCC unroll 8
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
static int skip_job(const struct matmul *m, const uint64_t *marks, int job, int columns, int span) {
    const int spans = (columns + span - 1) / span, column = job % spans * span, row = job / spans * GROUP * ROWS;
    if (row >= m->rows) return 0;
    const int some = columns - column < span ? columns - column : span;
    switch ((m->rows - row + ROWS - 1) / ROWS) {
#define CASE(n) case n: group(n, m, marks, row, column, some); break
        CASE(1); CASE(2); CASE(3);
#undef CASE
    default: group(GROUP, m, marks, row, column, some);
    }
    return 1;
}

#endif
