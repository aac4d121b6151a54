"""How this process gives memory back to the system: for builds, hardly ever; after loading, once."""

import ctypes
import sys
from collections.abc import Callable

# mallopt(3), glibc's malloc.h.
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4


def keep_freed_memory() -> bool:
    """Let the allocator reuse large blocks instead of returning each to the system; return whether it does.

    glibc maps every block above 32 MB anew, so that each of training's temporaries costs a page fault per 4 kB:
    seen to make a healing step 8 times slower on a virtual machine. Has no effect elsewhere than on glibc.
    """
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return False
    settings = ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**28))
    return all(mallopt(option, value) == 1 for option, value in settings)


def give_back() -> None:
    """Give back what was freed: parsing a tokenizer leaves as much as it keeps. No effect elsewhere than on glibc."""
    if trim := _glibc("malloc_trim"):
        trim(0)


def _glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
