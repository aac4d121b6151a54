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

/* Products in tiles: of 16 vectors of codes and 16 rows of bytes of x, or 8 rows with their high and their low bytes; a tile
 * of x meets two panels. To store a tile takes as long as to multiply two, and waits for its products, so that nothing
 * behind it begins: tiles are stored when others are being multiplied. What is stored can only be loaded when everything
 * before is done, so sums of one batch are scaled when those of the next are made. */
enum { TILE = 16, BATCH = 8, FEW = 5 }; /* rows of bytes that are multiplied faster without tiles */

/* Codes of two panels, or of one. */
typedef struct {
    int64_t panels;
    Unpacked panel[2];
} Pair;

typedef struct {
    Pair codes;
    int64_t row, rows;          /* of x */
    Ints results[BATCH * TILE]; /* of every segment two tiles: those of two panels, or of more rows */
} Batch;
_Static_assert(2 * sizeof(Batch) == BATCH_BYTES, "what product_bytes counts");
_Static_assert(BATCH / 2 >= CHUNK / VECTOR / TILE, "segments are tiles at least");

/* Sums in registers: which ones, and where they belong, if there are any. */
typedef struct {
    int odd, two;
    Ints *to;
} Pending;

/* Whether so many rows of x are multiplied in tiles, and so lie in them: every tile's 16 rows of 64
 * bytes are one behind another, and behind them the same rows' next ones. */
static int in_tiles(const Leaf *leaf, int64_t rows)
{
    if (leaf->element < CODES8 || rows * leaf->planes <= FEW)
        return 0;
    for (int64_t s = 0; s < leaf->segment_count; s++)
        if (leaf->segments[s].vectors % TILE)
            return 0;
    return 1;
}

INLINE int8_t *tiles_of(const Leaf *leaf, const Rounded *x, int64_t row)
{
    row *= leaf->planes;
    return (int8_t *)x->codes + row / TILE * TILE * leaf->vectors * VECTOR + row % TILE * 64;
}

static void round_row_in_tiles(const Leaf *leaf, const Norm *norm, const float *from, int64_t row, const Rounded *to)
{
    if (in_tiles(leaf, to->rows))
        round_row_at(leaf, norm, from, row, to, (Place){ (int16_t *)tiles_of(leaf, to, row), TILE * 64, 64 });
    else
        round_row(leaf, norm, from, row, to);
}

enum { FETCHED = 4096 }; /* bytes before few rows meet them */

INLINE void fetch(const uint8_t *codes, int64_t lines)
{
    for (int64_t i = 0; i < lines; i++)
        __builtin_prefetch(codes + i * 64);
}

/* A tile of x meets two panels of codes, or where there are few rows two tiles of x, or one, meet a panel. */
typedef struct {
    const uint8_t *codes, *other; /* or NULL */
    const int8_t *x, *next;       /* or NULL */
    int64_t vectors;
    const uint8_t *fetched[2];    /* so many lines of each per tile */
    int64_t lines;
} Tiles;

typedef enum { NEAR, FAR_FEW, FAR_MANY } Distance; /* that codes come from */

/* Products of a segment; registers 0 to 3 are sums, 4 and 5 x, 6 and 7 codes. */
#define SUM_UP(SUM, NEXT)                                                    \
    _tile_zero(SUM);                                                         \
    _tile_zero(NEXT);                                                        \
    for (int64_t at = 0; at < t->vectors * 64; at += TILE * 64) {            \
        if (distance == FAR_FEW)                                             \
            fetch(t->codes + at + FETCHED, TILE);                            \
        if (distance == FAR_MANY)                                            \
            fetch(t->fetched[0] + at / TILE * t->lines, t->lines);           \
        _tile_loadd(4, t->x + at, 64);                                       \
        _tile_loadd(6, t->codes + at, 64);                                   \
        _tile_dpbsud(SUM, 4, 6);                                             \
        if (t->other) {                                                      \
            if (distance == FAR_MANY)                                        \
                fetch(t->fetched[1] + at / TILE * t->lines, t->lines);       \
            _tile_loadd(7, t->other + at, 64);                               \
            _tile_dpbsud(NEXT, 4, 7);                                        \
        }                                                                    \
        if (t->next) {                                                       \
            _tile_loadd(5, t->next + at, 64);                                \
            _tile_dpbsud(NEXT, 5, 6);                                        \
        }                                                                    \
    }
#define STORE(SUM, NEXT)                                                     \
    if (pending->to)                                                         \
        _tile_stored(SUM, pending->to, 64);                                  \
    if (pending->two)                                                        \
        _tile_stored(NEXT, pending->to + TILE, 64);

INLINE void store_pending(const Pending *pending)
{
    if (pending->odd) {
        STORE(2, 3)
    } else {
        STORE(0, 1)
    }
}

INLINE void multiply_tiles(const Tiles *t, const Distance distance, Pending *pending, Ints *results)
{
    __asm__ volatile("" ::: "memory"); /* gcc 12 does not know that tiles are loaded from there */
    if (pending->odd) {
        SUM_UP(0, 1)
    } else {
        SUM_UP(2, 3)
    }
    store_pending(pending);
    *pending = (Pending){ !pending->odd, t->other || t->next, results };
}

/* Tile `part` of `parts` of x; those that it does not fill have any others behind. If codes are as they are stored, it
 * fetches its part of the `following` ones. */
APART void make_batch(const Leaf *leaf, const Rounded *x, Batch *b, const Pair *following, int64_t part, int64_t parts, Pending *pending)
{
    const Unpacked *u = b->codes.panel;
    const Distance distance = leaf->element != CODES8 ? NEAR : parts == 1 ? FAR_FEW : u->last - u->first == 1 ? FAR_MANY : NEAR;
    const int8_t *rows = tiles_of(leaf, x, b->row);
    Ints *results = b->results;
    for (int64_t s = u->first; s < u->last; s++, results += 2 * TILE) {
        const Segment *segment = &leaf->segments[s];
        Tiles t = { .codes = codes_of(u, segment), .x = rows + segment->vector * 64, .vectors = segment->vectors };
        if (b->codes.panels == 2)
            t.other = codes_of(u + 1, segment);
        else if (b->rows * leaf->planes > TILE)
            t.next = t.x + TILE * leaf->vectors * VECTOR;
        if (distance == FAR_MANY) {
            const int64_t tiles = segment->vectors / TILE * parts;
            t.lines = (following->panel->count + tiles - 1) / tiles;
            for (int64_t i = 0; i < 2; i++)
                t.fetched[i] = following->panel[i].codes + part * segment->vectors / TILE * t.lines * 64;
        }
        switch (distance) {
        case NEAR: multiply_tiles(&t, NEAR, pending, results); break;
        case FAR_FEW: multiply_tiles(&t, FAR_FEW, pending, results); break;
        default: multiply_tiles(&t, FAR_MANY, pending, results);
        }
    }
}

/* Rows row .. row + R - 1 of a batch. */
INLINE void scale_rows(const Leaf *leaf, const Rounded *x, const Batch *b, int64_t row, int64_t panel, const int PLANES,
                       const int ZERO, const int R, float *sums)
{
    const Unpacked *u = &b->codes.panel[panel];
    const Ints *results = b->results + panel * TILE + PLANES * row;
    Floats acc[8];
    row += b->row;
    for (int r = 0; r < R; r++)
        acc[r] = u->first ? load(sums + r * LANES) : zeros();
    for (int64_t s = u->first; s < u->last; s++, results += 2 * TILE) {
        const int64_t at = (u->panel * leaf->groups + leaf->segments[s].group) * LANES;
        for (int r = 0; r < R; r++)
            acc[r] = scaled_sum(leaf, x, row + r, s, at,
                                PLANES == 2 ? (results[2 * r] << 8) + results[2 * r + 1] : results[r], PLANES, ZERO, acc[r]);
    }
    for (int r = 0; r < R; r++)
        store(sums + r * LANES, acc[r]);
}

INLINE void scale_panel(const Leaf *leaf, const Rounded *x, const Batch *b, int64_t panel, const int PLANES, const int ZERO, float *sums)
{
    int64_t row = 0;
    for (; row + 8 <= b->rows; row += 8)
        scale_rows(leaf, x, b, row, panel, PLANES, ZERO, 8, sums + row * LANES);
    for (; row < b->rows; row++)
        scale_rows(leaf, x, b, row, panel, PLANES, ZERO, 1, sums + row * LANES);
}

APART void scale_batch(const Leaf *leaf, const Product *p, const Rounded *x, const Batch *b, float *sums)
{
    const Pair *codes = &b->codes;
    sums += b->row % ROWS * LANES;
    for (int64_t panel = 0; panel < codes->panels; panel++) {
        float *own = sums + panel * least(p->rows, ROWS) * LANES;
        if (leaf->planes == 2)
            leaf->zero ? scale_panel(leaf, x, b, panel, 2, 1, own) : scale_panel(leaf, x, b, panel, 2, 0, own);
        else
            leaf->zero ? scale_panel(leaf, x, b, panel, 1, 1, own) : scale_panel(leaf, x, b, panel, 1, 0, own);
        if (codes->panel[0].last == leaf->segment_count)
            finish_panel(p, leaf->n, b->row, b->rows, codes->panel[panel].panel * LANES, own, leaf->planes == 2 ? x->steps : NULL);
    }
}

/* The codes behind some: where they are when they are unpacked. */
INLINE Pair next_codes(const Leaf *leaf, int64_t panel, int64_t first, int64_t panels, int64_t to, uint8_t *scratch)
{
    if (first == leaf->segment_count)
        panel += panels, first = 0;
    Pair next = { .panels = least(panels, to - panel) };
    for (int64_t i = 0; i < next.panels; i++) {
        Unpacked *u = &next.panel[i];
        *u = chunk_of(leaf, panel + i, first);
        u->codes = leaf->element == CODES8 ? unpacked(leaf, panel + i, u->from, u->count, scratch) : scratch + i * CHUNK_BYTES;
    }
    if (next.panels == 1)
        next.panel[1] = next.panel[0];
    return next;
}

/* Part `part` of `parts` of them. */
INLINE void unpack_part(const Leaf *leaf, const Pair *codes, int64_t part, int64_t parts, uint8_t *scratch)
{
    for (int64_t i = 0; i < codes->panels && leaf->element != CODES8; i++) {
        const Unpacked *u = &codes->panel[i];
        const int64_t units = (u->count + UNIT - 1) / UNIT, from = units * part / parts * UNIT, to = units * (part + 1) / parts * UNIT;
        if (from < to)
            unpacked(leaf, u->panel, u->from + from, to - from, scratch + i * CHUNK_BYTES + from * 64);
    }
}

/* Codes, too, can only be loaded as tiles when they are stored for good: the next ones are unpacked while those are multiplied
 * that were unpacked before, a part for every tile of x. */
static void multiply_in_tiles(const Leaf *leaf, const Product *p, const Rounded *x, int64_t from, int64_t to, char *memory)
{
    Batch *batches = (Batch *)memory, *before = NULL;
    float *sums = (float *)(memory + BATCH_BYTES);
    const int few = p->rows * leaf->planes <= 2 * TILE;
    const int64_t panels = few ? 1 : 2, most = (few ? 2 : 1) * TILE / leaf->planes; /* of a batch: panels, rows */
    uint8_t *unpacked_first = (uint8_t *)(sums + 2 * least(p->rows, ROWS) * LANES);
    uint8_t *scratch[2] = { unpacked_first, unpacked_first + 2 * CHUNK_BYTES };
    Pending pending = { 0 };
    int64_t made = 0;
    for (int64_t start = 0; start < p->rows; start += ROWS) {
        const int64_t tiles = (least(ROWS, p->rows - start) + most - 1) / most;
        int64_t chunks = 0;
        Pair now = next_codes(leaf, from, 0, panels, to, scratch[0]), next;
        unpack_part(leaf, &now, 0, 1, scratch[0]);
        for (; now.panels > 0; now = next) {
            uint8_t *other = scratch[++chunks % 2];
            next = next_codes(leaf, now.panel->panel, now.panel->last, panels, to, other);
            for (int64_t tile = 0; tile < tiles; tile++) {
                Batch *b = &batches[made++ % 2];
                b->codes = now, b->row = start + tile * most, b->rows = least(most, p->rows - b->row);
                unpack_part(leaf, &next, tile, tiles, other);
                make_batch(leaf, x, b, next.panels > 0 ? &next : &now, tile, tiles, &pending);
                if (before)
                    scale_batch(leaf, p, x, before, sums);
                before = b;
            }
        }
    }
    store_pending(&pending);
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
    if (!in_tiles(leaf, p->rows)) {
        product(leaf, p, x, from, to, memory);
        return;
    }
    _tile_loadconfig(&registers);
    multiply_in_tiles(leaf, p, x, from, to, memory);
    _tile_release();
}

const Instructions amx_instructions = {
    "amx_int8", tiles_supported, normalise, rotate, round_row_in_tiles, product_by_tiles, sparse, trains, combine, append, attend,
    finish, judge, best, weigh, above,
};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
