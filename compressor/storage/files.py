"""Reading files that others may be writing.

Whatever this process keeps of a file is in its own memory: what happens to the file later reaches nobody.
"""

import os
import stat
from errno import EINVAL
from pathlib import Path
from typing import BinaryIO


def opened(path: Path) -> BinaryIO:
    """Open a regular file to read, unbuffered; raises OSError for anything else, rather than wait for a pipe."""
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(handle, "rb", buffering=0)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        file.close()
        raise OSError(EINVAL, "is not a regular file", str(path))
    return file


def fill(file: BinaryIO, room: memoryview) -> bool:
    """Read as many bytes as there is room for; return whether so many came."""
    while room:
        count = file.readinto(room)  # type: ignore[attr-defined]
        if not count:
            return False
        room = room[count:]
    return True
