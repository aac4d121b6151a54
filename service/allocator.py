"""How the C allocator treats this process's memory."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable

M_ARENA_MAX = -8  # mallopt(3), glibc's malloc.h
ARENAS = 2


def share_arenas() -> bool:
    """Let all threads allocate from few arenas, whose freed blocks are then used again; return whether they do.

    glibc makes up to 8 arenas per core, and each keeps what its busiest moment needed. To be called before other
    threads start; what the operator has set in MALLOC_ARENA_MAX stays. Has no effect elsewhere than on glibc.
    """
    mallopt = _glibc("mallopt")
    return "MALLOC_ARENA_MAX" not in os.environ and mallopt is not None and mallopt(M_ARENA_MAX, ARENAS) == 1


def settle() -> None:
    """Give back what loading has freed, and let the garbage collector pass over all that will stay.

    Otherwise each of its full rounds would look at a million objects of the libraries, while everybody waits.
    """
    gc.collect()
    gc.freeze()
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
