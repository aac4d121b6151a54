/* The kernels for any CPU. */
#define NAME "portable"
#define INSTRUCTIONS portable_instructions

static int supported(void) { return 1; }

#include "kernels.h"
