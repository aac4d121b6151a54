/* Rotations of columns by Hadamard matrices: their parts, and the way back for single rows. */
#include "runtime.h"

#include <stdlib.h>

enum { SMALL = 12, LARGE = 20 };

static float small[SMALL * SMALL], large[LARGE * LARGE];

/* Paley's first construction: from which numbers are squares modulo the prime order - 1. */
static void make_hadamard(float *entries, int order)
{
    int squares[LARGE] = { 0 };
    const int prime = order - 1;
    for (int i = 1; i < prime; i++)
        squares[i * i % prime] = 1;
    for (int i = 0; i < order; i++)
        for (int j = 0; j < order; j++) {
            const int positive = !i || (j && (i == j || squares[(i - j + prime) % prime]));
            entries[i * order + j] = positive ? 1 : -1;
        }
}

void make_hadamards(void)
{
    make_hadamard(small, SMALL);
    make_hadamard(large, LARGE);
}

const float *hadamard(int64_t base) { return base == SMALL ? small : large; }

static Rotation rotation_of(int64_t columns)
{
    static const int64_t bases[] = { 1, SMALL, LARGE };
    Rotation best = { 1, 1 };
    for (int i = 0; i < 3; i++) {
        int64_t block = bases[i];
        if (columns % block)
            continue;
        while (columns % (2 * block) == 0)
            block *= 2;
        if (block > best.block)
            best = (Rotation){ block, bases[i] };
    }
    return best;
}

/* Signs are bits of a hash, as good as random. */
int rotate_leaf(Leaf *leaf)
{
    const int64_t words = padded(leaf->k, LANES) / LANES;
    if (!(leaf->signs = calloc((size_t)words, sizeof *leaf->signs)))
        return 0;
    leaf->bytes += words * (int64_t)sizeof *leaf->signs;
    leaf->rotation = rotation_of(leaf->k);
    for (int64_t c = 0; c < leaf->k; c++) {
        uint32_t hash = (uint32_t)c + 1;
        hash = (hash ^ hash >> 16) * 0x7feb352du;
        hash = (hash ^ hash >> 15) * 0x846ca68bu;
        leaf->signs[c / LANES] |= (uint16_t)(((hash ^ hash >> 16) & 1) << c % LANES);
    }
    return 1;
}

/* The transpose of `rotate` in kernels.h. */
void unrotate(const Leaf *leaf, float *row)
{
    const int64_t block = leaf->rotation.block, base = leaf->rotation.base, size = block ? block / base : 0;
    for (int64_t start = 0; block && start < leaf->k; start += block) {
        float *x = row + start;
        for (int64_t half = size / 2; half; half /= 2)
            for (int64_t i = 0; i < block; i += 2 * half)
                for (int64_t j = i; j < i + half; j++) {
                    const float a = x[j], b = x[j + half];
                    x[j] = a + b;
                    x[j + half] = a - b;
                }
        for (int64_t c = 0; base > 1 && c < size; c++) {
            float old[LARGE];
            for (int64_t i = 0; i < base; i++)
                old[i] = x[i * size + c];
            for (int64_t i = 0; i < base; i++) {
                float sum = old[0] * hadamard(base)[i];
                for (int64_t j = 1; j < base; j++)
                    sum += old[j] * hadamard(base)[j * base + i];
                x[i * size + c] = sum;
            }
        }
        for (int64_t c = 0; c < block; c++)
            x[c] *= sign_of(leaf, start + c);
    }
}
