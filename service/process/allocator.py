"""How this process gives memory back, to the C allocator and to the kernel."""

import ctypes
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

M_ARENA_MAX = -8  # mallopt(3), glibc's malloc.h
ARENAS = 2
MADV_DONTNEED = 4  # madvise(2)
MAPS = Path("/proc/self/maps")


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


def unmap_idle_code() -> int:
    """Unmap the machine code of all libraries, which comes back page by page as it runs; return its bytes.

    Importing torch runs the constructors of tens of thousands of operators, 70 MB of code that is not called again but
    that would count as this process's memory for ever. Code is never written to, so nothing can be lost.
    """
    madvise = _glibc("madvise")
    if madvise is None or not MAPS.is_file():
        return 0
    madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]  # type: ignore[attr-defined]
    unmapped = 0
    for line in MAPS.read_text().splitlines():
        place, permissions, *_, path = line.split(maxsplit=5)
        if permissions == "r-xp" and path.startswith("/"):
            start, end = (int(address, 16) for address in place.split("-"))
            unmapped += end - start if madvise(start, end - start, MADV_DONTNEED) == 0 else 0
    return unmapped


def _glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
