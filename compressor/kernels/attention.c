/* Attention of new tokens to the tokens before them in their slots of the KV cache, and to themselves. */
#include "kernels.h"

#include <math.h>
#include <stdlib.h>

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
    if (dtype == KV_FLOAT16) { /* no infinities, which attention could not take back */
        const __m256 largest = _mm256_set1_ps(65504.0f);
        v = _mm256_max_ps(_mm256_min_ps(v, largest), _mm256_sub_ps(_mm256_setzero_ps(), largest));
        half = _mm256_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT);
    }
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

/* Where a head of a row's slot begins in the keys and in the values. */
static int64_t place(const Attention *a, int64_t row, int64_t head)
{
    return (a->slots[row] * a->heads + head) * a->capacity * a->size * (a->dtype == KV_FLOAT32 ? 4 : 2);
}

/* Append the key and value of a row's head to its slot. */
INLINE void append(const Attention *a, int64_t row, int64_t head, const int dtype)
{
    const int64_t size = a->size, width = a->heads * size, at = place(a, row, head);
    const float *key = a->qkv + row * 3 * width + width + head * size, *value = key + width;
    for (int64_t i = 0; i < size; i += 8) {
        store((char *)a->keys + at, a->positions[row] * size + i, _mm256_loadu_ps(key + i), dtype);
        store((char *)a->values + at, a->positions[row] * size + i, _mm256_loadu_ps(value + i), dtype);
    }
}

INLINE void attend(const Attention *a, int64_t row, int64_t head, float *scores, const int dtype)
{
    const int64_t size = a->size, width = a->heads * size, at = place(a, row, head), used = a->positions[row] + 1;
    const float *q = a->qkv + row * 3 * width + head * size;
    const float most = score(q, (char *)a->keys + at, used, size, a->scale, scores, dtype);
    const float total = exponentials(scores, used, most);
    mix(scores, total, (char *)a->values + at, used, size, a->out + row * width + head * size, dtype);
}

INLINE void heads_of_team(const Attention *a, float *scores, Team team, const int dtype)
{
    const int64_t all = a->rows * a->heads;
    const int64_t from = all * team.thread / team.threads, to = all * (team.thread + 1) / team.threads;
    for (int64_t i = from; i < to; i++)
        append(a, i / a->heads, i % a->heads, dtype);
    wait_for_team(team);
    for (int64_t i = team.thread; i < all; i += team.threads) /* later rows of a slot are longer: take turns */
        attend(a, i / a->heads, i % a->heads, scores, dtype);
    wait_for_team(team);
}

KERNEL static void heads_fp32(const Attention *a, float *scores, Team team) { heads_of_team(a, scores, team, KV_FLOAT32); }
KERNEL static void heads_bf16(const Attention *a, float *scores, Team team) { heads_of_team(a, scores, team, KV_BFLOAT16); }
KERNEL static void heads_fp16(const Attention *a, float *scores, Team team) { heads_of_team(a, scores, team, KV_FLOAT16); }

/* Bytes of one thread's scores. */
static size_t score_bytes(const Attention *a) { return ((size_t)a->capacity + 15) / 16 * 64; }

size_t attention_bytes(const Attention *a) { return score_bytes(a) * (size_t)a->threads; }

void attention_in_team(const Attention *a, char *memory, Team team)
{
    float *scores = (float *)(memory + score_bytes(a) * (size_t)team.thread);
    (a->dtype == KV_FLOAT32 ? heads_fp32 : a->dtype == KV_BFLOAT16 ? heads_bf16 : heads_fp16)(a, scores, team);
}

int attention(const Attention *a)
{
    char *memory = aligned_alloc(64, attention_bytes(a));
    if (!memory)
        return -1;
    Barrier barrier = { 0, 0 };
#pragma omp parallel num_threads((int)a->threads)
    attention_in_team(a, memory, my_team(&barrier));
    free(memory);
    return 0;
}
#else
int attention(const Attention *a) { (void)a; return -1; }
#endif
