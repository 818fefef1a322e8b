/* RWKV-7 from tokens to logits in one call: a prompt, a batch, or one token each. */
#include "rwkv7.h"
#include "matmul.h"
#include "pool.h"
#include "probe.h"
#include "scan.h"
#include "skip.h"
#include "wkv7.h"

#define LN_EPS 1e-5f
#ifndef LITTLE
#define LITTLE (1 << 20) /* products a layer: below, one thread is done before two have met */
#endif
#define TOKENS 16 /* columns a job, where every column is for itself */

/* Activations of M columns. What meets a matrix is in the format of weights, and `padded`. */
struct buffers {
    int columns; /* room for so many */
    void *memory;
    float *x, *r, *k, *v, *v_first, *w_lora, *a_lora, *v_lora, *g_lora;
    weight *mixed[6], *gated, *inner, *normed;
    uint64_t *marks;     /* of `inner`, skip.h */
    _Atomic long set[2]; /* words that are not zero: of this product; of the next, 0 */
    double skipped;      /* operations left out so far, save in what the last token alone has to meet */
    double unread;       /* bytes of weights that calls did not have to read so far */
};

/* One call. */
struct call {
    const struct model *m;
    struct buffers *at;
    const int64_t *ids; /* (B, T) */
    const struct state *before, *after;
    int B, T, M;
    enum logits want;
    float *logits;
    int marked; /* products whose inputs were marked; every thread has a count of its own */
};

/* The length that rows of a matrix have in its panels. */
static int panel_length(int n) { return (n + STEP - 1) / STEP * STEP; }

/* From one column of activations to the next: an odd number of cache lines, so that columns lie in different sets of
 * the cache. */
static int padded(int n) {
    const int line = 64 / sizeof(weight);
    return ((n + line - 1) / line | 1) * line;
}

/* norm(x) weight + bias over C, one column; the format of weights rounds it. */
static void layer_norm(const float *x, const float *w, const float *b, int C, float *out) {
    vec total = {0}, squares = {0};
    int whole = C / LANES * LANES;
    float rest = 0.0f;
    for (int i = 0; i < whole; i += LANES) total += load(x + i);
    for (int i = whole; i < C; i++) rest += x[i];
    float mean = (sum(total) + rest) / C;
    rest = 0.0f;
    for (int i = 0; i < whole; i += LANES) {
        vec d = load(x + i) - mean;
        squares += d * d;
    }
    for (int i = whole; i < C; i++) rest += (x[i] - mean) * (x[i] - mean);
    float scale = 1.0f / sqrtf((sum(squares) + rest) / C + LN_EPS);
    for (int i = 0; i < C; i++) out[i] = (x[i] - mean) * scale * w[i] + b[i];
}

static void round_all(float *h, int C) {
    for (int i = 0; i < C; i++) h[i] = widen(narrow(h[i]));
}

/* x = ln0(emb[id]) of the columns of one job. */
static void embed(const struct call *f, int job) {
    const struct model *m = f->m;
    float row[m->C];
    for (int i = job * TOKENS; i < f->M && i < (job + 1) * TOKENS; i++) {
        const weight *emb = m->emb + (size_t)f->ids[i] * m->C;
        for (int c = 0; c < m->C; c++) row[c] = widen(emb[c]);
        layer_norm(row, m->ln0_weight, m->ln0_bias, m->C, f->at->x + (size_t)i * m->C);
    }
}

/* Token shift behind a layer norm: out_j = h + (h_prev - h) share_j, for the tokens of one job of one row.
 * The token before the job's first is normed again, which gives the same bits. */
static void mix(const struct call *f, int job, const float *ln_w, const float *ln_b, const float *shares, int outputs,
                weight *const *out, const weight *before, weight *after) {
    const int C = f->m->C, width = padded(C), jobs = (f->T + TOKENS - 1) / TOKENS;
    const int b = job / jobs, first = job % jobs * TOKENS;
    const float *x = f->at->x + (size_t)b * f->T * C;
    float two[2][C], *h = two[0], *previous = two[1];
    if (first) {
        layer_norm(x + (size_t)(first - 1) * C, ln_w, ln_b, C, previous);
        round_all(previous, C);
    } else {
        for (int c = 0; c < C; c++) previous[c] = widen(before[(size_t)b * C + c]);
    }
    for (int t = first; t < f->T && t < first + TOKENS; t++) {
        layer_norm(x + (size_t)t * C, ln_w, ln_b, C, h);
        round_all(h, C);
        for (int j = 0; j < outputs; j++) {
            weight *to = out[j] + ((size_t)b * f->T + t) * width;
            for (int c = 0; c < C; c++) to[c] = narrow(h[c] + (previous[c] - h[c]) * shares[j * C + c]);
        }
        if (t == f->T - 1)
            for (int c = 0; c < C; c++) after[(size_t)b * C + c] = narrow(h[c]);
        float *swap = h;
        h = previous;
        previous = swap;
    }
}

struct job {
    const struct matmul *product; /* NULL: there are no more */
    int block;
};

static struct job next_job(struct pool *pool, int columns, int n, const struct matmul *list) {
    int block = claim(pool);
    for (int i = 0; i < n; block -= jobs_of(&list[i++], columns))
        if (block < jobs_of(&list[i], columns)) return (struct job){&list[i], block};
    return (struct job){NULL, 0};
}

/* Several matrix products as one list of jobs. With many columns a thread claims one job ahead and fetches for it. */
static void products(struct pool *pool, const struct call *f, int n, const struct matmul *list) {
    const int M = f->M;
    struct job now = next_job(pool, M, n, list);
    while (now.product) {
        struct job then = {NULL, 0};
        if (M > COLUMNS) then = next_job(pool, M, n, list);
        const int alike = then.product && then.product->K == now.product->K;
        matmul_job(now.product, now.block, M, alike ? block_of(then.product, then.block, M) : NULL);
        now = M > COLUMNS ? then : next_job(pool, M, n, list);
    }
    barrier(pool);
}

static void time_mix(struct pool *pool, const struct call *f, int layer) {
    const struct model *m = f->m;
    const struct layer *p = &m->layers[layer];
    struct buffers *at = f->at;
    const int C = m->C, K = panel_length(C), width = padded(C), N = m->N;
    const int mixes = f->B * ((f->T + TOKENS - 1) / TOKENS);
    for (int job; (job = claim(pool)) < mixes;)
        mix(f, job, p->ln1_weight, p->ln1_bias, p->mixes, 6, at->mixed, f->before[layer].att, f->after[layer].att);
    barrier(pool);
    weight *const *x = at->mixed; /* xr xw xk xv xa xg */
    const struct matmul list[] = {
        {C, K, p->receptance, x[0], width, KEEP, at->r, 0, 0},
        {C, K, p->key, x[2], width, KEEP, at->k, 0, 0},
        {C, K, p->value, x[3], width, KEEP, at->v, 0, 0},
        {m->Rw, K, p->w1, x[1], width, TANH, at->w_lora, 0, 0},
        {m->Ra, K, p->a1, x[4], width, KEEP, at->a_lora, 0, 0},
        {m->Rg, K, p->g1, x[5], width, SIGMOID, at->g_lora, 0, 0},
        {m->Rv, K, p->v1, x[3], width, KEEP, at->v_lora, 0, 0},
    };
    products(pool, f, p->v1 ? 7 : 6, list);
    const int heads = f->B * m->H;
    for (int job = claim(pool), then; job < heads; job = then) {
        then = claim(pool);
        int b = job / m->H, number = job % m->H;
        size_t row = (size_t)b * f->T, S = (size_t)job * N * N;
        struct head h = {p, C, m->H, {m->Rw, m->Ra, m->Rv, m->Rg},
                         at->r + row * C + number * N, at->k + row * C + number * N, at->v + row * C + number * N,
                         at->v_first + row * C + number * N,
                         at->w_lora + row * m->Rw, at->a_lora + row * m->Ra, at->v_lora + row * m->Rv,
                         at->g_lora + row * m->Rg, f->before[layer].S + S, f->after[layer].S + S,
                         at->gated + row * width + number * N, width,
                         then < heads ? then % m->H : -1, f->before[layer].S + (size_t)then * N * N};
        head(N, &h, number, f->T);
    }
    barrier(pool);
}

/* Behind the last recurrence nothing but the last token is asked for, unless all logits are: of every row keep two,
 * since the last token's channel mix looks at the one before it. That one's own would start from a wrong shift, and
 * nobody reads it. */
static void keep_last(struct pool *pool, struct call *f) {
    const size_t C = f->m->C, width = padded(f->m->C);
    const int first = f->T - 2;
    if (f->want == ALL || first <= 0) return;
    if (claim(pool) == 0)
        for (int b = 0; b < f->B; b++) {
            memmove(f->at->x + 2 * b * C, f->at->x + ((size_t)b * f->T + first) * C, 2 * C * sizeof(float));
            memmove(f->at->gated + 2 * b * width, f->at->gated + ((size_t)b * f->T + first) * width,
                    2 * width * sizeof(weight));
        }
    barrier(pool);
    f->T = 2;
    f->M = 2 * f->B;
}

/* y += x W^T, x being zero wherever the ReLU was. Every thread comes to the same decision, how much to leave out. */
static void product_with_zeros(struct pool *pool, struct call *f, const struct matmul *m, int layer) {
    struct buffers *at = f->at;
    const int words_ = m->K / STEP, jobs = (f->M + TOKENS - 1) / TOKENS, turn = f->marked++ & 1;
    for (int job; (job = claim(pool)) < jobs;) {
        long set = 0;
        for (int i = job * TOKENS; i < f->M && i < (job + 1) * TOKENS; i++)
            set += mark(m->x + (size_t)i * m->stride, words_, at->marks + (size_t)i * marks_of(m->K));
        atomic_fetch_add(&at->set[turn], set);
        if (job == 0) atomic_store(&at->set[!turn], 0);
    }
    barrier(pool);
    const long set = atomic_load(&at->set[turn]), all_words = (long)f->M * words_;
    if (!sparse(set, all_words)) {
        products(pool, f, 1, m);
        return;
    }
    const int span = span_of(m, f->M, pool->threads), counts = layer < f->m->L - 1 || f->T == 1;
    for (int job; skip_job(m, at->marks, job = claim(pool), f->M, span);)
        if (job == 0 && counts) at->skipped += 2.0 * STEP * m->rows * (all_words - set);
    barrier(pool);
}

/* The same for a single column: every thread lists for itself which weights are needed. */
static void product_by_list(struct pool *pool, struct call *f, const struct matmul *m) {
    struct list list;
    if (!list_words(m, &list)) {
        products(pool, f, 1, m);
        return;
    }
    for (int job; list_job(m, &list, job = claim(pool));) {
        if (job != 0) continue;
        const double spared = (double)STEP * m->rows * (m->K / STEP - list.count);
        f->at->skipped += 2.0 * spared;
        f->at->unread += spared * sizeof(weight);
    }
    barrier(pool);
}

/* x += W_o gated, x += channel mix. Without logits the last layer owes its state alone. */
static void channel_mix(struct pool *pool, struct call *f, int layer) {
    const struct model *m = f->m;
    const struct layer *p = &m->layers[layer];
    struct buffers *at = f->at;
    const int C = m->C, F = m->F, mixes = f->B * ((f->T + TOKENS - 1) / TOKENS);
    const struct matmul output = {C, panel_length(C), p->output, at->gated, padded(C), ADD, at->x, 0, 0};
    products(pool, f, 1, &output);
    for (int job; (job = claim(pool)) < mixes;)
        mix(f, job, p->ln2_weight, p->ln2_bias, p->ffn_mix, 1, at->mixed, f->before[layer].ffn, f->after[layer].ffn);
    barrier(pool);
    if (f->want == NONE && layer == m->L - 1) return;
    const int K = panel_length(C), wide = padded(F);
    const struct matmul key = {F, K, p->ffn_key, at->mixed[0], padded(C), SQUARED_RELU, 0, at->inner, wide};
    const struct matmul value = {C, panel_length(F), p->ffn_value, at->inner, wide, ADD, at->x, 0, 0};
    products(pool, f, 1, &key);
    if (f->M >= LONG && p->skips) product_with_zeros(pool, f, &value, layer);
    else if (f->M == 1 && p->skips) product_by_list(pool, f, &value);
    else products(pool, f, 1, &value);
}

static void read_out(struct pool *pool, const struct call *f) {
    const struct model *m = f->m;
    const int C = m->C, each = f->want == ALL ? f->T : 1, columns = f->B * each;
    float row[C];
    for (int i; (i = claim(pool)) < columns;) {
        int t = f->want == ALL ? i % f->T : f->T - 1;
        layer_norm(f->at->x + ((size_t)(i / each) * f->T + t) * C, m->ln_out_weight, m->ln_out_bias, C, row);
        for (int c = 0; c < C; c++) f->at->normed[(size_t)i * padded(C) + c] = narrow(row[c]);
    }
    barrier(pool);
    struct call alone = *f;
    alone.M = columns;
    const struct matmul head = {m->V, panel_length(C), m->head, f->at->normed, padded(C), KEEP, f->logits, 0, 0};
    products(pool, &alone, 1, &head);
}

static void forward(struct pool *pool, void *with) {
    struct call f = *(const struct call *)with;
    for (int job; (job = claim(pool)) * TOKENS < f.M;) embed(&f, job);
    barrier(pool);
    for (int layer = 0; layer < f.m->L; layer++) {
        time_mix(pool, &f, layer);
        if (layer == f.m->L - 1) keep_last(pool, &f);
        channel_mix(pool, &f, layer);
    }
    if (f.want != NONE) read_out(pool, &f);
}

/* ---- what Python calls ---- */

int lanes(void) { return LANES; }
int step(void) { return STEP; }

struct buffers *buffers_new(void) { return calloc(1, sizeof(struct buffers)); }

void buffers_free(struct buffers *at) {
    free(at->memory);
    free(at);
}

double skipped(const struct buffers *at) { return at->skipped; }
double unread(const struct buffers *at) { return at->unread; }

static void *carve(char **from, size_t bytes) {
    void *here = *from;
    *from += (bytes + 63) / 64 * 64;
    return here;
}

/* Lay the buffers out from `from`; bytes that they take. Padding is never written, so it stays zero. */
static size_t lay_out(struct buffers *at, const struct model *m, size_t M, char *from) {
    char *p = from;
    float **wide[] = {&at->x, &at->r, &at->k, &at->v, &at->v_first};
    for (int i = 0; i < 5; i++) *wide[i] = carve(&p, M * m->C * sizeof(float));
    at->w_lora = carve(&p, M * m->Rw * sizeof(float));
    at->a_lora = carve(&p, M * m->Ra * sizeof(float));
    at->v_lora = carve(&p, M * m->Rv * sizeof(float));
    at->g_lora = carve(&p, M * m->Rg * sizeof(float));
    for (int i = 0; i < 6; i++) at->mixed[i] = carve(&p, M * padded(m->C) * sizeof(weight));
    at->gated = carve(&p, M * padded(m->C) * sizeof(weight));
    at->normed = carve(&p, M * padded(m->C) * sizeof(weight));
    at->inner = carve(&p, M * padded(m->F) * sizeof(weight));
    at->marks = carve(&p, M * marks_of(panel_length(m->F)) * sizeof(uint64_t));
    return (size_t)(p - from);
}

/* Feed B rows of T tokens; 0, or 1 if there is no memory. `after` must not overlap `before`; for T = 1 it may be it. */
int rwkv7(struct pool *pool, const struct model *m, struct buffers *at, const int64_t *ids, const struct state *before,
          const struct state *after, int B, int T, int want, float *logits) {
    int M = B * T;
    if (M > at->columns) {
        static char origin[64];
        size_t bytes = lay_out(at, m, M, origin) + 64;
        free(at->memory);
        at->columns = 0;
        at->memory = calloc(1, bytes);
        if (!at->memory) return 1;
        lay_out(at, m, M, (char *)(((uintptr_t)at->memory + 63) / 64 * 64));
        at->columns = M;
    }
    struct call f = {m, at, ids, before, after, B, T, M, want, logits, 0};
    at->set[0] = at->set[1] = 0;
    struct pool alone = {.threads = 1, .process = pool->process};
    int little = (size_t)M * m->C * (4 * m->C + 2 * m->F) < LITTLE;
    pool_run(little ? &alone : pool, forward, &f);
    return 0;
}
