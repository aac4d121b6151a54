/* The kernels for CPUs with AVX2. */
#if defined(__x86_64__)
#include <immintrin.h>
#if defined(__clang__) /* which cannot ask for F16C before version 19; CPUs with AVX2 have it */
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#define HAS_F16C 1
#else
#pragma GCC target("avx2,fma,f16c")
#define HAS_F16C __builtin_cpu_supports("f16c")
#endif
#define AVX2
#define NAME "avx2"
#define INSTRUCTIONS avx2_instructions

static int supported(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && HAS_F16C;
}

#include "kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
