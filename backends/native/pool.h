/* Threads that live as long as a model. They are woken once per call, meet at barriers inside it, and share out the
 * work between two barriers by claiming jobs, so that a thread which lost its core delays the others little.
 *
 * Who waits spins for a moment and then sleeps: spinning alone collapses when another program needs the core. */
#ifndef POOL_H
#define POOL_H

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#ifndef SPINS
#define SPINS 5000 /* looks before sleeping, some 100 microseconds: longer than Python takes between two tokens */
#endif

struct pool {
    int threads;
    _Atomic unsigned turn; /* counts barriers */
    _Atomic int arrived, sleeping, next;
    void (*work)(struct pool *, void *); /* NULL ends the threads */
    void *with;
    pid_t process; /* a forked child has no threads */
    pthread_t ids[];
};

static inline void look_again(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

static void wait_for_turn(struct pool *p, unsigned turn) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(&p->turn, memory_order_acquire) != turn) return;
        look_again();
    }
#if defined(__linux__)
    atomic_fetch_add(&p->sleeping, 1);
    while (atomic_load(&p->turn) == turn) syscall(SYS_futex, &p->turn, FUTEX_WAIT_PRIVATE, turn, NULL, NULL, 0);
    atomic_fetch_sub(&p->sleeping, 1);
#else
    while (atomic_load(&p->turn) == turn) sched_yield();
#endif
}

/* Everybody has finished what came before; jobs count from 0 again. */
static void barrier(struct pool *p) {
    unsigned turn = atomic_load(&p->turn);
    if (atomic_fetch_add(&p->arrived, 1) + 1 < p->threads) {
        wait_for_turn(p, turn);
        return;
    }
    atomic_store(&p->arrived, 0);
    atomic_store(&p->next, 0);
    atomic_store(&p->turn, turn + 1);
#if defined(__linux__)
    if (atomic_load(&p->sleeping)) syscall(SYS_futex, &p->turn, FUTEX_WAKE_PRIVATE, p->threads, NULL, NULL, 0);
#endif
}

/* The next job that nobody has taken; the caller compares it with the number of jobs. */
static inline int claim(struct pool *p) { return atomic_fetch_add_explicit(&p->next, 1, memory_order_relaxed); }

static void *live(void *argument) {
    struct pool *p = argument;
    for (;;) {
        barrier(p);
        if (!p->work) return NULL;
        p->work(p, p->with);
        barrier(p);
    }
}

/* Call `work` in every thread and return when all have. */
static void pool_run(struct pool *p, void (*work)(struct pool *, void *), void *with) {
    if (p->threads > 1 && p->process != getpid()) p->threads = 1;
    p->work = work;
    p->with = with;
    barrier(p);
    work(p, with);
    barrier(p);
}

#define STACK (1 << 21) /* bytes; some systems give 128 KiB, less than a head or a group of panels takes (wkv7.h, skip.h) */

struct pool *pool_new(int threads) {
    struct pool *p = calloc(1, sizeof *p + threads * sizeof(pthread_t));
    if (!p) return NULL;
    p->threads = threads;
    p->process = getpid();
    pthread_attr_t how;
    if (pthread_attr_init(&how) || pthread_attr_setstacksize(&how, STACK)) abort();
    for (int i = 1; i < threads; i++)
        if (pthread_create(&p->ids[i], &how, live, p)) abort();
    pthread_attr_destroy(&how);
    return p;
}

void pool_free(struct pool *p) {
    if (p->process == getpid()) {
        p->work = NULL;
        barrier(p);
        for (int i = 1; i < p->threads; i++) pthread_join(p->ids[i], NULL);
    }
    free(p);
}

#endif
