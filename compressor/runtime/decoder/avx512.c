/* The kernels for CPUs with AVX-512 and its products of bytes (VNNI). */
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__) /* which cannot ask for F16C before version 19; CPUs with AVX2 have it */
#pragma clang attribute push(__attribute__((target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c"))), apply_to = function)
#define HAS_F16C 1
#else
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
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
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
