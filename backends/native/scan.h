/* The recurrences of one head over tokens, in float32. S (N, N): row = value channel, column = key channel.
 *
 * The rows of S never meet: four at a time stay in registers while all tokens pass, and go to memory once. */
#ifndef SCAN_H
#define SCAN_H

#include "pool.h"
#include "vec.h"

#define MAX_N 128
#define WALK 64 /* tokens between two visits of the state in memory, so that their inputs stay in the cache */

/* One head's vectors of the first token; those of the next lie `next` further on. v5 and v6: kk, b are not read. */
struct inputs {
    const float *r, *w, *k, *v, *kk, *b;
    int next;
};

/* S = S diag(w) - (S kk) b^T + v k^T, y = S r; b = kk a. RWKV-7. */
INLINE void scan_7(int N, int T, const struct inputs *x, float *y, const float *S_before, float *S_after) {
    const int NV = (N + LANES - 1) / LANES;
    for (int row = 0; row < N; row += 4) {
        vec S[4][MAX_N / LANES];
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < NV; j++) S[i][j] = load_n(S_before + (row + i) * N + j * LANES, N - j * LANES);
        for (int t = 0; t < T; t++) {
            const size_t token = (size_t)t * x->next;
            vec s[4] = {{0}}, out[4] = {{0}};
            for (int j = 0; j < NV; j++) {
                const size_t at = token + j * LANES;
                const int n = N - j * LANES;
                vec kk = load_n(x->kk + at, n), w = load_n(x->w + at, n), k = load_n(x->k + at, n);
                for (int i = 0; i < 4; i++) {
                    s[i] += S[i][j] * kk;
                    S[i][j] = S[i][j] * w + x->v[token + row + i] * k; /* while the sums are still on their way */
                }
            }
            const vec removed = sums(s[0], s[1], s[2], s[3]);
            for (int j = 0; j < NV; j++) {
                const size_t at = token + j * LANES;
                vec b = load_n(x->b + at, N - j * LANES), r = load_n(x->r + at, N - j * LANES);
                for (int i = 0; i < 4; i++) {
                    S[i][j] -= removed[i] * b;
                    out[i] += S[i][j] * r;
                }
            }
            store_n(y + token + row, sums(out[0], out[1], out[2], out[3]), 4);
        }
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < NV; j++) store_n(S_after + (row + i) * N + j * LANES, S[i][j], N - j * LANES);
    }
}

/* y = S r + v sum(r u k), S = S diag(w) + v k^T. RWKV-5 and 6. */
INLINE void scan_6(int N, int T, const struct inputs *x, const float *u, float *y, const float *S_before,
                   float *S_after) {
    const int NV = (N + LANES - 1) / LANES;
    float bonus[WALK];
    for (int t = 0; t < T; t++) {
        vec s = {0};
        for (int j = 0; j < N; j += LANES) {
            const size_t at = (size_t)t * x->next + j;
            s += load_n(x->r + at, N - j) * load_n(u + j, N - j) * load_n(x->k + at, N - j);
        }
        bonus[t] = sum(s);
    }
    for (int row = 0; row < N; row += 4) {
        vec S[4][MAX_N / LANES];
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < NV; j++) S[i][j] = load_n(S_before + (row + i) * N + j * LANES, N - j * LANES);
        for (int t = 0; t < T; t++) {
            const size_t token = (size_t)t * x->next;
            const float *v = x->v + token + row;
            vec out[4] = {{0}};
            for (int j = 0; j < NV; j++) {
                const size_t at = token + j * LANES;
                const int n = N - j * LANES;
                vec w = load_n(x->w + at, n), k = load_n(x->k + at, n), r = load_n(x->r + at, n);
                for (int i = 0; i < 4; i++) {
                    out[i] += S[i][j] * r;
                    S[i][j] = S[i][j] * w + v[i] * k;
                }
            }
            const vec read = sums(out[0], out[1], out[2], out[3]);
            for (int i = 0; i < 4; i++) y[token + row + i] = read[i] + v[i] * bonus[t];
        }
        for (int i = 0; i < 4; i++)
            for (int j = 0; j < NV; j++) store_n(S_after + (row + i) * N + j * LANES, S[i][j], N - j * LANES);
    }
}

/* All heads of all rows: vectors (B, T, H, N), states (B, H, N, N), u (H, N); kk = NULL means RWKV-5 and 6. */
struct walk {
    int B, T, H, N;
    struct inputs x;
    const float *u, *S;
    float *y, *S_after;
};

INLINE void walk_head(int N, const struct walk *w, int job) {
    const int b = job / w->H, h = job % w->H;
    const size_t S = (size_t)job * N * N;
    for (int t = 0; t < w->T; t += WALK) {
        const size_t at = (((size_t)b * w->T + t) * w->H + h) * N;
        const int T = w->T - t < WALK ? w->T - t : WALK;
        const float *before = (t ? w->S_after : w->S) + S;
        const struct inputs *all_x = &w->x;
        struct inputs x = {all_x->r + at, all_x->w + at, all_x->k + at, all_x->v + at, NULL, NULL, w->H * N};
        if (all_x->kk) {
            x.kk = all_x->kk + at;
            x.b = all_x->b + at;
            scan_7(N, T, &x, w->y + at, before, w->S_after + S);
        } else {
            scan_6(N, T, &x, w->u + (size_t)h * N, w->y + at, before, w->S_after + S);
        }
    }
}

static void walk_64(const struct walk *w, int job) { walk_head(64, w, job); }
static void walk_any(const struct walk *w, int job) { walk_head(w->N, w, job); }

static void walk_heads(struct pool *pool, void *with) {
    const struct walk *w = with;
    for (int job; (job = claim(pool)) < w->B * w->H;) (w->N == 64 ? walk_64 : walk_any)(w, job);
}

/* Called from Python. `S_after` must not overlap `S`. */
void wkv(struct pool *pool, int B, int T, int H, int N, const float *r, const float *w, const float *k, const float *v,
         const float *kk, const float *b, const float *u, const float *S, float *y, float *S_after) {
    struct walk all_heads = {B, T, H, N, {r, w, k, v, kk, b, 0}, u, S, y, S_after};
    pool_run(pool, walk_heads, &all_heads);
}

#endif
