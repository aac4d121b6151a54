/* The kernels for ARM CPUs with dot products of bytes. */
#if defined(__aarch64__)
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("dotprod"))), apply_to = function)
#else
#pragma GCC target("arch=armv8.2-a+dotprod")
#endif
#include <arm_neon.h>
#include <sys/auxv.h>
#define NEON
#define NAME "neon_dotprod"
#define INSTRUCTIONS neon_instructions

static int supported(void)
{
    enum { HAS_DOT_PRODUCTS = 1 << 20 };
    return (getauxval(AT_HWCAP) & HAS_DOT_PRODUCTS) != 0;
}

#include "kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
