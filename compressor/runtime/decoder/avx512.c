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

static void product_by_tiles(const Leaf *leaf, const Product *p, const Rounded *x, int64_t from, int64_t to, char *memory)
{
    static const struct {
        uint8_t palette, start, reserved[14];
        uint16_t row_bytes[16];
        uint8_t rows[16];
    } registers = { .palette = 1, .row_bytes = { 64, 64, 64, 64, 64, 64, 64, 64 }, .rows = { 16, 16, 16, 16, 16, 16, 16, 16 } };
    if (leaf->element < CODES8 || p->rows == 1) {
        product(leaf, p, x, from, to, memory);
        return;
    }
    _tile_loadconfig(&registers);
    product_by(1, leaf, p, x, from, to, memory);
    _tile_release();
}

const Instructions amx_instructions = {
    "amx_int8", tiles_supported, normalise, round_row, product_by_tiles, sparse, trains, combine, append, attend, finish,
    judge,
};
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
