/* The kernels for CPUs with AVX2. */
#if defined(__x86_64__)
#pragma GCC target("avx2,fma,f16c")
#define AVX2
#define NAME "avx2"
#define INSTRUCTIONS avx2_instructions

static int supported(void)
{
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
}

#include "kernels.h"
#endif
