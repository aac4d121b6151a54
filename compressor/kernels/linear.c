/* Linear layers whose weights are codes of 8 or 4 bits, read as they are stored.
 *
 * Each row of x is rounded to 16-bit integers with one step per row, so that codes and activations multiply and
 * add up exactly in 32 bits. A row of the result depends on its own row of x alone: not on the batch, the tiling or
 * the number of threads.
 */
#include "kernels.h"

#include <stdlib.h>

#ifdef TTGPT_AVX2

#define LARGEST 32767          /* of a rounded activation */
#define SPAN 4096              /* columns until 8 lanes of 32 bits might overflow: 4096 / 8 * 128 * 32767 < 2^31 */
#define GROUP 64               /* columns of 4-bit codes in one vector */
#define MOST_GROUPS 512        /* per row of 4-bit codes */
#define CACHE_BYTES (16 << 10) /* of codes that all of x is multiplied by before the next ones are read */
#define AHEAD 4096             /* bytes of codes to fetch in advance */

typedef struct {
    int16_t *x;      /* [rows, k]; for 4 bits in the order in which codes are unpacked, see round_row */
    int32_t *offset; /* 4 bits: [rows, k / 64, 8], what the codes' origin of 7.5 subtracts */
    float *step;     /* [rows] */
} Rounded;

INLINE __m256 normalised(const Linear *t, const float *x, int64_t i, __m256 mean, __m256 inverse)
{
    __m256 v = _mm256_loadu_ps(x + i);
    if (!t->norm_weight)
        return v;
    v = _mm256_mul_ps(_mm256_sub_ps(v, mean), inverse);
    return _mm256_fmadd_ps(v, _mm256_loadu_ps(t->norm_weight + i), _mm256_loadu_ps(t->norm_bias + i));
}

/* Normalise one row of x and round it; for 4-bit codes in the order in which they are unpacked. */
KERNEL static void round_row(const Linear *t, const Rounded *to, int64_t row)
{
    const float *x = t->x + row * t->k;
    const int64_t k = t->k;
    __m256 mean = _mm256_setzero_ps(), inverse = mean, most = mean;
    if (t->norm_weight) {
        __m256 sum = _mm256_setzero_ps(), squares = sum;
        for (int64_t i = 0; i < k; i += 8)
            sum = _mm256_add_ps(sum, _mm256_loadu_ps(x + i));
        mean = _mm256_set1_ps(lanes_sum(sum) / k);
        for (int64_t i = 0; i < k; i += 8) {
            __m256 v = _mm256_sub_ps(_mm256_loadu_ps(x + i), mean);
            squares = _mm256_fmadd_ps(v, v, squares);
        }
        const __m128 spread = _mm_set_ss(lanes_sum(squares) / k + t->epsilon);
        inverse = _mm256_set1_ps(1 / _mm_cvtss_f32(_mm_sqrt_ss(spread)));
    }
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    for (int64_t i = 0; i < k; i += 8)
        most = _mm256_max_ps(most, _mm256_and_ps(magnitude, normalised(t, x, i, mean, inverse)));
    float lane[8], largest = 0;
    _mm256_storeu_ps(lane, most);
    for (int i = 0; i < 8; i++)
        largest = lane[i] > largest ? lane[i] : largest;
    /* Codes of 4 bits lie at c - 7.5; even activations make the product an integer. */
    const int even = t->groups > 0;
    const float step = largest / (even ? LARGEST / 2 : LARGEST);
    const __m256 per_step = _mm256_set1_ps(step > 1e-37f ? 1 / step : 0);
    int16_t *rounded = to->x + row * k;
    to->step[row] = even ? step / 2 : step;
    for (int64_t i = 0; i < k; i += 16) {
        __m256i low = _mm256_cvtps_epi32(_mm256_mul_ps(normalised(t, x, i, mean, inverse), per_step));
        __m256i high = _mm256_cvtps_epi32(_mm256_mul_ps(normalised(t, x, i + 8, mean, inverse), per_step));
        __m256i both = _mm256_permute4x64_epi64(_mm256_packs_epi32(low, high), 0xd8);
        _mm256_storeu_si256((__m256i *)(rounded + i), even ? _mm256_add_epi16(both, both) : both);
    }
    if (!even)
        return;
    for (int64_t g = 0; g < k / GROUP; g++) { /* column 4 w + j of a group goes to 16 j + w */
        int16_t *group = rounded + g * GROUP, ordered[GROUP];
        int32_t *offset = to->offset + (row * (k / GROUP) + g) * 8;
        for (int w = 0; w < 16; w++)
            for (int j = 0; j < 4; j++)
                ordered[16 * j + w] = group[4 * w + j];
        for (int lane = 0; lane < 8; lane++) {
            int32_t sum = 0;
            for (int j = 0; j < 4; j++)
                sum += ordered[16 * j + 2 * lane] + ordered[16 * j + 2 * lane + 1];
            offset[lane] = -15 * (sum / 2);
        }
        for (int i = 0; i < GROUP; i++)
            group[i] = ordered[i];
    }
}

INLINE float bf16(uint16_t bits)
{
    union { uint32_t bits; float value; } number = { (uint32_t)bits << 16 };
    return number.value;
}

/* part[c] += 16 codes times 16 columns of row c of x. */
INLINE void multiply8(const int8_t *w, const int16_t *x, int64_t k, const int C, __m256i part[4])
{
    const __m256i codes = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)w));
    for (int c = 0; c < C; c++)
        part[c] = _mm256_add_epi32(part[c], _mm256_madd_epi16(codes, _mm256_loadu_si256((const __m256i *)(x + c * k))));
}

/* total[c] = 8 parts of row n of the codes times row c of x. */
INLINE void tile8(const Linear *t, const int16_t *x, int64_t n, const int C, __m256 total[4])
{
    const int8_t *w = (const int8_t *)t->codes + n * t->k;
    for (int64_t start = 0; start < t->k; start += SPAN) {
        const int64_t end = start + SPAN < t->k ? start + SPAN : t->k;
        __m256i part[4];
        for (int c = 0; c < C; c++)
            part[c] = _mm256_setzero_si256();
        int64_t i = start;
        for (; i + 64 <= end; i += 64) {
            _mm_prefetch((const char *)(w + i + AHEAD), _MM_HINT_T0);
            for (int j = 0; j < 64; j += 16)
                multiply8(w + i + j, x + i + j, t->k, C, part);
        }
        for (; i < end; i += 16)
            multiply8(w + i, x + i, t->k, C, part);
        for (int c = 0; c < C; c++)
            total[c] = _mm256_add_ps(total[c], _mm256_cvtepi32_ps(part[c]));
    }
}

/* The same for R rows of 4-bit codes and with their scales, of which every `span` vectors have one. */
INLINE void tile4(const Linear *t, const int16_t *x, const int32_t *offset, int64_t n, const int R, const int C,
                  __m256 total[2][4])
{
    const int64_t vectors = t->k / GROUP, span = vectors / t->groups;
    const __m256i *w = (const __m256i *)((const uint8_t *)t->codes + n * (t->k / 2));
    const __m256i nibble = _mm256_set1_epi16(15);
    float factor[2][MOST_GROUPS];
    for (int r = 0; r < R; r++)
        for (int64_t g = 0; g < t->groups; g++)
            factor[r][g] = bf16(t->scale[(n + r) * t->groups + g]);
    for (int64_t g = 0; g < vectors; g++) {
        for (int r = 0; r < R; r++) {
            _mm_prefetch((const char *)(w + r * vectors + g) + AHEAD, _MM_HINT_T0);
            const __m256i packed = _mm256_loadu_si256(w + r * vectors + g);
            const __m256 scale = _mm256_broadcast_ss(&factor[r][span == 1 ? g : g / span]);
            const __m256i codes[4] = {
                _mm256_and_si256(packed, nibble),
                _mm256_and_si256(_mm256_srli_epi16(packed, 4), nibble),
                _mm256_and_si256(_mm256_srli_epi16(packed, 8), nibble),
                _mm256_srli_epi16(packed, 12),
            };
            for (int c = 0; c < C; c++) {
                const __m256i *v = (const __m256i *)(x + c * t->k + g * GROUP);
                __m256i part = _mm256_loadu_si256((const __m256i *)(offset + (c * vectors + g) * 8));
                for (int j = 0; j < 4; j++)
                    part = _mm256_add_epi32(part, _mm256_madd_epi16(codes[j], _mm256_loadu_si256(v + j)));
                total[r][c] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(part), scale, total[r][c]);
            }
        }
    }
}

/* C rows of x from `row` on times R rows of W from n on. */
INLINE void tile(const Linear *t, const Rounded *of, int64_t row, int64_t n, const int R, const int C)
{
    const int16_t *x = of->x + row * t->k;
    __m256 total[2][4];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < 4; c++)
            total[r][c] = _mm256_setzero_ps();
    if (t->groups)
        tile4(t, x, of->offset + row * (t->k / GROUP) * 8, n, R, C, total);
    else
        tile8(t, x, n, C, total[0]);
    for (int r = 0; r < R; r++) {
        __m256 pairs = _mm256_hadd_ps(_mm256_hadd_ps(total[r][0], total[r][1]), _mm256_hadd_ps(total[r][2], total[r][3]));
        __m128 sum = _mm_add_ps(_mm256_castps256_ps128(pairs), _mm256_extractf128_ps(pairs, 1));
        sum = _mm_mul_ps(sum, _mm_loadu_ps(of->step + row));
        if (!t->groups)
            sum = _mm_mul_ps(sum, _mm_set1_ps(bf16(t->scale[n + r])));
        sum = _mm_add_ps(sum, _mm_set1_ps(t->bias ? t->bias[n + r] : 0));
        float lane[4];
        _mm_storeu_ps(lane, sum);
        for (int c = 0; c < C; c++)
            t->out[(row + c) * t->n + n + r] = lane[c];
    }
}

/* C rows of x from `row` on times rows from .. to - 1 of W. */
INLINE void strip(const Linear *t, const Rounded *of, int64_t row, int64_t from, int64_t to, const int C)
{
    if (C == 1 && t->groups) /* two rows of W at a time keep the multipliers busy; codes of 8 bits wait for memory */
        for (; from + 2 <= to; from += 2)
            tile(t, of, row, from, 2, C);
    for (; from < to; from++)
        tile(t, of, row, from, 1, C);
}

KERNEL static void finish(const Linear *t, int64_t row, int64_t from, int64_t to)
{
    float *out = t->out + row * t->n;
    const float *residual = t->residual ? t->residual + row * t->n : 0;
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

/* Columns from .. to - 1 of the result. */
KERNEL static void columns(const Linear *t, const Rounded *of, int64_t from, int64_t to)
{
    const int64_t row_bytes = t->groups ? t->k / 2 : t->k;
    const int64_t block = CACHE_BYTES / row_bytes > 2 ? CACHE_BYTES / row_bytes : 2;
    for (int64_t first = from; first < to; first += block) {
        const int64_t last = first + block < to ? first + block : to;
        int64_t row = 0;
        for (; row + 4 <= t->rows; row += 4)
            strip(t, of, row, first, last, 4);
        switch (t->rows - row) {
        case 3: strip(t, of, row, first, last, 3); break;
        case 2: strip(t, of, row, first, last, 2); break;
        case 1: strip(t, of, row, first, last, 1); break;
        }
    }
    if (t->activation != ACTIVATION_NONE || t->residual)
        for (int64_t row = 0; row < t->rows; row++)
            finish(t, row, from, to);
}

int linear(const Linear *t)
{
    const int64_t tiles = (t->n + 15) / 16; /* a cache line of results each */
    const size_t x_bytes = (size_t)t->rows * t->k * 2, offsets = t->groups ? (size_t)t->rows * t->k / GROUP * 32 : 0;
    char *memory = aligned_alloc(64, (x_bytes + offsets + (size_t)t->rows * 4 + 16 + 191) / 64 * 64);
    if (!memory)
        return -1;
    const Rounded rounded = { (int16_t *)memory, (int32_t *)(memory + x_bytes), (float *)(memory + x_bytes + offsets) };
#pragma omp parallel num_threads((int)t->threads)
    {
#pragma omp for schedule(static)
        for (int64_t row = 0; row < t->rows; row++)
            round_row(t, &rounded, row);
#pragma omp for schedule(static)
        for (int64_t part = 0; part < t->threads; part++) {
            const int64_t from = tiles * part / t->threads * 16, to = tiles * (part + 1) / t->threads * 16;
            columns(t, &rounded, from, to < t->n ? to : t->n);
        }
    }
    free(memory);
    return 0;
}
#else
int linear(const Linear *t) { (void)t; return -1; }
#endif
