/* A function of bf16 values by a table of all 65,536 of them, and its derivative: for training. */
#include "kernels.h"

#include <string.h>

static float product(uint16_t dy, float slope)
{
    const uint32_t bits = (uint32_t)dy << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value * slope;
}

/* Round to the nearest bf16, to even where two are as near. */
static uint16_t rounded(float x)
{
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return x != x ? 0x7fc0 : (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

int lookup(const Lookup *t)
{
    const uint16_t *x = t->x, *dy = t->dy;
    uint16_t *out = t->out;
#pragma omp parallel num_threads((int)t->threads)
    if (dy)
#pragma omp for schedule(static)
        for (int64_t i = 0; i < t->count; i++)
            out[i] = rounded(product(dy[i], t->slopes[x[i]]));
    else
#pragma omp for schedule(static)
        for (int64_t i = 0; i < t->count; i++)
            out[i] = t->values[x[i]];
    return 0;
}
