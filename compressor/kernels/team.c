/* How the threads of one call wait for each other. */
#include "kernels.h"

#include <sched.h>

#define SPINS 2000 /* some ten microseconds; then others may have the core */

static void relax(void)
{
#ifdef TTGPT_AVX2
    _mm_pause();
#endif
}

void wait_for_team(Team team)
{
    Barrier *b = team.barrier;
    const int64_t round = __atomic_load_n(&b->rounds, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&b->arrived, 1, __ATOMIC_ACQ_REL) == team.threads) {
        __atomic_store_n(&b->arrived, 0, __ATOMIC_RELAXED);
        __atomic_store_n(&b->rounds, round + 1, __ATOMIC_RELEASE);
        return;
    }
    for (int spins = 0; __atomic_load_n(&b->rounds, __ATOMIC_ACQUIRE) == round; spins++)
        if (spins < SPINS)
            relax();
        else
            sched_yield();
}
