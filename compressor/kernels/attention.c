/* Attention of one new token per row to the tokens in its slot of the KV cache. */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#ifdef TTGPT_AVX2

/* 8 values of a stored key or value. */
INLINE __m256 load(const void *from, int64_t i, const int dtype)
{
    if (dtype == KV_FLOAT32)
        return _mm256_loadu_ps((const float *)from + i);
    __m128i half = _mm_loadu_si128((const __m128i *)((const uint16_t *)from + i));
    if (dtype == KV_FLOAT16)
        return _mm256_cvtph_ps(half);
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

INLINE void store(void *to, int64_t i, __m256 v, const int dtype)
{
    if (dtype == KV_FLOAT32) {
        _mm256_storeu_ps((float *)to + i, v);
        return;
    }
    __m128i half;
    if (dtype == KV_FLOAT16)
        half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    else { /* to nearest, ties to even */
        __m256i bits = _mm256_castps_si256(v);
        __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
        bits = _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff))), 16);
        half = _mm_packus_epi32(_mm256_castsi256_si128(bits), _mm256_extracti128_si256(bits, 1));
    }
    _mm_storeu_si128((__m128i *)((uint16_t *)to + i), half);
}

/* scores[t] = scale * q . key[t]; returns the largest. */
INLINE float score(const float *q, const void *keys, int64_t used, int64_t size, float scale, float *scores, const int dtype)
{
    float most = -INFINITY;
    for (int64_t t = 0; t < used; t++) {
        __m256 even = _mm256_setzero_ps(), odd = even;
        int64_t i = 0;
        for (; i + 16 <= size; i += 16) {
            even = _mm256_fmadd_ps(_mm256_loadu_ps(q + i), load(keys, t * size + i, dtype), even);
            odd = _mm256_fmadd_ps(_mm256_loadu_ps(q + i + 8), load(keys, t * size + i + 8, dtype), odd);
        }
        if (i < size)
            even = _mm256_fmadd_ps(_mm256_loadu_ps(q + i), load(keys, t * size + i, dtype), even);
        scores[t] = scale * lanes_sum(_mm256_add_ps(even, odd));
        most = scores[t] > most ? scores[t] : most;
    }
    return most;
}

/* Replace scores by e^(score - most); returns their sum. `scores` has room for a multiple of 8. */
INLINE float exponentials(float *scores, int64_t used, float most)
{
    for (int64_t t = used; t % 8; t++)
        scores[t] = -INFINITY;
    __m256 sum = _mm256_setzero_ps();
    for (int64_t t = 0; t < used; t += 8) {
        __m256 e = exp_lanes(_mm256_sub_ps(_mm256_loadu_ps(scores + t), _mm256_set1_ps(most)));
        _mm256_storeu_ps(scores + t, e);
        sum = _mm256_add_ps(sum, e);
    }
    return lanes_sum(sum);
}

/* out = sum of weight[t] / total * value[t]. */
INLINE void mix(const float *weight, float total, const void *values, int64_t used, int64_t size, float *out, const int dtype)
{
    const __m256 share = _mm256_set1_ps(1 / total);
    int64_t i = 0;
    for (; i + 32 <= size; i += 32) {
        __m256 sum[4];
        for (int j = 0; j < 4; j++)
            sum[j] = _mm256_setzero_ps();
        for (int64_t t = 0; t < used; t++) {
            const __m256 w = _mm256_broadcast_ss(weight + t);
            for (int j = 0; j < 4; j++)
                sum[j] = _mm256_fmadd_ps(w, load(values, t * size + i + 8 * j, dtype), sum[j]);
        }
        for (int j = 0; j < 4; j++)
            _mm256_storeu_ps(out + i + 8 * j, _mm256_mul_ps(sum[j], share));
    }
    for (; i < size; i += 8) {
        __m256 sum = _mm256_setzero_ps();
        for (int64_t t = 0; t < used; t++)
            sum = _mm256_fmadd_ps(_mm256_broadcast_ss(weight + t), load(values, t * size + i, dtype), sum);
        _mm256_storeu_ps(out + i, _mm256_mul_ps(sum, share));
    }
}

INLINE void head_of(const Attention *a, int64_t row, int64_t head, float *scores, const int dtype)
{
    const int64_t size = a->size, width = a->heads * size, used = a->lengths[row] + 1;
    const int64_t bytes = dtype == KV_FLOAT32 ? 4 : 2;
    const int64_t offset = (a->slots[row] * a->heads + head) * a->capacity * size * bytes;
    char *keys = (char *)a->keys + offset, *values = (char *)a->values + offset;
    const float *q = a->qkv + row * 3 * width + head * size;
    for (int64_t i = 0; i < size; i += 8) {
        store(keys, a->lengths[row] * size + i, _mm256_loadu_ps(q + width + i), dtype);
        store(values, a->lengths[row] * size + i, _mm256_loadu_ps(q + 2 * width + i), dtype);
    }
    const float most = score(q, keys, used, size, a->scale, scores, dtype);
    const float total = exponentials(scores, used, most);
    mix(scores, total, values, used, size, a->out + row * width + head * size, dtype);
}

KERNEL static void head32(const Attention *a, int64_t row, int64_t h, float *scores) { head_of(a, row, h, scores, KV_FLOAT32); }
KERNEL static void head_b(const Attention *a, int64_t row, int64_t h, float *scores) { head_of(a, row, h, scores, KV_BFLOAT16); }
KERNEL static void head_h(const Attention *a, int64_t row, int64_t h, float *scores) { head_of(a, row, h, scores, KV_FLOAT16); }

int attention(const Attention *a)
{
    const size_t stride = ((size_t)a->capacity + 15) / 16 * 16;
    float *scores = aligned_alloc(64, stride * 4 * (size_t)a->threads);
    if (!scores)
        return -1;
#pragma omp parallel for num_threads((int)a->threads) schedule(static)
    for (int64_t part = 0; part < a->threads; part++) {
        float *mine = scores + stride * (size_t)part;
        const int64_t all = a->rows * a->heads;
        for (int64_t i = all * part / a->threads; i < all * (part + 1) / a->threads; i++) {
            const int64_t row = i / a->heads, head = i % a->heads;
            if (a->dtype == KV_FLOAT32)
                head32(a, row, head, mine);
            else if (a->dtype == KV_BFLOAT16)
                head_b(a, row, head, mine);
            else
                head_h(a, row, head, mine);
        }
    }
    free(scores);
    return 0;
}
#else
int attention(const Attention *a) { (void)a; return -1; }
#endif
