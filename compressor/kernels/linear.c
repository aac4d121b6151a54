/* Linear layers whose weights are codes of 8 or 4 bits, read as they are stored.
 *
 * Each row of x is rounded to 16-bit integers with one step per row, so that codes and activations multiply and
 * add up exactly in 32 bits. A row of the result depends on its own row of x alone: not on the batch, the tiling, the
 * number of threads or the set of instructions.
 */
#include "kernels.h"

#include <stdlib.h>

#ifdef TTGPT_AVX2

#define LARGEST 32767          /* of a rounded activation */
#define SPAN 4096              /* columns until 8 lanes of 32 bits might overflow: 4096 / 8 * 128 * 32767 < 2^31 */
#define WIDEST_BYTES (24 << 10) /* of 8 rows of x, which are read again for every two rows of W */
#define CACHE_BYTES (16 << 10) /* of codes that all of x is multiplied by before the next ones are read */

typedef struct {
    int16_t *x;      /* [rows, k]; for 4 bits in the order in which codes are unpacked, see order_group */
    int32_t *offset; /* 4 bits: [rows, k / 64, 8], what the codes' origin of 7.5 subtracts */
    float *step;     /* [rows] */
    int64_t span;    /* 4 bits: vectors of codes with one scale */
} Rounded;

/* Some rows of W, how many bytes further the next ones lie, and how many strips of x share in fetching these. */
typedef struct {
    int64_t from, to, ahead, strips;
} Span;

INLINE __m256 normalised(const Norm *norm, const float *x, int64_t i, __m256 mean, __m256 inverse)
{
    __m256 v = _mm256_loadu_ps(x + i);
    if (!norm->weight)
        return v;
    v = _mm256_mul_ps(_mm256_sub_ps(v, mean), inverse);
    return _mm256_fmadd_ps(v, _mm256_loadu_ps(norm->weight + i), _mm256_loadu_ps(norm->bias + i));
}

/* Put column 4 w + j of a group in place 16 j + w, and store what is to be added to its products with the codes. */
INLINE void order_group(int16_t *group, int32_t *offset)
{
    const __m256i pairs = _mm256_broadcastsi128_si256(
        _mm_setr_epi8(0, 1, 8, 9, 2, 3, 10, 11, 4, 5, 12, 13, 6, 7, 14, 15)); /* columns j of two w side by side */
    __m256i quarter[4];
    for (int i = 0; i < 4; i++)
        quarter[i] = _mm256_shuffle_epi8(_mm256_loadu_si256((const __m256i *)(group + 16 * i)), pairs);
    /* Each lane now has 4 pairs j = 0 .. 3: transpose the lanes of the first half, and beside them of the second. */
    const __m256i a = _mm256_permute2x128_si256(quarter[0], quarter[2], 0x20);
    const __m256i b = _mm256_permute2x128_si256(quarter[0], quarter[2], 0x31);
    const __m256i c = _mm256_permute2x128_si256(quarter[1], quarter[3], 0x20);
    const __m256i d = _mm256_permute2x128_si256(quarter[1], quarter[3], 0x31);
    const __m256i ab_low = _mm256_unpacklo_epi32(a, b), cd_low = _mm256_unpacklo_epi32(c, d);
    const __m256i ab_high = _mm256_unpackhi_epi32(a, b), cd_high = _mm256_unpackhi_epi32(c, d);
    const __m256i ordered[4] = {
        _mm256_unpacklo_epi64(ab_low, cd_low), _mm256_unpackhi_epi64(ab_low, cd_low),
        _mm256_unpacklo_epi64(ab_high, cd_high), _mm256_unpackhi_epi64(ab_high, cd_high),
    };
    __m256i sum = _mm256_setzero_si256();
    for (int j = 0; j < 4; j++) {
        _mm256_storeu_si256((__m256i *)(group + 16 * j), ordered[j]);
        sum = _mm256_add_epi32(sum, _mm256_madd_epi16(ordered[j], _mm256_set1_epi16(1)));
    }
    sum = _mm256_mullo_epi32(_mm256_srai_epi32(sum, 1), _mm256_set1_epi32(-15)); /* the columns are even */
    _mm256_storeu_si256((__m256i *)offset, sum);
}

/* Normalise one row of x and round it; for 4-bit codes in the order in which they are unpacked. */
KERNEL static void round_row(const Linear *t, const Rounded *to, int64_t row)
{
    const int64_t k = t->w.k;
    const float *x = t->x + row * k;
    __m256 mean = _mm256_setzero_ps(), inverse = mean, most = mean;
    if (t->norm.weight) {
        __m256 sum = _mm256_setzero_ps(), squares = sum;
        for (int64_t i = 0; i < k; i += 8)
            sum = _mm256_add_ps(sum, _mm256_loadu_ps(x + i));
        mean = _mm256_set1_ps(lanes_sum(sum) / k);
        for (int64_t i = 0; i < k; i += 8) {
            __m256 v = _mm256_sub_ps(_mm256_loadu_ps(x + i), mean);
            squares = _mm256_fmadd_ps(v, v, squares);
        }
        const __m128 spread = _mm_set_ss(lanes_sum(squares) / k + t->norm.epsilon);
        inverse = _mm256_set1_ps(1 / _mm_cvtss_f32(_mm_sqrt_ss(spread)));
    }
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int64_t i = 0; i < k; i += 8)
        most = _mm256_max_ps(most, _mm256_and_ps(magnitude, normalised(&t->norm, x, i, mean, inverse)));
    float lane[8], largest = 0;
    _mm256_storeu_ps(lane, most);
    for (int i = 0; i < 8; i++)
        largest = lane[i] > largest ? lane[i] : largest;
    /* Codes of 4 bits lie at c - 7.5; even activations make the product an integer. */
    const int even = t->w.groups > 0;
    const float step = largest / (even ? LARGEST / 2 : LARGEST);
    const __m256 per_step = _mm256_set1_ps(step > 1e-37f ? 1 / step : 0);
    int16_t *rounded = to->x + row * k;
    to->step[row] = even ? step / 2 : step;
    for (int64_t i = 0; i < k; i += 16) {
        __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(normalised(&t->norm, x, i, mean, inverse), per_step));
        __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(normalised(&t->norm, x, i + 8, mean, inverse), per_step));
        __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
        _mm256_storeu_si256((__m256i *)(rounded + i), even ? _mm256_add_epi16(both, both) : both);
    }
    for (int64_t g = 0; even && g < k / INT4_COLUMNS; g++)
        order_group(rounded + g * INT4_COLUMNS, to->offset + (row * (k / INT4_COLUMNS) + g) * 8);
}

INLINE float bf16(uint16_t bits)
{
    union { uint32_t bits; float value; } number = { (uint32_t)bits << 16 };
    return number.value;
}

#define TARGET KERNEL
#define NAMED(name) name##_avx2
#define DOT(sum, a, b) _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
#define WIDE 0
#include "products.h"

#define VNNI __attribute__((target("avx2,fma,f16c,avx512f,avx512bw,avx512vl,avx512vnni")))

/* _mm256_dpwssd_epi32 in place: gcc 12 copies the sum to and fro around the intrinsic, which takes a third longer. */
VNNI static inline __attribute__((always_inline)) __m256i dot_vnni(__m256i sum, __m256i a, __m256i b)
{
    __asm__("vpdpwssd %2, %1, %0" : "+v"(sum) : "v"(a), "vm"(b));
    return sum;
}

#define TARGET VNNI
#define NAMED(name) name##_vnni
#define DOT(sum, a, b) dot_vnni(sum, a, b)
#define WIDE 1
#include "products.h"

KERNEL static void finish(const Linear *t, int64_t row, int64_t from, int64_t to)
{
    float *out = t->out + row * t->w.n;
    const float *residual = t->residual ? t->residual + row * t->w.n : 0;
    const __m256 outer = _mm256_set1_ps(-2 * 0.7978845608f), inner = _mm256_set1_ps(0.044715f), one = _mm256_set1_ps(1);
    for (int64_t n = from; n < to; n += 8) {
        float lane[8] = { 0 };
        const int count = to - n < 8 ? (int)(to - n) : 8;
        for (int i = 0; i < count; i++)
            lane[i] = out[n + i];
        __m256 v = _mm256_loadu_ps(lane);
        if (t->activation == ACTIVATION_RELU)
            v = _mm256_max_ps(v, _mm256_setzero_ps());
        else if (t->activation == ACTIVATION_GELU_NEW) { /* x / (1 + e^(-2 u)) = x / 2 (1 + tanh u) */
            __m256 cubic = _mm256_fmadd_ps(_mm256_mul_ps(_mm256_mul_ps(v, v), inner), v, v);
            v = _mm256_div_ps(v, _mm256_add_ps(one, exp_lanes(_mm256_mul_ps(cubic, outer))));
        }
        _mm256_storeu_ps(lane, v);
        for (int i = 0; i < count; i++)
            out[n + i] = lane[i] + (residual ? residual[n + i] : 0);
    }
}

static int64_t offset_count(const Linear *t) { return t->w.groups ? t->rows * (t->w.k / INT4_COLUMNS) * 8 : 0; }

size_t linear_bytes(const Linear *t)
{
    const size_t steps = (size_t)t->rows * 4 + 16; /* four are read at a time */
    return ((size_t)t->rows * t->w.k * 2 + (size_t)offset_count(t) * 4 + steps + 63) / 64 * 64;
}

void linear_in_team(const Linear *t, char *memory, Team team)
{
    const int64_t tiles = (t->w.n + 15) / 16; /* a cache line of results each */
    char *offsets = memory + (size_t)t->rows * t->w.k * 2;
    const Rounded rounded = {
        .x = (int16_t *)memory, .offset = (int32_t *)offsets, .step = (float *)(offsets + (size_t)offset_count(t) * 4),
        .span = t->w.groups ? t->w.k / INT4_COLUMNS / t->w.groups : 0,
    };
    for (int64_t row = team.thread; row < t->rows; row += team.threads)
        round_row(t, &rounded, row);
    wait_for_team(team);
    const int64_t from = tiles * team.thread / team.threads * 16, end = tiles * (team.thread + 1) / team.threads * 16;
    const int64_t to = end < t->w.n ? end : t->w.n;
    (t->instructions == INSTRUCTIONS_VNNI ? products_vnni : products_avx2)(t, &rounded, from, to);
    if (t->activation != ACTIVATION_NONE || t->residual)
        for (int64_t row = 0; row < t->rows; row++)
            finish(t, row, from, to);
    wait_for_team(team);
}

int linear(const Linear *t)
{
    char *memory = aligned_alloc(64, linear_bytes(t));
    if (!memory)
        return -1;
    Barrier barrier = { 0, 0 };
#pragma omp parallel num_threads((int)t->threads)
    linear_in_team(t, memory, my_team(&barrier));
    free(memory);
    return 0;
}
#else
int linear(const Linear *t) { (void)t; return -1; }
#endif
