"""The folder beside an artefact in which its run keeps what it has done, and which one run has at a time."""

import fcntl
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

LOCK = "lock"


def run_folder(out: Path) -> Path:
    """Return the run folder of an artefact's folder."""
    return out.parent / f"{out.name}.run"


@contextmanager
def claimed(out: Path, field: str = "out") -> Iterator[Path]:
    """Hold and yield the run folder of `out`; in the end it goes, unless something is kept in it.

    A process gives it back however it ends, since the kernel holds the lock.

    Args:
        out: what the run is going to write.
        field: what a user calls that.

    Raises:
        ValueError: if another run holds it, or nothing can be written there.
    """
    folder = run_folder(out)
    made = [folder, *(parent for parent in folder.parents if not parent.exists())]
    try:
        lock = _locked(folder)
    except BlockingIOError as error:
        raise ValueError(f"{field}: another run is writing {out}; wait for it or choose another folder") from error
    except OSError as error:
        raise ValueError(f"{field}: cannot write to {folder.parent}: {error.strerror}") from error
    try:
        yield folder
    finally:
        (folder / LOCK).unlink(missing_ok=True)
        os.close(lock)
        for path in made:
            with suppress(OSError):
                path.rmdir()  # only if it is empty


def require_space(field: str, folder: Path, size_bytes: int) -> None:
    """Refuse a folder on whose disk there is too little space; raises ValueError."""
    free = shutil.disk_usage(_there(folder)).free
    if free < size_bytes:
        need, have = size_bytes / 1e6, free / 1e6
        raise ValueError(f"{field}: about {need:,.1f} MB are needed in {folder}, but {have:,.1f} MB are free")


def require_writable(field: str, folder: Path, *, made: bool = False) -> None:
    """Refuse a folder in which no file can be made, but not one that is only missing if it is `made`.

    Raises:
        ValueError: saying why.
    """
    probe = (_there(folder) if made else folder) / f".probe-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ValueError(f"{field}: cannot write to {folder}: {error.strerror}") from error


def _there(folder: Path) -> Path:
    """Return the folder, or the nearest one above it where it has to be made."""
    return next(place for place in (folder, *folder.absolute().parents) if place.exists())


def require_files(field: str, paths: Iterable[Path]) -> None:
    """Refuse files that cannot be read; raises ValueError."""
    for path in paths:
        try:
            path.open("rb").close()
        except OSError as error:
            raise ValueError(f"{field}: cannot read {path}: {error.strerror}") from error


def _locked(folder: Path) -> int:
    """Return the descriptor of the folder's lock, which this process now has; raises OSError."""
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            lock = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        except FileNotFoundError:
            continue  # the last one to hold it has just removed the folder
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            raise
        except OSError:
            return lock  # this file system has no locks
        if _is_at(folder / LOCK, lock):
            return lock
        os.close(lock)


def _is_at(path: Path, descriptor: int) -> bool:
    """Return whether the open file is the one that is at `path` now."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
