/* The kernels of one set of instructions; the file that includes this has chosen it and says its NAME. */
#include "simd.h"

/* Products of rows of x ------------------------------------------------------------------------------------------ */

enum { AHEAD = 2048 }; /* bytes of codes that are fetched before they are multiplied */

/* sums[r] = codes [vectors][16 rows][4 columns] times x from vector `first` on, of which R rows lie `stride` apart; modulo
 * 2^32, as all sums of these integers are: only the difference to the sum of x times the centre has to fit. */
#if defined(AVX512)
typedef int32_t __attribute__((may_alias, aligned(1))) Columns; /* a byte of each of 4 columns */

/* _mm512_dpbusd_epi32 in place, x from memory: gcc 12 would go through a general register, and copy the sum to and fro. */
INLINE __m512i add_products(__m512i sum, __m512i codes, const int8_t *x)
{
    __asm__("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(sum) : "v"(codes), "m"(*(const Columns *)x));
    return sum;
}

INLINE void dot(const uint8_t *codes, const int16_t *rows, int64_t first, int64_t stride, int64_t vectors, const int PLANES,
                const int R, Ints *sums)
{
    const int U = R >= 8 ? 1 : R == 4 ? 2 : 4; /* vectors at a time: no sum waits for itself */
    const int8_t *x = (const int8_t *)rows + first * VECTOR; /* of every row the high and then the low bytes, or just bytes */
    int64_t v = 0;
    __m512i high[16], low[16];
    for (int i = 0; i < R * U; i++)
        high[i] = low[i] = _mm512_setzero_si512();
    for (; v + U <= vectors; v += U)
        for (int u = 0; u < U; u++) {
            const __m512i w = _mm512_loadu_si512(codes + (v + u) * 64);
            if (R == 8)
                __builtin_prefetch(codes + v * 64 + AHEAD);
            for (int r = 0; r < R; r++) {
                const int8_t *four = x + PLANES * r * stride + (v + u) * VECTOR;
                high[r * U + u] = add_products(high[r * U + u], w, four);
                if (PLANES == 2)
                    low[r * U + u] = add_products(low[r * U + u], w, four + stride);
            }
        }
    for (; v < vectors; v++)
        for (int r = 0; r < R; r++) {
            const __m512i w = _mm512_loadu_si512(codes + v * 64);
            const int8_t *four = x + PLANES * r * stride + v * VECTOR;
            high[r * U] = add_products(high[r * U], w, four);
            if (PLANES == 2)
                low[r * U] = add_products(low[r * U], w, four + stride);
        }
    for (int r = 0; r < R; r++) {
        for (int u = 1; u < U; u++) {
            high[r * U] = _mm512_add_epi32(high[r * U], high[r * U + u]);
            low[r * U] = _mm512_add_epi32(low[r * U], low[r * U + u]);
        }
        sums[r] = (Ints)(PLANES == 2 ? _mm512_add_epi32(_mm512_slli_epi32(high[r * U], 8), low[r * U]) : high[r * U]);
    }
}

#elif defined(AVX2)
INLINE void dot(const uint8_t *codes, const int16_t *x, int64_t from, int64_t stride, int64_t vectors, const int PLANES,
                const int R, Ints *sums)
{
    (void)PLANES; /* 16 bits hold either */
    x += from * VECTOR;
    for (int first = 0; first < R; first += 2) { /* two rows of x fill the registers */
        __m256i part[2][4];
        for (int r = 0; r < 2; r++)
            for (int q = 0; q < 4; q++)
                part[r][q] = _mm256_setzero_si256();
        for (int64_t v = 0; v < vectors; v++) {
            __m256i four[2];
            for (int r = 0; r < 2 && first + r < R; r++) {
                int64_t columns;
                memcpy(&columns, x + (first + r) * stride + v * VECTOR, sizeof columns);
                four[r] = _mm256_set1_epi64x(columns);
            }
            for (int q = 0; q < 4; q++) {
                const __m256i w = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(codes + v * 64) + q));
                for (int r = 0; r < 2 && first + r < R; r++)
                    part[r][q] = _mm256_add_epi32(part[r][q], _mm256_madd_epi16(w, four[r]));
            }
        }
        for (int r = 0; r < 2 && first + r < R; r++) {
            __m256i eight[2];
            for (int i = 0; i < 2; i++)
                eight[i] = _mm256_permute4x64_epi64(_mm256_hadd_epi32(part[r][2 * i], part[r][2 * i + 1]), 0xd8);
            memcpy(&sums[first + r], eight, sizeof eight);
        }
    }
}

#elif defined(NEON)
/* Two rows of x fill the registers. These products are of signed bytes: codes are moved by 128, which a fifth product of
 * the row with that makes good. */
INLINE void dot(const uint8_t *codes, const int16_t *rows, int64_t first, int64_t stride, int64_t vectors, const int PLANES,
                const int R, Ints *sums)
{
    const int8x16_t moved = vdupq_n_s8(-128);
    for (int row = 0; row < R; row += 2) {
        int32x4_t part[2][2][5];
        memset(part, 0, sizeof part);
        for (int64_t v = 0; v < vectors; v++) {
            int8x16_t w[4];
            for (int q = 0; q < 4; q++)
                w[q] = veorq_s8(vld1q_s8((const int8_t *)codes + v * 64 + q * 16), moved);
            for (int r = 0; r < 2 && row + r < R; r++)
                for (int plane = 0; plane < PLANES; plane++) {
                    int32_t four;
                    memcpy(&four, (const int8_t *)rows + (PLANES * (row + r) + plane) * stride + (first + v) * VECTOR, sizeof four);
                    const int8x16_t columns = vreinterpretq_s8_s32(vdupq_n_s32(four));
                    for (int q = 0; q < 4; q++)
                        part[r][plane][q] = vdotq_s32(part[r][plane][q], w[q], columns);
                    part[r][plane][4] = vdotq_s32(part[r][plane][4], moved, columns);
                }
        }
        for (int r = 0; r < 2 && row + r < R; r++)
            for (int q = 0; q < 4; q++) {
                int32x4_t sum = vsubq_s32(part[r][0][q], part[r][0][4]);
                if (PLANES == 2)
                    sum = vaddq_s32(vshlq_n_s32(sum, 8), vsubq_s32(part[r][1][q], part[r][1][4]));
                vst1q_s32((int32_t *)&sums[row + r] + 4 * q, sum);
            }
    }
}

#else
INLINE void dot(const uint8_t *codes, const int16_t *x, int64_t from, int64_t stride, int64_t vectors, const int PLANES,
                const int R, Ints *sums)
{
    (void)PLANES; /* 16 bits hold either */
    x += from * VECTOR;
    for (int r = 0; r < R; r++) {
        uint32_t lane[LANES] = { 0 };
        for (int64_t v = 0; v < vectors; v++)
            for (int i = 0; i < LANES; i++)
                for (int c = 0; c < VECTOR; c++)
                    lane[i] += (uint32_t)((int32_t)codes[v * 64 + i * VECTOR + c] * x[r * stride + v * VECTOR + c]);
        memcpy(&sums[r], lane, sizeof lane);
    }
}

#endif

/* Where the codes of a row of x go, what each 64 columns are further on, and the low bytes behind the high ones. */
typedef struct {
    int16_t *codes;
    int64_t step, plane;
} Place;

#if defined(AVX512) || defined(NEON)
#define IN_BYTES
/* Codes of columns at .. at + count - 1: their high bytes apart from their low ones, both signed, or just bytes. */
INLINE void arrange(Ints codes, Place place, int64_t at, int64_t count, const int PLANES)
{
    int8_t *to = (int8_t *)place.codes + at / 64 * place.step + at % 64;
    const Ints high = PLANES == 2 ? (codes + 128) >> 8 : codes;
    const Quarters bytes[2] = { __builtin_convertvector(high, Quarters), __builtin_convertvector(codes - high * 256, Quarters) };
    const size_t size = (size_t)padded(count, VECTOR);
    memcpy(to, &bytes[0], count == LANES ? LANES : size);
    if (PLANES == 2)
        memcpy(to + place.plane, &bytes[1], count == LANES ? LANES : size);
}
#else
INLINE void arrange(Ints codes, Place place, int64_t at, int64_t count, const int PLANES)
{
    const Halves halves = __builtin_convertvector(codes, Halves);
    (void)PLANES;
    memcpy(place.codes + at, &halves, (size_t)padded(count, VECTOR) * sizeof *place.codes);
}
#endif

/* 8 vectors of codes from their bit fields: byte j of each 64 holds code j of vector i in field i. */
INLINE void unpack_unit(const uint8_t *packed, uint8_t *codes, const Element element)
{
    typedef uint8_t Bytes __attribute__((vector_size(64)));
    typedef uint16_t Pairs __attribute__((vector_size(64))); /* CPUs shift no single bytes; masks cut off the neighbours */
    Bytes block[2], field;
    if (element == CODES4) {
        for (int b = 0; b < 4; b++) {
            memcpy(block, packed + 64 * b, 64);
            field = block[0] & 15;
            memcpy(codes + 64 * b, &field, 64);
            field = (Bytes)((Pairs)block[0] >> 4) & 15;
            memcpy(codes + 64 * (b + 4), &field, 64);
        }
        return;
    }
    Bytes ones = { 0 };
    if (element == CODES3)
        memcpy(&ones, packed + 128, 64);
    for (int b = 0; b < 2; b++) {
        memcpy(block, packed + 64 * b, 64);
        for (int i = 0; i < 4; i++) {
            field = (Bytes)((Pairs)block[0] >> (2 * i)) & 3;
            if (element == CODES3) /* the third bit of vector v is bit v */
                field |= (Bytes)((Pairs)(i + 4 * b >= 2 ? (Pairs)ones >> (i + 4 * b - 2) : (Pairs)ones << (2 - i - 4 * b))) & 4;
            memcpy(codes + 64 * (i + 4 * b), &field, 64);
        }
    }
}

/* A vector of a trellis: the levels of 4 columns, whose 16 codes lie one behind another and once more from the first one. */
INLINE void unpack_path(const uint8_t *packed, uint8_t *levels, const int BITS)
{
    const uint8_t *table = trellis_levels(BITS);
    for (int c = 0; c < VECTOR; c++) {
        uint64_t codes = 0;
        for (int b = 0; b < 2 * BITS; b++)
            codes |= (uint64_t)packed[c * 2 * BITS + b] << 8 * b;
        for (int r = 0; r < LANES; r++) {
            const uint64_t from = r ? codes >> BITS * r | codes << (16 * BITS - BITS * r) : codes;
            levels[r * VECTOR + c] = table[from & 255];
        }
    }
}

APART void unpack_paths(const uint8_t *packed, uint8_t *levels, int64_t vectors, const Element element)
{
    const int bits = bits_of(element);
    for (int64_t v = 0; v < vectors; v++, packed += 8 * bits, levels += 64)
        switch (bits) {
        case 4: unpack_path(packed, levels, 4); break;
        case 3: unpack_path(packed, levels, 3); break;
        case 2: unpack_path(packed, levels, 2); break;
        default: unpack_path(packed, levels, 1);
        }
}

#if defined(AVX512)
#define VBMI __attribute__((target("avx512vbmi,avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")))

/* For the bytes of a vector in its order, [16 rows][4 columns]: 8 of them are the windows of 2 rows in 4 columns. Those of
 * one column are within 2 neighbouring bytes of its codes, which are brought there; of 3 bits those of the second row
 * are apart. */
typedef struct {
    __m512i bytes[2], shifts[2]; /* where they are, and by how many bits a window begins behind them */
} Windows;

INLINE VBMI Windows windows_of(const int BITS)
{
    uint8_t bytes[2][64], shifts[2][64];
    for (int apart = 0; apart < 2; apart++)
        for (int i = 0; i < 64; i++) {
            const int pair = i / 8, at = (2 * pair + apart * (BITS == 3)) * BITS; /* of the first window, in bits */
            const int column = i % 8 / 2, row = i / 4 % 2; /* what is brought to this byte, and what becomes of it */
            bytes[apart][i] = (uint8_t)(column * 2 * BITS + (at / 8 + i % 2) % (2 * BITS));
            shifts[apart][i] = (uint8_t)(i % 4 * 16 + at % 8 + (BITS == 3 ? 0 : row * BITS));
        }
    return (Windows){ { _mm512_loadu_si512(bytes[0]), _mm512_loadu_si512(bytes[1]) },
                      { _mm512_loadu_si512(shifts[0]), _mm512_loadu_si512(shifts[1]) } };
}

/* The bytes of a vector and what follows, once or more: no other way to load them takes nothing but a load. */
INLINE VBMI __m512i path_bytes(const uint8_t *packed, const int BITS)
{
    switch (BITS) {
    case 1: return _mm512_broadcastq_epi64(_mm_loadl_epi64((const void *)packed));
    case 2: return _mm512_broadcast_i32x4(_mm_loadu_si128((const void *)packed));
    default: return _mm512_broadcast_i64x4(_mm256_loadu_si256((const void *)packed));
    }
}

INLINE VBMI void unpack_with_vbmi(const uint8_t *packed, uint8_t *levels, int64_t vectors, const int BITS)
{
    const uint8_t *table = trellis_levels(BITS);
    const __m512i low = _mm512_loadu_si512(table), high = _mm512_loadu_si512(table + 64);
    const Windows w = windows_of(BITS);
    for (int64_t v = 0; v < vectors; v++, packed += 8 * BITS) {
        const __m512i stored = path_bytes(packed, BITS);
        __m512i windows = _mm512_multishift_epi64_epi8(w.shifts[0], _mm512_permutexvar_epi8(w.bytes[0], stored));
        if (BITS == 3)
            windows = _mm512_mask_multishift_epi64_epi8(windows, 0xf0f0f0f0f0f0f0f0, w.shifts[1],
                                                        _mm512_permutexvar_epi8(w.bytes[1], stored));
        const __m512i found = _mm512_permutex2var_epi8(low, windows, high);
        _mm512_storeu_si512(levels + v * 64, _mm512_mask_sub_epi8(found, _mm512_movepi8_mask(windows), _mm512_setzero_si512(), found));
        __builtin_prefetch(packed + AHEAD);
    }
}

APART VBMI void unpack_paths_with_vbmi(const uint8_t *packed, uint8_t *levels, int64_t vectors, const Element element)
{
    switch (element) {
    case PATHS4: unpack_with_vbmi(packed, levels, vectors, 4); break;
    case PATHS3: unpack_with_vbmi(packed, levels, vectors, 3); break;
    case PATHS2: unpack_with_vbmi(packed, levels, vectors, 2); break;
    default: unpack_with_vbmi(packed, levels, vectors, 1); break;
    }
}
#endif

/* Codes of the vectors from .. from + count - 1 of a panel; `from` begins a unit. Returns where they are. */
APART const uint8_t *unpacked(const Leaf *leaf, int64_t panel, int64_t from, int64_t count, uint8_t *to)
{
    const uint8_t *packed = leaf->codes + panel * leaf->panel_bytes;
    const int64_t unit_bytes = leaf->element == CODES4 ? 256 : leaf->element == CODES3 ? 192 : 128;
    if (leaf->element == CODES8)
        return packed + from * 64;
    if (leaf->element >= PATHS4) {
        packed += from * 8 * bits_of(leaf->element);
#if defined(AVX512)
        if (__builtin_cpu_supports("avx512vbmi")) {
            unpack_paths_with_vbmi(packed, to, count, leaf->element);
            return to;
        }
#endif
        unpack_paths(packed, to, count, leaf->element);
        return to;
    }
    packed += from / UNIT * unit_bytes;
    for (int64_t v = 0; v < count; v += UNIT, packed += unit_bytes, to += 64 * UNIT) {
        for (int64_t b = 0; b < unit_bytes; b += 64)
            __builtin_prefetch(packed + b + AHEAD);
        switch (leaf->element) {
        case CODES4: unpack_unit(packed, to, CODES4); break;
        case CODES3: unpack_unit(packed, to, CODES3); break;
        default: unpack_unit(packed, to, CODES2); break;
        }
    }
    return to - padded(count, UNIT) * 64;
}

/* Segments first .. last - 1 of a panel, whose codes are unpacked together: `count` vectors from `from` on, where a unit begins. */
typedef struct {
    int64_t panel, first, last, from, count;
    const uint8_t *codes;
} Unpacked;

INLINE Unpacked chunk_of(const Leaf *leaf, int64_t panel, int64_t first)
{
    const Segment *s = leaf->segments;
    const int64_t from = s[first].vector / UNIT * UNIT;
    int64_t last = first + 1, end = s[first].vector + s[first].vectors;
    for (; last < leaf->segment_count && s[last].vector + s[last].vectors - from <= CHUNK / VECTOR; last++)
        end = s[last].vector + s[last].vectors;
    return (Unpacked){ panel, first, last, from, end - from, NULL };
}

INLINE Unpacked unpack_chunk(const Leaf *leaf, int64_t panel, int64_t first, uint8_t *scratch)
{
    Unpacked u = chunk_of(leaf, panel, first);
    u.codes = unpacked(leaf, panel, u.from, u.count, scratch);
    return u;
}

INLINE const uint8_t *codes_of(const Unpacked *u, const Segment *s) { return u->codes + (s->vector - u->from) * 64; }

/* acc + the products of segment s of a row of x, from its sum with the codes and with the codes' origin. */
INLINE Floats scaled_sum(const Leaf *leaf, const Rounded *x, int64_t row, int64_t s, int64_t at, Ints products,
                         const int PLANES, const int ZERO, Floats acc)
{
    const int64_t place = s * x->rows + row;
    if (PLANES == 1) {
        const Floats from = ZERO ? zeros() : each(x->values[place]);
        acc = fma_lanes(fma_lanes(floats_of(products), each(x->steps[place]), from), load_bf16(leaf->scale + at), acc);
        return ZERO ? fma_lanes(each(x->values[place]), load_bf16(leaf->zero + at), acc) : acc;
    }
    const int32_t sum = x->sums[place];
    if (ZERO) {
        acc = fma_lanes(floats_of(products), load_bf16(leaf->scale + at), acc);
        return fma_lanes(each((float)sum), load_bf16(leaf->zero + at), acc);
    }
    const Words origin = (Words){ 0 } + (uint32_t)sum;
    return fma_lanes(floats_of((Ints)((Words)products - origin)), load_bf16(leaf->scale + at), acc);
}

/* Where the codes of a row of x are. */
INLINE int16_t *row_of(const Leaf *leaf, const Rounded *x, int64_t row, const int PLANES)
{
    const int64_t stride = leaf->vectors * VECTOR;
#if defined(IN_BYTES)
    return x->codes + row * stride * PLANES / 2;
#else
    (void)PLANES;
    return x->codes + row * stride;
#endif
}

/* acc[r] [16] += the part of segment s that lies in vectors from .. to - 1, scaled; R rows of x from `row` on. */
INLINE void add_segment(const Leaf *leaf, const Rounded *x, int64_t row, int64_t panel, const Segment *s, int64_t index,
                        const uint8_t *codes, const int PLANES, const int R, Floats *acc)
{
    Ints sums[8];
    const int64_t stride = leaf->vectors * VECTOR, at = (panel * leaf->groups + s->group) * LANES;
    dot(codes, row_of(leaf, x, row, PLANES), s->vector, stride, s->vectors, PLANES, R, sums);
    for (int r = 0; r < R; r++)
        acc[r] = scaled_sum(leaf, x, row + r, index, at, sums[r], PLANES, leaf->zero != NULL, acc[r]);
}

INLINE void add_rows(const Leaf *leaf, const Rounded *x, int64_t row, const Unpacked *u, const int PLANES, const int R,
                     float *sums)
{
    Floats acc[8];
    for (int r = 0; r < R; r++)
        acc[r] = load(sums + r * LANES);
    for (int64_t s = u->first; s < u->last; s++)
        add_segment(leaf, x, row, u->panel, &leaf->segments[s], s, codes_of(u, &leaf->segments[s]), PLANES, R, acc);
    for (int r = 0; r < R; r++)
        store(sums + r * LANES, acc[r]);
}

#define FOR_ROWS(CALL) /* rows in blocks of 8, 4, 2 and 1, so that each has its own registers */ \
    {                                                                                         \
        for (; row + 8 <= rows; row += 8) { enum { R = 8 }; CALL; }                           \
        if (row + 4 <= rows) { enum { R = 4 }; CALL; row += 4; }                              \
        if (row + 2 <= rows) { enum { R = 2 }; CALL; row += 2; }                              \
        if (row < rows) { enum { R = 1 }; CALL; }                                             \
    }

/* sums [rows][16] of one panel times rows `start` on of x. */
INLINE void integer_panel(const Leaf *leaf, const Rounded *x, int64_t start, int64_t rows, int64_t panel,
                          float *sums, uint8_t *scratch)
{
    memset(sums, 0, (size_t)rows * LANES * sizeof *sums);
    for (Unpacked u = { 0 }; u.last < leaf->segment_count;) {
        u = unpack_chunk(leaf, panel, u.last, scratch);
        int64_t row = 0;
        if (leaf->planes == 2)
            FOR_ROWS(add_rows(leaf, x, start + row, &u, 2, R, sums + row * LANES))
        else
            FOR_ROWS(add_rows(leaf, x, start + row, &u, 1, R, sums + row * LANES))
    }
}

/* sums [R][2][16] += weights [columns][16] times x: even and odd columns apart, so that no sum waits for itself. */
INLINE void add_floats(const char *weights, const Element element, const float *x, int64_t stride, int64_t columns,
                       const int R, float *sums)
{
    const int64_t column = LANES * (element == FP32 ? 4 : 2);
    Floats even[8], odd[8];
    for (int r = 0; r < R; r++)
        even[r] = load(sums + 2 * r * LANES), odd[r] = load(sums + (2 * r + 1) * LANES);
    int64_t c = 0;
    for (; c + 2 <= columns; c += 2, weights += 2 * column) {
        const Floats a = load_element(weights, 0, element), b = load_element(weights + column, 0, element);
        if (element != FP32)
            __builtin_prefetch(weights + AHEAD);
        for (int r = 0; r < R; r++) {
            even[r] = fma_lanes(a, each(x[r * stride + c]), even[r]);
            odd[r] = fma_lanes(b, each(x[r * stride + c + 1]), odd[r]);
        }
    }
    if (c < columns)
        for (int r = 0; r < R; r++)
            even[r] = fma_lanes(load_element(weights, 0, element), each(x[r * stride + c]), even[r]);
    for (int r = 0; r < R; r++)
        store(sums + 2 * r * LANES, even[r]), store(sums + (2 * r + 1) * LANES, odd[r]);
}

/* Columns from .. from + count - 1 of a panel of floats in fp32 [count][16]. */
INLINE const float *widened(const Leaf *leaf, int64_t panel, int64_t from, int64_t count, float *to)
{
    const char *stored = (const char *)leaf->codes + panel * leaf->panel_bytes;
    if (leaf->element == FP32)
        return (const float *)stored + from * LANES;
    for (int64_t c = 0; c < count; c++) {
        __builtin_prefetch(stored + (from + c) * LANES * 2 + AHEAD);
        store(to + c * LANES, leaf->element == FP16 ? load_element(stored, (from + c) * LANES, FP16)
                                                    : load_element(stored, (from + c) * LANES, BF16));
    }
    return to;
}

static void float_panel(const Leaf *leaf, const float *x, int64_t rows, int64_t panel, float *sums, float *scratch)
{
    memset(sums, 0, (size_t)rows * 2 * LANES * sizeof *sums);
    const int once = rows == 1 && leaf->element == FP16; /* then widening them apart takes longer than reading them */
    if (once)
        add_floats((const char *)leaf->codes + panel * leaf->panel_bytes, FP16, x, leaf->k, leaf->k, 1, sums);
    for (int64_t from = once ? leaf->k : 0; from < leaf->k; from += FLOAT_COLUMNS) {
        const int64_t count = least(FLOAT_COLUMNS, leaf->k - from);
        const char *weights = (const char *)widened(leaf, panel, from, count, scratch);
        int64_t row = 0;
        FOR_ROWS(add_floats(weights, FP32, x + row * leaf->k + from, leaf->k, count, R, sums + 2 * row * LANES))
    }
    for (int64_t row = 0; row < rows; row++)
        store(sums + row * LANES, load(sums + 2 * row * LANES) + load(sums + (2 * row + 1) * LANES));
}

/* What follows a product ----------------------------------------------------------------------------------------- */

/* tanh x = 1 - 2 / (1 + e^2x) */
INLINE Floats hyperbolic(Floats x) { return each(1) - each(2) / (each(1) + exponential(each(2) * x)); }

INLINE Floats activated(Floats v, Activation activation)
{
    switch (activation) {
    case RELU: return larger(v, zeros());
    case GELU_NEW: { /* x / (1 + e^(-2 u)) = x / 2 (1 + tanh u) */
        const Floats cubic = fma_lanes(v * v * each(0.044715f), v, v);
        return v / (each(1) + exponential(cubic * each(-2 * 0.7978845608f)));
    }
    case SILU: return v / (each(1) + exponential(-v));
    case QUICK_GELU: return v / (each(1) + exponential(each(-1.702f) * v));
    case TANH: return hyperbolic(v);
    case GELU:
        for (int i = 0; i < LANES; i++)
            v[i] = v[i] * 0.5f * (1 + erff(v[i] * 0.70710678f));
        return v;
    default: return v;
    }
}

/* Write lanes n .. n + 15 of a row. */
INLINE void finish_lanes(const Product *p, int64_t n_all, int64_t row, int64_t n, Floats v)
{
    float *out = p->out + row * p->out_stride + n;
    const int64_t count = least(LANES, n_all - n);
    if (p->add)
        v += load_some(out, count);
    if (p->bias)
        v += load_some(p->bias + n, count);
    v = activated(v, p->activation);
    if (p->residual)
        v += load_some(p->residual + row * p->out_stride + n, count);
    store_some(out, v, count);
}

/* The same of some rows of a whole panel [rows][16], times `steps` of all rows if there are any. */
INLINE void finish_rows(const Product *p, int64_t row, int64_t rows, int64_t n, const float *sums, const float *steps,
                        const int BIAS, const Activation activation, const int RESIDUAL)
{
    const Floats bias = BIAS ? load(p->bias + n) : zeros();
    for (const int64_t end = row + rows; row < end; row++, sums += LANES) {
        Floats v = steps ? load(sums) * each(steps[row]) : load(sums);
        v = activated(BIAS ? v + bias : v, activation);
        if (RESIDUAL)
            v += load(p->residual + row * p->out_stride + n);
        store(p->out + row * p->out_stride + n, v);
    }
}

/* What a decoder has most of is compiled for itself. */
static void finish_panel(const Product *p, int64_t n_all, int64_t row, int64_t rows, int64_t n, const float *sums, const float *steps)
{
    const int whole = n + LANES <= n_all && !p->add, linear = p->activation == NO_ACTIVATION;
    if (whole && !p->bias && linear && !p->residual)
        finish_rows(p, row, rows, n, sums, steps, 0, NO_ACTIVATION, 0);
    else if (whole && p->bias && linear && !p->residual)
        finish_rows(p, row, rows, n, sums, steps, 1, NO_ACTIVATION, 0);
    else if (whole && p->bias && linear)
        finish_rows(p, row, rows, n, sums, steps, 1, NO_ACTIVATION, 1);
    else if (whole && p->bias && p->activation == GELU_NEW && !p->residual)
        finish_rows(p, row, rows, n, sums, steps, 1, GELU_NEW, 0);
    else
        for (int64_t r = 0; r < rows; r++) {
            const Floats sum = load(sums + r * LANES);
            finish_lanes(p, n_all, row + r, n, steps ? sum * each(steps[row + r]) : sum);
        }
}

/* Bias, activation and residual of a row that is there already. */
static void finish(const Product *p, int64_t row, int64_t n)
{
    Product own = *p;
    own.add = 0;
    for (int64_t at = 0; at < n; at += LANES)
        finish_lanes(&own, n, row, at, load_some(p->out + row * p->out_stride + at, least(LANES, n - at)));
}

static void product(const Leaf *leaf, const Product *p, const Rounded *x, int64_t from, int64_t to, char *memory)
{
    const int integers = leaf->element >= CODES8;
    float *sums = (float *)memory;
    void *scratch = memory + (size_t)least(p->rows, ROWS) * 2 * LANES * sizeof(float);
    for (int64_t start = 0; start < p->rows; start += ROWS) {
        const int64_t rows = least(ROWS, p->rows - start);
        for (int64_t panel = from; panel < to; panel++) {
            if (integers)
                integer_panel(leaf, x, start, rows, panel, sums, scratch);
            else
                float_panel(leaf, p->x + start * leaf->k, rows, panel, sums, scratch);
            finish_panel(p, leaf->n, start, rows, panel * LANES, sums, leaf->planes == 2 ? x->steps : NULL);
        }
    }
}

/* Rows of x ------------------------------------------------------------------------------------------------------ */

typedef struct {
    Floats mean, inverse;
} Moments;

INLINE Moments moments(const float *x, int64_t k, float epsilon)
{
    Floats sum = zeros(), squares = zeros();
    for (int64_t i = 0; i < k; i += LANES)
        sum += load_some(x + i, least(LANES, k - i));
    const Floats mean = each(total(sum) / (float)k);
    for (int64_t i = 0; i < k; i += LANES) {
        const Floats v = load_some(x + i, least(LANES, k - i)) - mean;
        squares = choose(first_lanes(least(LANES, k - i)), fma_lanes(v, v, squares), squares);
    }
    return (Moments){ mean, each(1 / sqrtf(total(squares) / (float)k + epsilon)) };
}

INLINE Floats normalised(const Norm *norm, Moments m, const float *x, int64_t i, int64_t count)
{
    const Floats v = load_some(x + i, count);
    if (!norm)
        return v;
    return fma_lanes((v - m.mean) * m.inverse, load_some(norm->weight + i, count), load_some(norm->bias + i, count));
}

static void normalise(const Norm *norm, const float *x, float *out, int64_t k)
{
    const Moments m = moments(x, k, norm->epsilon);
    for (int64_t i = 0; i < k; i += LANES)
        store_some(out + i, normalised(norm, m, x, i, least(LANES, k - i)), least(LANES, k - i));
}

/* Round columns at .. at + count - 1 of a segment to integers, which are added to `sum`. */
INLINE Ints round_lanes(const Norm *norm, Moments m, const float *from, const Segment *s, int64_t at, int64_t count, Floats per_step,
                        const int EVEN, const int PLANES, Ints sum, Place place)
{
    const Floats v = rounded(normalised(norm, m, from, s->column + at, count) * per_step);
    const Ints integers = __builtin_convertvector(EVEN ? v + v : v, Ints);
    arrange(integers, place, s->vector * VECTOR + at, count, PLANES);
    return sum + integers;
}

/* The same of a whole segment; returns the sum. */
INLINE int32_t round_segment(const Norm *norm, Moments m, const float *from, const Segment *s, Floats per_step,
                             const int EVEN, const int PLANES, Place place)
{
    Ints sum = { 0 };
    int64_t i = 0;
    for (; i + LANES <= s->columns; i += LANES)
        sum = round_lanes(norm, m, from, s, i, LANES, per_step, EVEN, PLANES, sum, place);
    if (i < s->columns)
        sum = round_lanes(norm, m, from, s, i, s->columns - i, per_step, EVEN, PLANES, sum, place);
    return sum_of(sum);
}

/* The largest magnitude of some columns. */
INLINE float largest_of(const Norm *norm, Moments m, const float *from, int64_t column, int64_t columns)
{
    Floats most = zeros();
    int64_t i = 0;
    for (; i + LANES <= columns; i += LANES)
        most = larger(magnitude(normalised(norm, m, from, column + i, LANES)), most);
    if (i < columns)
        most = larger(magnitude(normalised(norm, m, from, column + i, columns - i)), most);
    return largest(most);
}

INLINE void round_row_as(const Leaf *leaf, const Norm *norm, const float *from, int64_t row, const Rounded *to, Place place,
                         const int EVEN)
{
    const Moments m = norm ? moments(from, leaf->k, norm->epsilon) : (Moments){ zeros(), zeros() };
    const float step = largest_of(norm, m, from, 0, leaf->k) / (EVEN ? LARGEST / 2 : LARGEST);
    const Floats per_step = each(step > 1e-37f ? 1 / step : 0);
    to->steps[row] = EVEN ? step / 2 : step;
    for (int64_t s = 0; s < leaf->segment_count; s++) {
        /* What lies below the codes' origin is subtracted; where that is half a one, the sum is even. */
        const int32_t all = round_segment(norm, m, from, &leaf->segments[s], per_step, EVEN, 2, place);
        to->sums[s * to->rows + row] = leaf->zero ? all : EVEN ? all / 2 * leaf->centre : all * (leaf->centre / 2);
    }
}

INLINE void round_row_to_bytes(const Leaf *leaf, const Norm *norm, const float *from, int64_t row, const Rounded *to, Place place)
{
    const Moments m = norm ? moments(from, leaf->k, norm->epsilon) : (Moments){ zeros(), zeros() };
    for (int64_t s = 0; s < leaf->segment_count; s++) {
        const Segment *segment = &leaf->segments[s];
        const float step = largest_of(norm, m, from, segment->column, segment->columns) / LARGEST_BYTE;
        const Floats per_step = each(step > 1e-37f ? 1 / step : 0);
        const float sum = (float)round_segment(norm, m, from, segment, per_step, 0, 1, place);
        to->steps[s * to->rows + row] = step;
        to->values[s * to->rows + row] = (leaf->zero ? sum : sum * ((float)leaf->centre / -2)) * step;
    }
}

/* Round row `row` of x, which is `from`, normalised before that if there is a norm, in the order of a leaf's vectors. Of 16
 * bits, codes around half a one need even activations, so that the product is an integer. */
static void round_row_at(const Leaf *leaf, const Norm *norm, const float *from, int64_t row, const Rounded *to, Place place)
{
    if (leaf->planes == 1)
        norm ? round_row_to_bytes(leaf, norm, from, row, to, place) : round_row_to_bytes(leaf, NULL, from, row, to, place);
    else if (leaf->centre % 2)
        norm ? round_row_as(leaf, norm, from, row, to, place, 1) : round_row_as(leaf, NULL, from, row, to, place, 1);
    else
        norm ? round_row_as(leaf, norm, from, row, to, place, 0) : round_row_as(leaf, NULL, from, row, to, place, 0);
}

static void round_row(const Leaf *leaf, const Norm *norm, const float *from, int64_t row, const Rounded *to)
{
    round_row_at(leaf, norm, from, row, to, (Place){ row_of(leaf, to, row, leaf->planes), 64, leaf->vectors * VECTOR });
}

/* Rotations ------------------------------------------------------------------------------------------------------ */

/* x [base][size] = a Hadamard matrix [base][base] times it. */
INLINE void rotate_base(float *x, int64_t size, const int BASE)
{
    const float *entries = hadamard(BASE);
    for (int64_t c = 0; c < size; c += LANES) {
        const int64_t count = least(LANES, size - c);
        Floats old[20];
        for (int i = 0; i < BASE; i++)
            old[i] = load_some(x + i * size + c, count);
        for (int i = 0; i < BASE; i++) {
            Floats sum = old[0] * each(entries[i * BASE]);
            for (int j = 1; j < BASE; j++)
                sum = fma_lanes(old[j], each(entries[i * BASE + j]), sum);
            store_some(x + i * size + c, sum, count);
        }
    }
}

/* a + b and a - b of neighbours in blocks of 2 * HALF lanes. */
#define SIGN(LANE, HALF) ((LANE) & (HALF) ? -1.0f : 1.0f)
#define SIGNS(HALF)                                                                                                       \
    (Floats) { SIGN(0, HALF), SIGN(1, HALF), SIGN(2, HALF), SIGN(3, HALF), SIGN(4, HALF), SIGN(5, HALF), SIGN(6, HALF),    \
               SIGN(7, HALF), SIGN(8, HALF), SIGN(9, HALF), SIGN(10, HALF), SIGN(11, HALF), SIGN(12, HALF), SIGN(13, HALF), \
               SIGN(14, HALF), SIGN(15, HALF) }
#define BUTTERFLY(HALF, ...) v = fma_lanes(v, SIGNS(HALF), __builtin_shufflevector(v, v, __VA_ARGS__))

INLINE Floats rotate_lanes(Floats v)
{
    BUTTERFLY(8, 8, 9, 10, 11, 12, 13, 14, 15, 0, 1, 2, 3, 4, 5, 6, 7);
    BUTTERFLY(4, 4, 5, 6, 7, 0, 1, 2, 3, 12, 13, 14, 15, 8, 9, 10, 11);
    BUTTERFLY(2, 2, 3, 0, 1, 6, 7, 4, 5, 10, 11, 8, 9, 14, 15, 12, 13);
    BUTTERFLY(1, 1, 0, 3, 2, 5, 4, 7, 6, 9, 8, 11, 10, 13, 12, 15, 14);
    return v;
}
#undef BUTTERFLY
#undef SIGNS
#undef SIGN

/* a + b and a - b of values `half` apart, in blocks of twice as many. */
INLINE void butterflies(float *x, int64_t block, int64_t half)
{
    for (int64_t i = 0; i < block; i += 2 * half)
        for (int64_t j = i; j < i + half; j += LANES) {
            const int64_t count = least(LANES, half);
            const Floats a = load_some(x + j, count), b = load_some(x + j + half, count);
            store_some(x + j, a + b, count);
            store_some(x + j + half, a - b, count);
        }
}

/* x [blocks][16 VECTORS], every block times a Hadamard matrix, in registers. */
INLINE void rotate_vectors(float *x, int64_t count, const int VECTORS)
{
    for (const float *end = x + count; x < end; x += VECTORS * LANES) {
        Floats v[16];
        for (int i = 0; i < VECTORS; i++)
            v[i] = load(x + i * LANES);
        for (int half = VECTORS / 2; half; half /= 2)
            for (int i = 0; i < VECTORS; i++)
                if (!(i & half)) {
                    const Floats a = v[i], b = v[i + half];
                    v[i] = a + b;
                    v[i + half] = a - b;
                }
        for (int i = 0; i < VECTORS; i++)
            store(x + i * LANES, rotate_lanes(v[i]));
    }
}

/* Turn the signs of x [k], and multiply each block by its Hadamard matrix; sums are not divided by anything. */
static void rotate(const Leaf *leaf, float *x)
{
    const int64_t block = leaf->rotation.block, base = leaf->rotation.base, size = block / base;
    const Ints lane = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
    for (int64_t c = 0; c < leaf->k; c += LANES) {
        const int64_t count = least(LANES, leaf->k - c);
        const Words signs = (Words)(((Ints){ 0 } + leaf->signs[c / LANES]) >> lane << 31);
        store_some(x + c, (Floats)((Words)load_some(x + c, count) ^ signs), count);
    }
    for (float *from = x; from < x + leaf->k; from += block) {
        int64_t half = size / 2;
        if (base == 12)
            rotate_base(from, size, 12);
        else if (base == 20)
            rotate_base(from, size, 20);
        for (; half >= 16 * LANES || (half && size < LANES); half /= 2)
            butterflies(from, block, half);
        switch (2 * half / LANES) {
        case 16: rotate_vectors(from, block, 16); break;
        case 8: rotate_vectors(from, block, 8); break;
        case 4: rotate_vectors(from, block, 4); break;
        case 2: rotate_vectors(from, block, 2); break;
        case 1: rotate_vectors(from, block, 1); break;
        }
    }
}

/* `unrotate` for 16 rows in a panel's order [k][16]. */
static void unrotate_panel(const Leaf *leaf, float *panel)
{
    const int64_t block = leaf->rotation.block, base = leaf->rotation.base, size = block ? block / base : 0;
    for (int64_t start = 0; block && start < leaf->k; start += block) {
        float *x = panel + start * LANES;
        for (int64_t half = size / 2; half; half /= 2)
            for (int64_t i = 0; i < block; i += 2 * half)
                for (int64_t j = i; j < i + half; j++) {
                    const Floats a = load(x + j * LANES), b = load(x + (j + half) * LANES);
                    store(x + j * LANES, a + b);
                    store(x + (j + half) * LANES, a - b);
                }
        for (int64_t c = 0; base > 1 && c < size; c++) {
            Floats old[20];
            for (int64_t i = 0; i < base; i++)
                old[i] = load(x + (i * size + c) * LANES);
            for (int64_t i = 0; i < base; i++) {
                Floats sum = old[0] * each(hadamard(base)[i]);
                for (int64_t j = 1; j < base; j++)
                    sum = fma_lanes(old[j], each(hadamard(base)[j * base + i]), sum);
                store(x + (i * size + c) * LANES, sum);
            }
        }
        for (int64_t c = 0; c < block; c++)
            store(x + c * LANES, load(x + c * LANES) * each(sign_of(leaf, start + c)));
    }
}

/* Formats -------------------------------------------------------------------------------------------------------- */

/* A panel in fp32 [k][16] as its codes say. */
INLINE void decode_codes(const Leaf *leaf, int64_t panel, float *out, uint8_t *scratch)
{
    if (leaf->element < CODES8) {
        const float *all = widened(leaf, panel, 0, leaf->k, out);
        if (all != out)
            memcpy(out, all, (size_t)leaf->k * LANES * sizeof *out);
        return;
    }
    const Floats half = each((float)leaf->centre / 2);
    for (int64_t s = 0; s < leaf->segment_count; s++) {
        const Segment *segment = &leaf->segments[s];
        const int64_t at = (panel * leaf->groups + segment->group) * LANES;
        const int64_t from = segment->vector / UNIT * UNIT;
        const Floats scale = load_bf16(leaf->scale + at);
        const uint8_t *codes = unpacked(leaf, panel, from, segment->vector + segment->vectors - from, scratch);
        codes += (segment->vector - from) * 64;
        for (int64_t c = 0; c < segment->columns; c++) {
            Words four;
            memcpy(&four, codes + c / VECTOR * 64, sizeof four);
            const Floats v = (floats_of((Ints)(four >> (int)(c % VECTOR * 8) & 255)) - half) * scale;
            store(out + (segment->column + c) * LANES, leaf->zero ? v + load_bf16(leaf->zero + at) : v);
        }
    }
}

/* A panel in fp32 [k][16], whatever its element. */
static void decode_panel(const Leaf *leaf, int64_t panel, float *out, uint8_t *scratch)
{
    decode_codes(leaf, panel, out, scratch);
    unrotate_panel(leaf, out);
}

/* out[i] [k] = left[i] [n] times the rows of a leaf; memory: a panel, its codes and sums [COMBINED][k][16]. */
static void combine(const Leaf *leaf, const float *left, int64_t count, float *const *out, char *memory)
{
    const int64_t k = leaf->k, size = padded(k, LANES) * LANES, stride = padded(leaf->n, LANES);
    float *values = (float *)memory, *sums = values + k * LANES;
    memset(sums, 0, (size_t)(count * size) * sizeof *sums);
    for (int64_t panel = 0; panel < leaf->panels; panel++) {
        decode_panel(leaf, panel, values, (uint8_t *)(sums + COMBINED * size));
        for (int64_t i = 0; i < count; i++) {
            const Floats own = load_some(left + i * stride + panel * LANES, least(LANES, leaf->n - panel * LANES));
            float *to = sums + i * size;
            for (int64_t c = 0; c < k; c++)
                store(to + c * LANES, fma_lanes(own, load(values + c * LANES), load(to + c * LANES)));
        }
    }
    for (int64_t i = 0; i < count; i++)
        for (int64_t c = 0; c < k; c += LANES)
            store_some(out[i] + c, totals(sums + i * size + c * LANES), least(LANES, k - c));
}

static void sparse(const Matrix *m, const Product *p, int64_t from, int64_t to, char *memory)
{
    const int64_t kept = m->leaf.k;
    float *values = (float *)memory;
    uint8_t *scratch = (uint8_t *)(values + kept * LANES);
    for (int64_t panel = from; panel < to; panel++) {
        const int32_t *columns = m->columns + panel * kept * LANES;
        decode_panel(&m->leaf, panel, values, scratch);
        for (int64_t row = 0; row < p->rows; row++) {
            const float *x = p->x + row * m->k;
            Floats sum = zeros();
            for (int64_t j = 0; j < kept; j++) {
#if defined(AVX512)
                const Floats found = (Floats)_mm512_i32gather_ps(_mm512_loadu_si512(columns + j * LANES), x, 4);
#else
                Floats found;
                for (int i = 0; i < LANES; i++)
                    found[i] = x[columns[j * LANES + i]];
#endif
                sum = fma_lanes(load(values + j * LANES), found, sum);
            }
            finish_lanes(p, m->n, row, panel * LANES, sum);
        }
    }
}

/* halves[a][s] of 16 trains: the product of their cores from .. to - 1, [a, s] from the left or [s, a] from the right. */
static int64_t half_trains(const Matrix *m, const float *cores, int64_t from, int64_t to, float *half, float *other)
{
    int64_t outer = 1; /* the modes so far */
    store(half, each(1));
    for (int64_t c = from; c < to; c++) {
        const int64_t r = m->ranks[c], n = m->modes[c], s = m->ranks[c + 1];
        for (int64_t a = 0; a < outer; a++)
            for (int64_t ns = 0; ns < n * s; ns++) {
                Floats sum = zeros();
                for (int64_t i = 0; i < r; i++)
                    sum = fma_lanes(load(half + (a * r + i) * LANES), load(cores + (i * n * s + ns) * LANES), sum);
                store(other + (a * n * s + ns) * LANES, sum);
            }
        outer *= n;
        cores += r * n * s * LANES;
        memcpy(half, other, (size_t)(outer * s * LANES) * sizeof *half);
    }
    return outer;
}

static int64_t right_trains(const Matrix *m, const float *cores, int64_t from, float *half, float *other)
{
    int64_t inner = 1; /* half is [r][inner] */
    store(half, each(1));
    for (int64_t c = m->count - 1; c >= from; c--) {
        const int64_t r = m->ranks[c], n = m->modes[c], s = m->ranks[c + 1];
        cores -= r * n * s * LANES;
        for (int64_t rn = 0; rn < r * n; rn++)
            for (int64_t b = 0; b < inner; b++) {
                Floats sum = zeros();
                for (int64_t i = 0; i < s; i++)
                    sum = fma_lanes(load(cores + (rn * s + i) * LANES), load(half + (i * inner + b) * LANES), sum);
                store(other + (rn * inner + b) * LANES, sum);
            }
        inner *= n;
        memcpy(half, other, (size_t)(r * inner * LANES) * sizeof *half);
    }
    return inner;
}

/* 16 trains times x: W[(a, b)] = left[a] . right[b], so that x [a, b] meets the right half first. */
INLINE Floats train_dot(const float *left, const float *right, const float *x, int64_t outer, int64_t inner, int64_t rank)
{
    Floats sum[4] = { zeros(), zeros(), zeros(), zeros() };
    int64_t a = 0;
    for (; a + 4 <= outer; a += 4)
        for (int64_t s = 0; s < rank; s++) {
            Floats part[4] = { zeros(), zeros(), zeros(), zeros() };
            for (int64_t b = 0; b < inner; b++) {
                const Floats w = load(right + (s * inner + b) * LANES);
                for (int i = 0; i < 4; i++)
                    part[i] = fma_lanes(w, each(x[(a + i) * inner + b]), part[i]);
            }
            for (int i = 0; i < 4; i++)
                sum[i] = fma_lanes(load(left + ((a + i) * rank + s) * LANES), part[i], sum[i]);
        }
    for (; a < outer; a++)
        for (int64_t s = 0; s < rank; s++) {
            Floats part = zeros();
            for (int64_t b = 0; b < inner; b++)
                part = fma_lanes(load(right + (s * inner + b) * LANES), each(x[a * inner + b]), part);
            sum[0] = fma_lanes(load(left + (a * rank + s) * LANES), part, sum[0]);
        }
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

static void trains(const Matrix *m, const Product *p, int64_t from, int64_t to, char *memory)
{
    const int64_t values = m->leaf.k, rank = m->ranks[m->split];
    int64_t outer = 1, inner = 1, most = 1;
    for (int64_t c = 0; c < m->count; c++) {
        *(c < m->split ? &outer : &inner) *= m->modes[c];
        most = m->ranks[c] > most ? m->ranks[c] : most;
    }
    float *cores = (float *)memory, *left = cores + values * LANES, *right = left + outer * most * LANES;
    float *other = right + inner * most * LANES, *wide = other + (outer > inner ? outer : inner) * most * LANES;
    uint8_t *scratch = (uint8_t *)(wide + outer * inner);
    for (int64_t panel = from; panel < to; panel++) {
        decode_panel(&m->leaf, panel, cores, scratch);
        half_trains(m, cores, 0, m->split, left, other);
        right_trains(m, cores + values * LANES, m->split, right, other);
        for (int64_t row = 0; row < p->rows; row++) {
            const float *x = p->x + row * m->k;
            if (outer * inner > m->k) {
                memcpy(wide, x, (size_t)m->k * sizeof *x);
                memset(wide + m->k, 0, (size_t)(outer * inner - m->k) * sizeof *x);
                x = wide;
            }
            finish_lanes(p, m->n, row, panel * LANES, train_dot(left, right, x, outer, inner, rank));
        }
    }
}

/* Attention ------------------------------------------------------------------------------------------------------ */

enum { KEYS_AT_ONCE = 4 }; /* blocks of keys, so that no sum waits for itself */

#if defined(AVX512)
enum { QUERIES_AT_ONCE = 8 };
#else
enum { QUERIES_AT_ONCE = 2 };
#endif

/* Where the keys or values of one head begin that 16 tokens of a row's slot have, counted in as many. */
INLINE int64_t place_of(const Attention *a, int64_t row, int64_t block, int64_t head)
{
    return (a->table[a->slots[row] * a->blocks + block] * a->layers + a->layer) * a->heads + head;
}

INLINE void append_as(const Attention *a, int64_t row, int64_t head, const Element element)
{
    const int64_t width = a->heads * a->size, size = padded(a->size, LANES);
    const int64_t block = place_of(a, row, a->positions[row] / LANES, head), lane = a->positions[row] % LANES;
    const float *key = a->qkv + row * 3 * width + width + head * a->size, *value = key + width;
    for (int64_t i = 0; i < a->size; i += LANES) {
        const int64_t count = least(LANES, a->size - i);
        uint32_t keys[LANES]; /* in whatever element */
        store_element(keys, 0, load_some(key + i, count), element);
        for (int64_t j = 0; j < count; j++) {
            const int64_t at = (block * a->size + i + j) * LANES + lane;
            if (element == FP32)
                ((uint32_t *)a->keys)[at] = keys[j];
            else
                memcpy((uint16_t *)a->keys + at, (const char *)keys + 2 * j, 2);
        }
        store_element(a->values, (block * LANES + lane) * size + i, load_some(value + i, count), element);
    }
}

static void append(const Attention *a, int64_t row, int64_t head)
{
    switch (a->element) {
    case FP32: append_as(a, row, head, FP32); break;
    case FP16: append_as(a, row, head, FP16); break;
    default: append_as(a, row, head, BF16); break;
    }
}

/* scores[r][16 * block ..] = q . k of R rows and of B blocks of keys that are the first one's; of one row what follows is
 * fetched: the next keys, as far as they are wanted, and these values. */
INLINE void score_blocks(const Attention *a, const int64_t *rows, int64_t head, int64_t block, int64_t blocks, const int R,
                         const int B, const Element element, float *scores, int64_t room)
{
    const int64_t step = a->size * LANES, bytes = element == FP32 ? 4 : 2;
    int64_t at[4];
    const char *next[4], *values[4];
    const float *q[8];
    Floats sum[32];
    for (int r = 0; r < R; r++)
        q[r] = a->qkv + (3 * rows[r] * a->heads + head) * a->size;
    for (int b = 0; b < B; b++) {
        at[b] = place_of(a, *rows, block + b, head) * step;
        if (R == 1) {
            next[b] = (const char *)a->keys + place_of(a, *rows, least(block + B + b, blocks - 1), head) * step * bytes;
            values[b] = (const char *)a->values + at[b] / a->size * padded(a->size, LANES) * bytes;
        }
    }
    for (int i = 0; i < R * B; i++)
        sum[i] = zeros();
    for (int64_t i = 0; i < a->size; i++)
        for (int b = 0; b < B; b++) {
            const Floats key = load_element(a->keys, at[b] + i * LANES, element);
            if (R == 1 && (element == FP32 || i % 2 == 0)) { /* which are as many lines */
                __builtin_prefetch(next[b] + i * LANES * bytes);
                __builtin_prefetch(values[b] + i * LANES * bytes);
            }
            for (int r = 0; r < R; r++)
                sum[r * B + b] = fma_lanes(each(q[r][i]), key, sum[r * B + b]);
        }
    for (int r = 0; r < R; r++)
        for (int b = 0; b < B; b++)
            store(scores + r * room + (block + b) * LANES, sum[r * B + b] * each(a->scale));
}

INLINE void score_as(const Attention *a, const int64_t *rows, int64_t head, int64_t block, int64_t blocks, const int R,
                     const Element element, float *scores, int64_t room)
{
    enum { B = KEYS_AT_ONCE };
    for (; R * B <= 16 && block + B <= blocks; block += B)
        score_blocks(a, rows, head, block, blocks, R, B, element, scores, room);
    for (; R * 2 <= 16 && block + 2 <= blocks; block += 2)
        score_blocks(a, rows, head, block, blocks, R, 2, element, scores, room);
    for (; block < blocks; block++)
        score_blocks(a, rows, head, block, blocks, R, 1, element, scores, room);
}

/* e^(score - the largest) of the first `used` scores, zeros behind them; returns 1 / their sum. */
INLINE float soften(float *scores, int64_t used)
{
    Floats most = each(-INFINITY), sum = zeros();
    for (int64_t t = 0; t < used; t += LANES) {
        const Floats found = choose(first_lanes(least(LANES, used - t)), load(scores + t), each(-INFINITY));
        store(scores + t, found);
        most = larger(found, most);
    }
    const Floats highest = each(largest(most));
    for (int64_t t = 0; t < used; t += LANES) {
        const Floats e = exponential(load(scores + t) - highest);
        store(scores + t, e);
        sum += e;
    }
    return 1 / total(sum);
}

/* sums[r][even, odd][i ..] += the values of tokens from .. until - 1, weighed by scores, of R rows and V vectors of 16; even and
 * odd tokens apart, and one after the other, so that it does not matter which are summed at once. */
INLINE void mix_values(const Attention *a, const int64_t *rows, int64_t head, const float *scores, int64_t room, float *sums,
                       int64_t i, int64_t from, int64_t until, const int R, const int V, const Element element)
{
    const int64_t size = padded(a->size, LANES);
    Floats sum[32];
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            for (int odd = 0; odd < 2; odd++)
                sum[(r * V + v) * 2 + odd] = load(sums + (2 * r + odd) * size + i + v * LANES);
    int64_t values = 0, t = from;
    for (; t + 2 <= until; t += 2) {
        values = t % LANES && t > from ? values + 2 * size : (place_of(a, *rows, t / LANES, head) * LANES + t % LANES) * size + i;
        for (int odd = 0; odd < 2; odd++)
            for (int v = 0; v < V; v++) {
                const Floats value = load_element(a->values, values + odd * size + v * LANES, element);
                for (int r = 0; r < R; r++) {
                    Floats *to = &sum[(r * V + v) * 2 + odd];
                    *to = fma_lanes(each(scores[r * room + t + odd]), value, *to);
                }
            }
    }
    if (t < until) { /* an even one */
        values = (place_of(a, *rows, t / LANES, head) * LANES + t % LANES) * size + i;
        for (int v = 0; v < V; v++)
            for (int r = 0; r < R; r++) {
                Floats *to = &sum[(r * V + v) * 2];
                *to = fma_lanes(each(scores[r * room + t]), load_element(a->values, values + v * LANES, element), *to);
            }
    }
    for (int r = 0; r < R; r++)
        for (int v = 0; v < V; v++)
            for (int odd = 0; odd < 2; odd++)
                store(sums + (2 * r + odd) * size + i + v * LANES, sum[(r * V + v) * 2 + odd]);
}

INLINE void mix_as(const Attention *a, const int64_t *rows, int64_t head, const float *scores, int64_t room, float *sums,
                   int64_t from, int64_t until, const int R, const Element element)
{
    const int64_t size = padded(a->size, LANES);
    int64_t i = 0;
    for (; R * 4 <= 8 && i + 4 * LANES <= size; i += 4 * LANES)
        mix_values(a, rows, head, scores, room, sums, i, from, until, R, 4, element);
    for (; R * 2 <= 8 && i + 2 * LANES <= size; i += 2 * LANES)
        mix_values(a, rows, head, scores, room, sums, i, from, until, R, 2, element);
    for (; i < size; i += LANES)
        mix_values(a, rows, head, scores, room, sums, i, from, until, R, 1, element);
}

/* R rows that read the same first blocks of keys, and the same values of tokens before `common`, an even number. */
INLINE void attend_rows(const Attention *a, const int64_t *rows, int64_t blocks, int64_t common, int64_t head, float *scores,
                        const int R, const Element element)
{
    const int64_t room = a->blocks * LANES, size = padded(a->size, LANES);
    float *const sums = scores + QUERIES * room;
    if (R > 1)
        score_as(a, rows, head, 0, blocks, R, element, scores, room);
    float share[8];
    for (int r = 0; r < R; r++) {
        const int64_t used = a->positions[rows[r]] + 1;
        score_as(a, rows + r, head, R > 1 ? blocks : 0, padded(used, LANES) / LANES, 1, element, scores + r * room, room);
        share[r] = soften(scores + r * room, used);
    }
    memset(sums, 0, (size_t)(2 * R * size) * sizeof(float));
    if (R > 1)
        mix_as(a, rows, head, scores, room, sums, 0, common, R, element);
    for (int r = 0; r < R; r++) {
        float *sum = sums + 2 * r * size, *out = a->out + (rows[r] * a->heads + head) * a->size;
        mix_as(a, rows + r, head, scores + r * room, room, sum, R > 1 ? common : 0, a->positions[rows[r]] + 1, 1, element);
        for (int64_t i = 0; i < a->size; i += LANES)
            store_some(out + i, (load(sum + i) + load(sum + size + i)) * each(share[r]), least(LANES, a->size - i));
    }
}

INLINE void attend_as(const Attention *a, const int64_t *rows, int64_t count, int64_t blocks, int64_t head, float *scores,
                      const Element element)
{
    for (int64_t r = 0, some; r < count; r += some) {
        some = QUERIES_AT_ONCE == 8 && count - r >= 8 ? 8 : count - r >= 2 ? 2 : 1;
        /* Of one slot: later rows read more blocks than are the first one's own, which do no harm to it. */
        const int64_t used = a->positions[rows[r]] + 1, last = a->positions[rows[r + some - 1]] + 1;
        const int64_t all = blocks ? blocks : padded(last, LANES) / LANES, common = blocks ? blocks * LANES : used / 2 * 2;
        if (some == 8)
            attend_rows(a, rows + r, all, common, head, scores, 8, element);
        else if (some == 2)
            attend_rows(a, rows + r, all, common, head, scores, 2, element);
        else
            attend_rows(a, rows + r, 0, 0, head, scores, 1, element);
    }
}

static void attend(const Attention *a, const int64_t *rows, int64_t count, int64_t blocks, int64_t head, float *scores)
{
    switch (a->element) {
    case FP32: attend_as(a, rows, count, blocks, head, scores, FP32); break;
    case FP16: attend_as(a, rows, count, blocks, head, scores, FP16); break;
    default: attend_as(a, rows, count, blocks, head, scores, BF16); break;
    }
}

/* Judging logits ------------------------------------------------------------------------------------------------- */

enum { JUDGED = 64 * LANES }; /* columns whose sums are in fp32, before they are added up in fp64 */

/* The largest of n values, and where it stands first. */
INLINE float best_of(const float *values, int64_t n, int64_t *place)
{
    float best = values[0];
    int64_t from = 0; /* of the columns that it stands in */
    for (int64_t start = 0; start < n; start += DRAWN) {
        Floats most = each(values[start]);
        int64_t i = start;
        for (; i + LANES <= least(start + DRAWN, n); i += LANES)
            most = larger(load(values + i), most);
        if (i < least(start + DRAWN, n))
            most = choose(first_lanes(n - i), larger(load_some(values + i, n - i), most), most);
        const float own = largest(most);
        if (own > best)
            best = own, from = start;
    }
    for (*place = from; *place < n - 1 && values[*place] != best;)
        ++*place;
    return best;
}

/* sums: of e^x, of e^y and of e^y (y - x), x and y being what logits lie below their best, the sums NaN unless all are
 * finite. */
INLINE void sum_logits(const float *logits, float best, const float *reference, float high, int64_t n, double sums[3])
{
    for (int64_t start = 0; start < n; start += JUDGED) {
        Floats part[3] = { zeros(), zeros(), zeros() };
        for (int64_t i = start; i < least(start + JUDGED, n); i += LANES) {
            const int64_t count = least(LANES, n - i);
            const Floats x = load_some(logits + i, count) - each(best), y = load_some(reference + i, count) - each(high);
            const Floats of_x = fma_lanes(x, zeros(), exponential(x)), of_y = fma_lanes(y, zeros(), exponential(y));
            part[0] += choose(first_lanes(count), of_x, zeros());
            part[1] += choose(first_lanes(count), of_y, zeros());
            part[2] += choose(first_lanes(count), of_y * (y - x), zeros());
        }
        for (int i = 0; i < 3; i++)
            sums[i] += (double)total(part[i]);
    }
}

/* The first of these where there is no reference. */
INLINE double sum_exponentials(const float *logits, float best, int64_t n)
{
    double sum = 0;
    for (int64_t start = 0; start < n; start += JUDGED) {
        Floats part = zeros();
        int64_t i = start;
        for (; i + LANES <= least(start + JUDGED, n); i += LANES) {
            const Floats x = load(logits + i) - each(best);
            part += fma_lanes(x, zeros(), exponential(x));
        }
        if (i < least(start + JUDGED, n)) {
            const Floats x = load_some(logits + i, n - i) - each(best);
            part += choose(first_lanes(n - i), fma_lanes(x, zeros(), exponential(x)), zeros());
        }
        sum += (double)total(part);
    }
    return sum;
}

static void judge(const float *logits, const float *reference, int64_t n, int64_t target, double *out)
{
    int64_t place, other;
    double sums[3] = { 0 };
    const float best = best_of(logits, n, &place), high = reference ? best_of(reference, n, &other) : best;
    if (reference)
        sum_logits(logits, best, reference, high, n, sums);
    else {
        sums[0] = sums[1] = sum_exponentials(logits, best, n);
        sums[2] = 0 * sums[0];
        reference = logits, other = place;
    }
    out[0] = (double)(logits[target] - best) - log(sums[0]);
    out[1] = (double)(reference[target] - high) - log(sums[1]);
    out[2] = sums[2] / sums[1] + log(sums[0]) - log(sums[1]);
    out[3] = (double)place;
    out[4] = (double)other;
}

static int64_t best(const float *values, int64_t n)
{
    int64_t place;
    best_of(values, n, &place);
    return place;
}

static void weigh(const float *logits, int64_t n, float temperature, float *weights, double *sums)
{
    int64_t place;
    const Floats best = each(best_of(logits, n, &place)), per_degree = each(1 / temperature);
    for (int64_t start = 0; start < n; start += DRAWN) {
        Floats sum = zeros();
        int64_t i = start;
        for (; i + LANES <= least(start + DRAWN, n); i += LANES) {
            const Floats weight = exponential((load(logits + i) - best) * per_degree);
            store(weights + i, weight);
            sum += weight;
        }
        if (i < least(start + DRAWN, n)) {
            const Floats weight = exponential((load_some(logits + i, n - i) - best) * per_degree);
            store_some(weights + i, weight, n - i);
            sum += choose(first_lanes(n - i), weight, zeros());
        }
        sums[start / DRAWN] = total(sum);
    }
}

static int64_t above(const float *values, int64_t n, float bound, int32_t *places)
{
    int64_t found = 0, i = 0;
    for (; i + LANES <= n; i += LANES) {
#if defined(AVX512)
        const __mmask16 found_here = _mm512_cmp_ps_mask(_mm512_loadu_ps(values + i), _mm512_set1_ps(bound), _CMP_GE_OQ);
        const Ints lanes = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15 };
        if (found_here)
            _mm512_mask_compressstoreu_epi32(places + found, found_here, (__m512i)(lanes + (int32_t)i));
        found += __builtin_popcount(found_here);
#else
        if (largest(load(values + i)) >= bound)
            for (int64_t j = i; j < i + LANES; j++)
                if (values[j] >= bound)
                    places[found++] = (int32_t)j;
#endif
    }
    for (; i < n; i++)
        if (values[i] >= bound)
            places[found++] = (int32_t)i;
    return found;
}

const Instructions INSTRUCTIONS = {
    NAME, supported, normalise, rotate, round_row, product, sparse, trains, combine, append, attend, finish, judge, best, weigh, above,
};
