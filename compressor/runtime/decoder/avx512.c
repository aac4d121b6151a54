/* The kernels for CPUs with AVX-512 and its products of bytes (VNNI), and for those that multiply tiles of them (AMX). */
#if defined(__x86_64__)
#define _GNU_SOURCE
#include <immintrin.h>
#if defined(__clang__) /* which cannot ask for F16C before version 19; CPUs with AVX2 have it */
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8"))), apply_to = function)
#define HAS_F16C 1
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c,amx-tile,amx-int8")
#define HAS_F16C __builtin_cpu_supports("f16c")
#endif
#define AVX512
#define NAME "avx512_vnni"
#define INSTRUCTIONS avx512_instructions

static int supported(void)
{
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && HAS_F16C;
}

#include "kernels.h"

#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Linux lends tiles to processes that ask for them; asked once, by a caller that holds the interpreter's lock. */
static int tiles_supported(void)
{
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18, AMX_TILE = 1 << 24, AMX_INT8 = 1 << 25 };
    static int known, answer;
    unsigned a, b, c, d;
    if (!known) {
        answer = supported() && __get_cpuid_count(7, 0, &a, &b, &c, &d) && d & AMX_TILE && d & AMX_INT8 &&
                 syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
        known = 1;
    }
    return answer;
}

/* Products in tiles: of 16 vectors of codes and 16 rows of bytes of x, or 8 rows with their high and their low bytes. What
 * tiles store can only be loaded when everything before is done, so sums of one batch are scaled while those of the next
 * are made. */
enum { TILE = 16, BATCH = 8, FEW = 5 }; /* rows of bytes that are multiplied faster without tiles */

typedef struct {
    int64_t panel, row, rows, first, last; /* what fits two tiles of rows of x from `row` on, some segments */
    int64_t tiles;                         /* of rows */
    Ints results[BATCH * TILE];            /* of every segment those of its tiles */
} Batch;
_Static_assert(2 * sizeof(Batch) == BATCH_BYTES, "what product_bytes counts");

enum { FETCHED = 4096 }; /* bytes before they are multiplied */

INLINE void fetch(const uint8_t *codes)
{
    for (int i = 0; i < TILE; i++)
        __builtin_prefetch(codes + i * 64);
}

/* SUM = codes times a tile of x, and NEXT the one behind it; registers 4 and 5 are x, 6 and 7 codes. */
#define ONE_TILE(SUM, X, CODES)                                              \
    _tile_zero(SUM);                                                         \
    for (int64_t v = 0; v < vectors; v += TILE) {                            \
        if (stored)                                                          \
            fetch(codes + v * 64 + FETCHED);                                 \
        _tile_loadd(CODES, codes + v * 64, 64);                              \
        _tile_loadd(X, x + v * VECTOR, stride);                              \
        _tile_dpbsud(SUM, X, CODES);                                         \
    }                                                                        \
    _tile_stored(SUM, results, 64);
#define TWO_TILES(SUM, NEXT, CODES)                                          \
    _tile_zero(SUM);                                                         \
    _tile_zero(NEXT);                                                        \
    for (int64_t v = 0; v < vectors; v += TILE) {                            \
        if (stored)                                                          \
            fetch(codes + v * 64 + FETCHED);                                 \
        _tile_loadd(CODES, codes + v * 64, 64);                              \
        _tile_loadd(4, x + v * VECTOR, stride);                              \
        _tile_dpbsud(SUM, 4, CODES);                                         \
        _tile_loadd(5, x + TILE * stride + v * VECTOR, stride);              \
        _tile_dpbsud(NEXT, 5, CODES);                                        \
    }                                                                        \
    _tile_stored(SUM, results, 64);                                          \
    _tile_stored(NEXT, results + TILE, 64);

/* A segment of whole tiles; neighbours use other registers. Codes that are as `stored` come from far away. */
INLINE void multiply_tiles(const uint8_t *codes, int stored, const int8_t *x, int64_t stride, int64_t vectors, int two,
                           int64_t segment, Ints *results)
{
    __asm__ volatile("" ::: "memory"); /* gcc 12 does not know that tiles are loaded from there */
    if (two) {
        if (segment % 2) {
            TWO_TILES(0, 1, 6)
        } else {
            TWO_TILES(2, 3, 7)
        }
        return;
    }
    switch (segment % 4) {
    case 0: ONE_TILE(0, 4, 6) break;
    case 1: ONE_TILE(1, 5, 7) break;
    case 2: ONE_TILE(2, 4, 6) break;
    default: ONE_TILE(3, 5, 7) break;
    }
}

/* Tiles that x does not fill have any others behind. */
APART void make_batch(const Leaf *leaf, const Rounded *x, const Unpacked *u, Batch *b)
{
    const int planes = leaf->planes;
    const int64_t stride = leaf->vectors * VECTOR;
    const int16_t *rows = row_of(leaf, x, b->row, planes);
    Ints *results = b->results;
    for (int64_t s = b->first; s < b->last; s++, results += b->tiles * TILE) {
        const Segment *segment = &leaf->segments[s];
        const uint8_t *own = codes_of(u, segment);
        if (segment->vectors % TILE == 0) {
            multiply_tiles(own, leaf->element == CODES8, (const int8_t *)rows + segment->vector * VECTOR, stride,
                           segment->vectors, b->tiles == 2, s, results);
            continue;
        }
        for (int64_t r = 0; r < b->rows; r++) {
            results[planes * r] = (Ints){ 0 };
            dot(own, row_of(leaf, x, b->row + r, planes), segment->vector, stride, segment->vectors, planes, 1,
                &results[planes * r + planes - 1]);
        }
    }
}

/* Rows row .. row + R - 1 of a batch. */
INLINE void scale_rows(const Leaf *leaf, const Product *p, const Rounded *x, const Batch *b, int64_t row, const int PLANES,
                       const int R, float *sums)
{
    const Ints *results = b->results + PLANES * row;
    Floats acc[8];
    row += b->row;
    sums += row % ROWS * LANES;
    for (int r = 0; r < R; r++)
        acc[r] = b->first ? load(sums + r * LANES) : zeros();
    for (int64_t s = b->first; s < b->last; s++, results += b->tiles * TILE) {
        const int64_t at = (b->panel * leaf->groups + leaf->segments[s].group) * LANES;
        for (int r = 0; r < R; r++)
            acc[r] = scaled_sum(leaf, x, row + r, s, at,
                                PLANES == 2 ? (results[2 * r] << 8) + results[2 * r + 1] : results[r], PLANES, acc[r]);
    }
    for (int r = 0; r < R; r++)
        if (b->last < leaf->segment_count)
            store(sums + r * LANES, acc[r]);
        else
            finish_lanes(p, leaf->n, row + r, b->panel * LANES, PLANES == 2 ? acc[r] * each(x->steps[row + r]) : acc[r]);
}

APART void scale_batch(const Leaf *leaf, const Product *p, const Rounded *x, const Batch *b, float *sums)
{
    int64_t row = 0;
    for (; row + 8 <= b->rows; row += 8)
        leaf->planes == 2 ? scale_rows(leaf, p, x, b, row, 2, 8, sums) : scale_rows(leaf, p, x, b, row, 1, 8, sums);
    for (; row < b->rows; row++)
        leaf->planes == 2 ? scale_rows(leaf, p, x, b, row, 2, 1, sums) : scale_rows(leaf, p, x, b, row, 1, 1, sums);
}

INLINE Unpacked unpack_next(const Leaf *leaf, int64_t panel, int64_t first, int64_t to, uint8_t *scratch)
{
    if (first == leaf->segment_count)
        panel++, first = 0;
    if (panel == to)
        return (Unpacked){ .panel = to };
    return unpack_chunk(leaf, panel, first, scratch);
}

/* Codes, too, can only be loaded as tiles when they are stored for good: the next ones are unpacked before that. */
static void multiply_in_tiles(const Leaf *leaf, const Product *p, const Rounded *x, int64_t from, int64_t to, char *memory)
{
    Batch *batches = (Batch *)memory, *before = NULL;
    float *sums = (float *)(memory + BATCH_BYTES);
    const int64_t most = 2 * TILE / leaf->planes; /* rows of a batch */
    uint8_t *scratch = (uint8_t *)(sums + least(p->rows, ROWS) * 2 * LANES);
    int64_t made = 0;
    for (int64_t start = 0; start < p->rows; start += ROWS) {
        const int64_t end = least(start + ROWS, p->rows);
        int64_t unpacked_count = 0;
        Unpacked now = unpack_next(leaf, from, 0, to, scratch), next;
        for (; now.panel < to; now = next) {
            next = unpack_next(leaf, now.panel, now.last, to, scratch + ++unpacked_count % 2 * CHUNK_BYTES);
            for (int64_t row = start; row < end; row += most)
                for (int64_t s = now.first, count; s < now.last; s += count) {
                    const int64_t rows = least(most, end - row), tiles = rows > most / 2 ? 2 : 1;
                    Batch *b = &batches[made++ % 2];
                    count = least(BATCH / tiles, now.last - s);
                    b->panel = now.panel, b->row = row, b->rows = rows, b->tiles = tiles, b->first = s, b->last = s + count;
                    make_batch(leaf, x, &now, b);
                    if (before)
                        scale_batch(leaf, p, x, before, sums);
                    before = b;
                }
        }
    }
    scale_batch(leaf, p, x, before, sums);
}

static void product_by_tiles(const Leaf *leaf, const Product *p, const Rounded *x, int64_t from, int64_t to, char *memory)
{
    const uint8_t some = (uint8_t)least(TILE, p->rows * leaf->planes); /* rows that take no longer than they need */
    const struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } registers = { .palette = 1, .row_bytes = { 64, 64, 64, 64, 64, 64, 64, 64 },
                    .rows = { some, some, some, some, some, some, TILE, TILE } };
    if (leaf->element < CODES8 || p->rows * leaf->planes <= FEW) {
        product(leaf, p, x, from, to, memory);
        return;
    }
    _tile_loadconfig(&registers);
    multiply_in_tiles(leaf, p, x, from, to, memory);
    _tile_release();
}

const Instructions amx_instructions = {
    "amx_int8", tiles_supported, normalise, rotate, round_row, product_by_tiles, sparse, trains, combine, append, attend, finish,
    judge, best, weigh, above,
};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
