/* One head of the RWKV-7 attention, from the projections to the gated output, for all tokens of a row.
 *
 *     w = exp(-e^(-1/2) sigmoid(w0 + w_lora w2))       a = sigmoid(a0 + a_lora a2)       g = g_lora g2
 *     v = v + (v_first - v) sigmoid(v0 + v_lora v2)    kk = k k_k / |k k_k|              k = k (1 + (a - 1) k_a)
 *     S = S diag(w) - (S kk) (kk a)^T + v k^T          y = S r
 *     out = (norm(y) + (sum r k r_k) v) g
 *
 * Source: "RWKV-7 Goose with Expressive Dynamic State Evolution" (arXiv 2503.14456). Everything is float32. */
#ifndef WKV7_H
#define WKV7_H

#include "rwkv7.h"
#include "scan.h"

#define CHUNK 16 /* tokens between two visits of the state in memory */
#define DECAY 0.6065306597126334f /* e^(-1/2) */
#define GN_EPS 64e-5f
#define KEY_FLOOR 1e-12f

struct head {
    const struct layer *p;
    int C, H, ranks[4];                        /* of w a v g */
    const float *r, *k, *v;                    /* (T, C), of this head */
    float *v_first;                            /* likewise; written in layer 0, read in the others */
    const float *w_lora, *a_lora, *v_lora, *g_lora; /* (T, rank) */
    const float *S;                            /* (N, N) before, */
    float *S_after;                            /* and after */
    weight *out;                               /* (T, width), of this head */
    int width;
    int next; /* the head that this thread computes next, or -1: what that reads is asked of memory meanwhile */
    const float *next_S;
};

INLINE void fetch(const void *from, size_t bytes) {
    for (size_t i = 0; i < bytes; i += 64) __builtin_prefetch((const char *)from + i, 0, 2);
}

/* One chunk's vectors, each (CHUNK, N). */
struct chunk {
    float r[CHUNK * MAX_N], w[CHUNK * MAX_N], k[CHUNK * MAX_N], v[CHUNK * MAX_N], kk[CHUNK * MAX_N];
    float b[CHUNK * MAX_N], a[CHUNK * MAX_N], g[CHUNK * MAX_N], y[CHUNK * MAX_N], gate[CHUNK * MAX_N];
};

/* Some columns (R) by one head's (R, N), in float32 if `wide`; `columns` and `wide` are constants wherever this is
 * expanded. `ahead` is the next head's (R, N), fetched meanwhile, or NULL. */
INLINE void expand_some(int N, int columns, int R, const float *z, const void *W, int wide, const weight *ahead,
                        float *out) {
    const int NV = (N + LANES - 1) / LANES;
    vec sum[4][MAX_N / LANES];
    for (int i = 0; i < columns; i++)
        for (int j = 0; j < NV; j++) sum[i][j] = (vec){0};
    for (int r = 0; r < R; r++) {
        if (ahead)
            for (int j = 0; j < NV * LANES; j += 64 / (int)sizeof(weight))
                __builtin_prefetch(ahead + (size_t)r * NV * LANES + j, 0, 2);
        for (int j = 0; j < NV; j++) {
            const size_t at = ((size_t)r * NV + j) * LANES;
            vec w = wide ? load((const float *)W + at) : widened((const weight *)W + at);
            for (int i = 0; i < columns; i++) sum[i][j] += z[(size_t)i * R + r] * w;
        }
    }
    for (int i = 0; i < columns; i++)
        for (int j = 0; j < NV; j++) store_n(out + i * N + j * LANES, sum[i][j], N - j * LANES);
}

/* The second half of a low-rank pair. Lanes are channels: no sums over lanes. */
INLINE void expand(int N, int columns, int R, const float *z, const void *W, int wide, const weight *ahead,
                   float *out) {
    int c = 0;
    for (; c + 4 <= columns; c += 4, ahead = NULL) expand_some(N, 4, R, z + (size_t)c * R, W, wide, ahead, out + c * N);
    for (; c < columns; c++, ahead = NULL) expand_some(N, 1, R, z + (size_t)c * R, W, wide, ahead, out + c * N);
}

/* The second halves of all four pairs for tokens start..start + n; NULL in `W` for a pair that a layer lacks. */
INLINE void expand_all(int N, const struct head *h, int start, int n, const void *const W[4], int wide,
                       const weight *const ahead[4], struct chunk *x) {
    const float *z[4] = {h->w_lora, h->a_lora, h->v_lora, h->g_lora};
    float *out[4] = {x->w, x->a, x->gate, x->g};
    for (int i = 0; i < 4; i++) {
        const size_t R = h->ranks[i];
        if (W[i]) expand(N, n, R, z[i] + start * R, W[i], wide, ahead[i], out[i]);
    }
}

/* Decay, keys and value of one token. */
INLINE void prepare(int N, const struct head *h, struct chunk *x, int t, size_t at, int c) {
    const struct layer *p = h->p;
    vec squares = {0};
    for (int j = 0; j < N; j += LANES) {
        int n = N - j, i = t * N + j;
        vec v = load_n(h->v + at + j, n), k = load_n(h->k + at + j, n);
        if (p->v0) {
            vec gate = v_sigmoid(load_n(p->v0 + c + j, n) + load_n(x->gate + i, n));
            v += (load_n(h->v_first + at + j, n) - v) * gate;
        } else {
            store_n(h->v_first + at + j, v, n);
        }
        vec w = v_exp(-DECAY * v_sigmoid(load_n(p->w0 + c + j, n) + load_n(x->w + i, n)));
        vec a = v_sigmoid(load_n(p->a0 + c + j, n) + load_n(x->a + i, n));
        vec kk = k * load_n(p->k_k + c + j, n);
        squares += kk * kk;
        store_n(x->r + i, load_n(h->r + at + j, n), n);
        store_n(x->w + i, w, n);
        store_n(x->k + i, k * (1.0f + (a - 1.0f) * load_n(p->k_a + c + j, n)), n);
        store_n(x->v + i, v, n);
        store_n(x->a + i, a, n);
        store_n(x->kk + i, kk, n);
    }
    float norm = sqrtf(sum(squares));
    norm = norm < KEY_FLOOR ? KEY_FLOOR : norm;
    for (int j = 0; j < N; j += LANES) {
        int n = N - j, i = t * N + j;
        vec kk = load_n(x->kk + i, n) / norm;
        store_n(x->kk + i, kk, n);
        store_n(x->b + i, kk * load_n(x->a + i, n), n);
    }
}

/* (norm(y) + (sum r k r_k) v) g of one token. */
INLINE void gated(int N, const struct head *h, const struct chunk *x, int t, size_t out, int c) {
    const struct layer *p = h->p;
    vec total = {0}, bonuses = {0}, squares = {0};
    for (int j = 0; j < N; j += LANES) {
        int n = N - j, i = t * N + j;
        total += load_n(x->y + i, n);
        bonuses += load_n(x->r + i, n) * load_n(x->k + i, n) * load_n(p->r_k + c + j, n);
    }
    float mean = sum(total) / N, bonus = sum(bonuses);
    for (int j = 0; j < N; j += LANES) {
        int n = N - j;
        vec d = load_n(x->y + t * N + j, n) - mean;
        if (n < LANES) { /* what is beyond the head does not count */
            float part[LANES];
            store(part, d);
            d = load_n(part, n);
        }
        squares += d * d;
    }
    float scale = 1.0f / sqrtf(sum(squares) / N + GN_EPS);
    for (int j = 0; j < N; j += LANES) {
        int n = N - j, i = t * N + j;
        vec normed = (load_n(x->y + i, n) - mean) * scale * load_n(p->ln_x_weight + c + j, n);
        normed += load_n(p->ln_x_bias + c + j, n) + bonus * load_n(x->v + i, n);
        store_narrowed(h->out + out + j, normed * load_n(x->g + i, n), n);
    }
}

/* A prompt meets this head's weights in every chunk: one float32 copy of them all, if they are narrower. */
INLINE void widen_all(int N, const struct head *h, const void *W[4], float *room) {
    const int NP = (N + LANES - 1) / LANES * LANES;
    for (int i = 0; i < 4; i++) {
        const weight *from = W[i];
        if (!from) continue;
        W[i] = room;
        for (int at = 0; at < h->ranks[i] * NP; at += LANES, room += LANES) store(room, widened(from + at));
    }
}

/* Tokens 0..T of head number `number`. */
INLINE void head_of(int N, const struct head *h, int number, int T) {
    struct chunk x;
    const int c = number * N, NP = (N + LANES - 1) / LANES * LANES;
    const int wide = sizeof(weight) < sizeof(float) && T >= CHUNK;
    const weight *const second[4] = {h->p->w2, h->p->a2, h->p->v2, h->p->g2};
    const weight *ahead[4] = {NULL, NULL, NULL, NULL};
    const void *W[4];
    size_t ranks = 0;
    for (int i = 0; i < 4; i++) {
        const size_t size = (size_t)h->ranks[i] * NP;
        W[i] = second[i] ? second[i] + number * size : NULL;
        if (second[i] && h->next >= 0 && T < CHUNK) ahead[i] = second[i] + h->next * size;
        ranks += h->ranks[i];
    }
    float room[wide ? ranks * NP : 1];
    if (wide) widen_all(N, h, W, room);
    for (int start = 0; start < T; start += CHUNK) {
        int n = T - start < CHUNK ? T - start : CHUNK;
        if (wide) expand_all(N, h, start, n, W, 1, ahead, &x);
        else expand_all(N, h, start, n, W, 0, ahead, &x);
        for (int t = 0; t < n; t++) prepare(N, h, &x, t, (size_t)(start + t) * h->C, c);
        const struct inputs walk = {x.r, x.w, x.k, x.v, x.kk, x.b, N};
        if (T < CHUNK && h->next >= 0) fetch(h->next_S, sizeof(float) * N * N);
        scan_7(N, n, &walk, x.y, start ? h->S_after : h->S, h->S_after);
        for (int t = 0; t < n; t++) gated(N, h, &x, t, (size_t)(start + t) * h->width, c);
    }
}

static void head_16(const struct head *h, int number, int T) { head_of(16, h, number, T); }
static void head_32(const struct head *h, int number, int T) { head_of(32, h, number, T); }
static void head_64(const struct head *h, int number, int T) { head_of(64, h, number, T); }
static void head_any(int N, const struct head *h, int number, int T) { head_of(N, h, number, T); }

static void head(int N, const struct head *h, int number, int T) {
    switch (N) {
    case 16: head_16(h, number, T); break;
    case 32: head_32(h, number, T); break;
    case 64: head_64(h, number, T); break;
    default: head_any(N, h, number, T);
    }
}

#endif
