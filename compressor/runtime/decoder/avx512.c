/* The kernels for CPUs with AVX-512 and its products of bytes (VNNI). */
#if defined(__x86_64__)
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")
#define AVX512
#define NAME "avx512_vnni"
#define INSTRUCTIONS avx512_instructions

static int supported(void)
{
    return __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("f16c");
}

#include "kernels.h"
#endif
