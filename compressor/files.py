"""Files that others will read, and reading what others may be writing.

A file is readable by whom the umask lets, and writable by its owner alone; so is a folder. Whatever this process
keeps of a file is in its own memory: what happens to the file later reaches nobody.
"""

import os
import stat
from collections.abc import Iterable
from errno import EINVAL
from pathlib import Path
from typing import BinaryIO

FILE_MODE, FOLDER_MODE = 0o644, 0o755


def write(path: Path, pieces: Iterable[bytes | memoryview]) -> None:
    """Write `pieces` to `path`, replacing it, and flush them to disk. The mode is 0644 less the umask."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, FILE_MODE)
    with os.fdopen(handle, "wb", buffering=0) as file:
        for piece in pieces:
            left = memoryview(piece)
            while left:
                left = left[file.write(left) :]
        os.fsync(file.fileno())


def make_folder(path: Path) -> None:
    """Make a folder of mode 0755 less the umask, and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.mkdir(mode=FOLDER_MODE)


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
