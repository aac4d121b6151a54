"""Files and folders that are written whole or not at all, are on the disk when they appear, and follow the umask.

What is written stands in a folder `.NAME.unfinished-PID` beside its place and is renamed into it in the end. So an
error, a signal or a full disk leaves what was there before; what a killed writer leaves is cleared by the next one.
"""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

UNFINISHED = re.compile(r"\..+\.(unfinished|replaced)-\d+")
FILE_MODE, FOLDER_MODE = 0o644, 0o755


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a place to write a new file or folder at, which then takes the place of `path`; parents are made.

    Raises:
        OSError: if it cannot be written, naming `path`; what was there before is still there, and nothing else.
    """
    clear_leftovers(path)
    unfinished = _beside(path, "unfinished")
    try:
        unfinished.mkdir(parents=True)
        new = unfinished / path.name
        yield new
        settle(new)
        _replace(new, path)
    except Exception as error:
        if (named := _naming(path, error)) is error:
            raise
        raise named from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def write(path: Path, data: bytes) -> None:
    """Write a file; raises OSError."""
    with replacing(path) as new:
        new.write_bytes(data)


def settle(path: Path) -> None:
    """Flush a file, or a folder and all in it, to disk; their modes are the umask's, at most 0644 and 0755."""
    if path.is_dir():
        for inner in path.iterdir():
            settle(inner)
    with suppress(PermissionError):  # it is our own, so this file system has no modes
        path.chmod((FOLDER_MODE if path.is_dir() else FILE_MODE) & ~_umask())
    _fsync(path)


def clear_leftovers(path: Path) -> None:
    """Remove what killed writers of `path` left, and put back what the last one had moved aside."""
    if not path.parent.is_dir():
        return
    for other in path.parent.iterdir():
        if not other.name.startswith(f".{path.name}.") or not UNFINISHED.fullmatch(other.name):
            continue
        if _is_running(int(other.name.rpartition("-")[2])):
            continue
        if ".replaced-" in other.name and not os.path.lexists(path):
            other.rename(path)
        else:
            _remove(other)


def _replace(new: Path, path: Path) -> None:
    """Rename; what a folder replaces steps aside first and is restored if that fails."""
    aside = _beside(path, "replaced")
    steps_aside = new.is_dir() and os.path.lexists(path)
    if steps_aside:
        path.rename(aside)
    try:
        os.replace(new, path)
    except OSError:
        if steps_aside:
            aside.rename(path)
        raise
    _fsync(path.parent)
    if steps_aside:
        _remove(aside)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _beside(path: Path, state: str) -> Path:
    return path.parent / f".{path.name}.{state}-{os.getpid()}"


def _naming(path: Path, error: Exception) -> Exception:
    """Return the system's error about what is being written, as one that names `path`; others as they are."""
    if not isinstance(error, OSError):
        match = re.search(r"\(os error (\d+)\)", str(error))  # in the words of a library, such as safetensors
        return OSError(int(match[1]), os.strerror(int(match[1])), str(path)) if match else error
    if error.errno is None or (error.filename is not None and not UNFINISHED.search(str(error.filename))):
        return error
    return OSError(error.errno, error.strerror, str(path))


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return pid != os.getpid()
