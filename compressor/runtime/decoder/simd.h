/* Sixteen lanes: all that the kernels need beyond C's own operators, for one set of instructions.
 *
 * The file that includes this defines AVX512, AVX2 or neither. Every function has the same result in all of them.
 */
#include "runtime.h"

#include <math.h>
#include <string.h>

#pragma GCC diagnostic ignored "-Wpsabi" /* wide vectors are not passed between files */

#if defined(AVX512) || defined(AVX2)
#include <immintrin.h>
#endif

#define INLINE static inline __attribute__((always_inline))
#define APART static __attribute__((noinline)) /* has all registers for itself */

typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));
typedef uint32_t Words __attribute__((vector_size(64)));
typedef int8_t Quarters __attribute__((vector_size(16)));
typedef uint16_t Halves __attribute__((vector_size(32)));

INLINE Floats load(const float *from)
{
    Floats v;
    memcpy(&v, from, sizeof v);
    return v;
}

INLINE void store(float *to, Floats v) { memcpy(to, &v, sizeof v); }

INLINE Floats each(float x) { return (Floats){ x, x, x, x, x, x, x, x, x, x, x, x, x, x, x, x }; }

INLINE Floats zeros(void) { return (Floats){ 0 }; }

/* The first `count` lanes, at least 1, the others 0. */
INLINE Floats load_some(const float *from, int64_t count)
{
    if (count >= LANES)
        return load(from);
    float lanes[LANES] = { 0 };
    memcpy(lanes, from, (size_t)count * sizeof *lanes);
    return load(lanes);
}

INLINE void store_some(float *to, Floats v, int64_t count)
{
    if (count >= LANES)
        store(to, v);
    else
        memcpy(to, &v, (size_t)count * sizeof *to);
}

/* a b + c, rounded once. */
INLINE Floats fma_lanes(Floats a, Floats b, Floats c)
{
#if defined(AVX512)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(AVX2)
    __m256 x[2], y[2], z[2];
    memcpy(x, &a, sizeof x), memcpy(y, &b, sizeof y), memcpy(z, &c, sizeof z);
    for (int i = 0; i < 2; i++)
        z[i] = _mm256_fmadd_ps(x[i], y[i], z[i]);
    memcpy(&c, z, sizeof c);
    return c;
#else
    for (int i = 0; i < LANES; i++)
        c[i] = fmaf(a[i], b[i], c[i]);
    return c;
#endif
}

INLINE Floats choose(Ints mask, Floats yes, Floats no)
{
#if defined(AVX512)
    return (Floats)_mm512_mask_blend_ps(_mm512_movepi32_mask((__m512i)mask), (__m512)no, (__m512)yes);
#else
    return (Floats)((mask & (Ints)yes) | (~mask & (Ints)no));
#endif
}

/* a where it is larger, otherwise b, also where one is not a number. */
INLINE Floats larger(Floats a, Floats b)
{
#if defined(AVX512)
    return (Floats)_mm512_max_ps((__m512)a, (__m512)b);
#else
    return choose(a > b, a, b);
#endif
}

INLINE Floats smaller(Floats a, Floats b)
{
#if defined(AVX512)
    return (Floats)_mm512_min_ps((__m512)a, (__m512)b);
#else
    return choose(a < b, a, b);
#endif
}

INLINE Floats magnitude(Floats v) { return (Floats)((Words)v & 0x7fffffffu); }

INLINE Floats floats_of(Ints v) { return __builtin_convertvector(v, Floats); }

/* To the nearest integer, to even where two are as near; for magnitudes up to 2^22. */
INLINE Floats rounded(Floats v)
{
    const Floats shift = each(12582912.0f); /* 1.5 * 2^23: there, fp32 has no fractions */
    return (v + shift) - shift;
}

/* Which lanes are below `count`. */
INLINE Ints first_lanes(int64_t count)
{
    return (Ints){ 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 } < (Ints){ 0 } + (int32_t)count;
}

/* The lanes' sum, or the largest of them, in halves: always in the same order, which matters for the rounding of a sum, and
 * for the largest where one is not a number. */
INLINE float in_halves(Floats v, const int MOST)
{
#define FOLD(...)                                                              \
    do {                                                                       \
        const Floats other = __builtin_shufflevector(v, v, __VA_ARGS__);       \
        v = MOST ? larger(v, other) : v + other;                               \
    } while (0)
    FOLD(8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    FOLD(4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    FOLD(2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    FOLD(1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
#undef FOLD
    return v[0];
}

INLINE float total(Floats v) { return in_halves(v, 0); }

INLINE float largest(Floats v) { return in_halves(v, 1); }

INLINE int32_t sum_of(Ints v)
{
#if defined(AVX512)
    return _mm512_reduce_add_epi32((__m512i)v);
#else
    int32_t sum = 0;
    for (int i = 0; i < LANES; i++)
        sum += v[i];
    return sum;
#endif
}

#if defined(AVX512)
/* Of every 2 `width` lanes of a and then of b, the first half plus the second. */
INLINE Floats fold(Floats a, Floats b, const int width)
{
    const Ints lane = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
    const Ints first = (lane & (width - 1)) + (lane & -width) * 2, second = first + width;
    return (Floats)_mm512_permutex2var_ps((__m512)a, (__m512i)first, (__m512)b) +
           (Floats)_mm512_permutex2var_ps((__m512)a, (__m512i)second, (__m512)b);
}
#endif

/* The totals of 16 times 16 lanes. */
INLINE Floats totals(const float *from)
{
#if defined(AVX512)
    Floats part[8];
    for (int i = 0; i < 8; i++)
        part[i] = fold(load(from + 2 * i * LANES), load(from + (2 * i + 1) * LANES), 8);
    for (int i = 0; i < 4; i++)
        part[i] = fold(part[2 * i], part[2 * i + 1], 4);
    for (int i = 0; i < 2; i++)
        part[i] = fold(part[2 * i], part[2 * i + 1], 2);
    return fold(part[0], part[1], 1);
#else
    float sums[LANES];
    for (int i = 0; i < LANES; i++)
        sums[i] = total(load(from + i * LANES));
    return load(sums);
#endif
}

INLINE Floats load_bf16(const uint16_t *from)
{
#if defined(AVX512) /* gcc 12 would widen it in halves */
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16);
#else
    Halves halves;
    memcpy(&halves, from, sizeof halves);
    return (Floats)(__builtin_convertvector(halves, Words) << 16);
#endif
}

INLINE Floats load_fp16(const uint16_t *from)
{
#if defined(AVX512)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)from));
#elif defined(AVX2)
    const __m256 half[2] = { _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from)),
                             _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)from + 1)) };
    Floats v;
    memcpy(&v, half, sizeof v);
    return v;
#else
    Floats v;
    for (int i = 0; i < LANES; i++)
        v[i] = half_to_float(from[i]);
    return v;
#endif
}

/* 16 stored floats. */
INLINE Floats load_element(const void *from, int64_t at, const Element element)
{
    if (element == FP32)
        return load((const float *)from + at);
    return element == FP16 ? load_fp16((const uint16_t *)from + at) : load_bf16((const uint16_t *)from + at);
}

/* Store 16 floats in fp32, or rounded to nearest, to even, as 16 bits; fp16 has no infinities, which nothing takes back. */
INLINE void store_element(void *to, int64_t at, Floats v, const Element element)
{
    if (element == FP32) {
        store((float *)to + at, v);
        return;
    }
    uint16_t *half = (uint16_t *)to + at;
    if (element == BF16) {
        const Words bits = (Words)v;
        const Halves rounded_bits = __builtin_convertvector((bits + (bits >> 16 & 1) + 0x7fff) >> 16, Halves);
        memcpy(half, &rounded_bits, sizeof rounded_bits);
        return;
    }
    v = larger(smaller(v, each(65504)), each(-65504));
#if defined(AVX512)
    _mm256_storeu_si256((__m256i *)half, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(AVX2)
    __m256 part[2];
    memcpy(part, &v, sizeof part);
    for (int i = 0; i < 2; i++)
        _mm_storeu_si128((__m128i *)half + i, _mm256_cvtps_ph(part[i], _MM_FROUND_TO_NEAREST_INT));
#else
    for (int i = 0; i < LANES; i++)
        half[i] = float_to_half(v[i]);
#endif
}

/* e^x to 2 units in the last place, by e^x = 2^n e^r with |r| <= ln(2) / 2 and a Taylor series of e^r; 0 below -87. */
INLINE Floats exponential(Floats x)
{
    const Ints in_range = x >= each(-87);
    x = smaller(larger(x, each(-87)), each(88));
    const Floats n = rounded(x * each(1.44269504f));
    Floats r = fma_lanes(-n, each(0.693359375f), x); /* ln 2 in two parts, the first exact */
    r = fma_lanes(n, each(2.12194440e-4f), r);
    Floats sum = each(1.0f / 5040);
    sum = fma_lanes(sum, r, each(1.0f / 720));
    sum = fma_lanes(sum, r, each(1.0f / 120));
    sum = fma_lanes(sum, r, each(1.0f / 24));
    sum = fma_lanes(sum, r, each(1.0f / 6));
    sum = fma_lanes(sum, r, each(0.5f));
    sum = fma_lanes(sum, r, each(1));
    sum = fma_lanes(sum, r, each(1));
    const Ints power = (__builtin_convertvector(n, Ints) + 127) << 23;
    return choose(in_range, sum * (Floats)power, zeros());
}
