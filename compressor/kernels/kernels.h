/* What the compute kernels share: the arguments of a call and vector helpers. */
#ifndef TTGPT_KERNELS_H
#define TTGPT_KERNELS_H

#include <omp.h>
#include <stddef.h>
#include <stdint.h>

#if defined(__x86_64__) && defined(__GNUC__)
#define TTGPT_AVX2 1
#include <immintrin.h>
#define KERNEL __attribute__((target("avx2,fma,f16c")))
#define INLINE KERNEL static inline __attribute__((always_inline))
#endif

enum { ACTIVATION_NONE, ACTIVATION_RELU, ACTIVATION_GELU_NEW };
enum { INT8_COLUMNS = 16, INT4_COLUMNS = 64 }; /* that are multiplied at a time: rows of codes are multiples of them */
enum { HEAD_VALUES = 8 };                      /* likewise of a head */
enum { SERIAL_WORK = 1 << 16 };                /* multiply-adds for which another thread is not worth waking */
enum { KV_FLOAT32, KV_BFLOAT16, KV_FLOAT16 };
enum { INSTRUCTIONS_AVX2, INSTRUCTIONS_VNNI }; /* which multiply; the results are bitwise the same */

/* W [n, k] in codes of 8 or 4 bits, and what is added to its products. */
typedef struct {
    const void *codes;            /* int8 [n, k], or [n, k / 2] bytes of two codes each */
    const uint16_t *scale;        /* bf16 [n, groups] */
    const float *bias;            /* [n] or NULL */
    int64_t n, k, groups;         /* groups per row of 4-bit codes; 0 for 8 bits */
} Matrix;

typedef struct {
    const float *weight, *bias;   /* [k]; weight is NULL for none */
    float epsilon;
} Norm;

/* out [rows, n] = activation(norm(x) W^T + bias) + residual. */
typedef struct {
    const float *x;               /* [rows, k] */
    Matrix w;
    Norm norm;                    /* LayerNorm of x */
    const float *residual;        /* [rows, n] or NULL */
    float *out;                   /* [rows, n], apart from x and residual */
    int64_t rows, activation, threads, instructions;
} Linear;

/* Causal attention of new tokens to what their slots hold, themselves included; keys and values are appended. */
typedef struct {
    const float *qkv;             /* [rows, 3, heads, size] */
    void *keys, *values;          /* one layer [slots, heads, capacity, size] */
    const int64_t *slots;         /* of each token [rows] */
    const int64_t *positions;     /* of each token in its slot [rows]; those of one slot are consecutive */
    float *out;                   /* [rows, heads, size] */
    int64_t rows, heads, size, capacity, dtype, threads;
    int64_t layer_bytes;          /* of one layer's keys */
    float scale;
} Attention;

typedef struct {
    Norm ln_1, ln_2;
    Matrix c_attn, c_proj, c_fc, mlp_c_proj;
    float scale;                  /* of the scores */
} Block;

/* All blocks of a decoder for new tokens, wherever these stand. */
typedef struct {
    const Block *blocks;
    int64_t layers, activation;
    float *x;                     /* [rows, heads * size], replaced by the result */
    Attention attention;          /* of the first layer, without qkv, out and scale; the others' caches follow */
    int64_t instructions;
} Stack;

/* out [count] = f(x), or f'(x) dy; all in bf16. */
typedef struct {
    const uint16_t *x, *dy;       /* dy is NULL for f(x) */
    const uint16_t *values;       /* f of every bf16 [65536] */
    const float *slopes;          /* f' of every bf16 [65536] */
    uint16_t *out;
    int64_t count, threads;
} Lookup;

/* All return 0, or -1 if there is no memory for the intermediate results. Their callers check what they point to. */
int linear(const Linear *task);
int attention(const Attention *task);
int stack(const Stack *task);
int lookup(const Lookup *task);

/* Intermediate results of more than this are refused at once, so that no sum of sizes overflows; x86-64 has 2^47. */
#define MOST_BYTES 7e13

/* Where threads wait for each other; zero at first. */
typedef struct {
    int64_t arrived, rounds;
} Barrier;

/* A thread's number in a team of threads that all call the same function; there may be fewer than were asked for. */
typedef struct {
    int64_t thread, threads;
    Barrier *barrier;
} Team;

static inline Team my_team(Barrier *barrier)
{
    return (Team){ omp_get_thread_num(), omp_get_num_threads(), barrier };
}

/* Return once all threads of the team are here. OpenMP's barrier either spins for milliseconds, on a core that the
 * others may need, or sleeps at once, which takes longer than the steps between barriers. */
void wait_for_team(Team team);

/* The same as above, as a team; `memory` has `*_bytes`, is aligned to 64 and shared. The results are there on return. */
size_t linear_bytes(const Linear *task);
void linear_in_team(const Linear *task, char *memory, Team team);
size_t attention_bytes(const Attention *task);
void attention_in_team(const Attention *task, char *memory, Team team);

#ifdef TTGPT_AVX2
/* Sum of 8 lanes, always in the same order. */
INLINE float lanes_sum(__m256 v)
{
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
}

/* e^x to 2 units in the last place, by e^x = 2^n e^r with |r| <= ln(2) / 2 and a Taylor series of e^r; 0 below -87. */
INLINE __m256 exp_lanes(__m256 x)
{
    const __m256 least = _mm256_set1_ps(-87.0f), most = _mm256_set1_ps(88.0f);
    __m256 in_range = _mm256_cmp_ps(x, least, _CMP_GE_OQ);
    x = _mm256_min_ps(_mm256_max_ps(x, least), most);
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x); /* ln 2 in two parts, the first exact */
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 sum = _mm256_set1_ps(1.0f / 5040);
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 720));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 120));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 24));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f / 6));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(0.5f));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f));
    sum = _mm256_fmadd_ps(sum, r, _mm256_set1_ps(1.0f));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_and_ps(_mm256_mul_ps(sum, _mm256_castsi256_ps(power)), in_range);
}
#endif
#endif
