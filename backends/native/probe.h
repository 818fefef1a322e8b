/* What memory gives: every thread reads its share of a large array and does next to nothing with it. */
#ifndef PROBE_H
#define PROBE_H

#include "pool.h"
#include "vec.h"

#define PART (96 * 1024) /* bytes a job, as in matmul.h */

struct probe {
    const char *memory;
    size_t bytes;
    _Atomic int odd; /* keeps the compiler from leaving the reads out */
};

static void read_parts(struct pool *pool, void *with) {
    struct probe *p = with;
    vec s[4] = {{0}};
    for (size_t job; (job = (size_t)claim(pool)) < p->bytes / PART;) {
        const float *from = (const float *)(p->memory + job * PART);
        for (size_t i = 0; i < PART / sizeof(float); i += 4 * LANES)
            for (int j = 0; j < 4; j++) s[j] += load(from + i + j * LANES);
    }
    if (sum(s[0] + s[1] + s[2] + s[3]) == 1.5f) atomic_fetch_add(&p->odd, 1);
}

/* Read `bytes` once, rounded down to whole parts. */
void read_memory(struct pool *pool, const void *memory, size_t bytes) {
    struct probe p = {memory, bytes, 0};
    pool_run(pool, read_parts, &p);
}

#endif
