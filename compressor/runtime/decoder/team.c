/* Threads that help with the tiles of one call.
 *
 * Tiles are handed out by a counter, and only those that somebody has begun are waited for: a thread that another
 * process keeps from its core delays nothing but the tile that it is at. Waiting is a short spin and then a sleep.
 */
#define _GNU_SOURCE
#include "runtime.h"

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

enum { SPINS = 4000, MOST_HELPERS = 255 };

/* What is written while others look at it has cache lines of its own. */
static struct {
    _Alignas(64) _Atomic uint64_t state; /* the number of the phase << 32 | its next tile */
    _Alignas(64) _Atomic int64_t done;   /* tiles of the phase */
    _Alignas(64) _Atomic int64_t tiles;  /* of it, as `work` and `task`; those that claim a tile have read the right ones */
    _Atomic(Work) work;
    _Atomic(void *) task;
    _Atomic int64_t allowed;  /* helpers that may take part */
    _Atomic int sleeping;
    int64_t helpers;
    pthread_mutex_t mutex;    /* of sleeping and making helpers */
    pthread_cond_t wake;
    pthread_mutex_t owner;
} team = { .state = UINT32_MAX, .mutex = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER, .owner = PTHREAD_MUTEX_INITIALIZER };

static inline void relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Work on tiles of the current phase as long as there are any. A claim succeeds only if no other phase began since
 * `tiles`, `work` and `task` were read: the number of the phase only ever grows. */
static int help(int64_t thread)
{
    int helped = 0;
    uint64_t state = atomic_load_explicit(&team.state, memory_order_acquire);
    for (;;) {
        const int64_t tile = (int64_t)(state & UINT32_MAX);
        const Work work = atomic_load_explicit(&team.work, memory_order_relaxed);
        void *task = atomic_load_explicit(&team.task, memory_order_relaxed);
        if (tile >= atomic_load_explicit(&team.tiles, memory_order_relaxed) ||
            thread > atomic_load_explicit(&team.allowed, memory_order_relaxed))
            return helped;
        if (!atomic_compare_exchange_weak_explicit(&team.state, &state, state + 1, memory_order_acq_rel,
                                                   memory_order_acquire))
            continue;
        work(task, tile, thread);
        atomic_fetch_add_explicit(&team.done, 1, memory_order_release);
        helped = 1;
        state = atomic_load_explicit(&team.state, memory_order_acquire);
    }
}

static void *live(void *number)
{
    const int64_t thread = (int64_t)(intptr_t)number;
    for (;;) {
        const uint64_t phase = atomic_load_explicit(&team.state, memory_order_acquire) >> 32;
        help(thread);
        int spins = 0;
        while (spins < SPINS && atomic_load_explicit(&team.state, memory_order_acquire) >> 32 == phase) {
            relax();
            spins++;
        }
        if (spins < SPINS)
            continue;
        pthread_mutex_lock(&team.mutex);
        atomic_fetch_add(&team.sleeping, 1);
        while (atomic_load(&team.state) >> 32 == phase)
            pthread_cond_wait(&team.wake, &team.mutex);
        atomic_fetch_sub(&team.sleeping, 1);
        pthread_mutex_unlock(&team.mutex);
    }
    return NULL;
}

/* The threads of a process do not survive in its child. */
static void forget(void)
{
    team.helpers = 0;
    atomic_store(&team.sleeping, 0);
    atomic_fetch_or(&team.state, UINT32_MAX); /* tiles that another thread of the parent was handing out are not ours */
    pthread_mutex_init(&team.mutex, NULL);
    pthread_mutex_init(&team.owner, NULL);
    pthread_cond_init(&team.wake, NULL);
}

int take_team(void) { return pthread_mutex_trylock(&team.owner) == 0; }

void leave_team(void) { pthread_mutex_unlock(&team.owner); }

int64_t prepare_team(int64_t threads)
{
    static int known;
    if (!known) {
        pthread_atfork(NULL, NULL, forget);
        known = 1;
    }
    while (team.helpers < threads - 1 && team.helpers < MOST_HELPERS) {
        pthread_t thread;
        pthread_attr_t attributes;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        const int failed = pthread_create(&thread, &attributes, live, (void *)(intptr_t)(team.helpers + 1));
        pthread_attr_destroy(&attributes);
        if (failed)
            break;
        team.helpers++;
    }
    return least(threads, team.helpers + 1);
}

void each_tile(int64_t threads, int64_t tiles, Work work, void *task)
{
    if (threads < 2 || tiles < 2) {
        for (int64_t tile = 0; tile < tiles; tile++)
            work(task, tile, 0);
        return;
    }
    const uint64_t phase = (atomic_load(&team.state) >> 32) + 1;
    atomic_store_explicit(&team.done, 0, memory_order_relaxed);
    atomic_store_explicit(&team.work, work, memory_order_relaxed);
    atomic_store_explicit(&team.task, task, memory_order_relaxed);
    atomic_store_explicit(&team.tiles, tiles, memory_order_relaxed);
    atomic_store_explicit(&team.allowed, threads - 1, memory_order_relaxed);
    atomic_store(&team.state, phase << 32);
    if (atomic_load(&team.sleeping)) {
        pthread_mutex_lock(&team.mutex);
        pthread_cond_broadcast(&team.wake);
        pthread_mutex_unlock(&team.mutex);
    }
    help(0);
    for (int spins = 0; atomic_load_explicit(&team.done, memory_order_acquire) < tiles; spins++)
        if (spins < SPINS)
            relax();
        else
            sched_yield();
    atomic_store(&team.state, phase << 32 | UINT32_MAX); /* nobody claims a tile while the next phase is described */
}

void share_tiles(int64_t threads, int64_t tiles, Work work, void *task)
{
    const int taken = threads > 1 && tiles > 1 && take_team();
    each_tile(taken ? prepare_team(threads) : 1, tiles, work, task);
    if (taken)
        leave_team();
}
