"""How this process gives memory back: for builds, hardly ever."""

import ctypes
import sys

# mallopt(3), glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let the allocator reuse large blocks instead of returning each to the system; return whether it does.

    glibc maps every block above 32 MB anew, so that each of training's temporaries costs a page fault per 4 kB:
    seen to make a healing step 8 times slower on a virtual machine. Has no effect elsewhere than on glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28))
    return all(mallopt(option, value) == 1 for option, value in settings)
