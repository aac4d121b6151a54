"""Reading a checkpoint's files: what is missing, unreadable or only a pointer says so by name."""

import json
from pathlib import Path
from typing import Any

from compressor.errors import CheckpointError

LFS_POINTER = b"version https://git-lfs"


def check_readable(path: Path) -> None:
    """Refuse what is no file, cannot be read, or is the pointer that git keeps in place of a large file.

    Raises:
        CheckpointError: naming the file and what is wrong with it.
    """
    try:
        with path.open("rb") as file:
            start = file.read(len(LFS_POINTER))
    except FileNotFoundError as error:
        raise CheckpointError(f"{path.name}: is missing in {path.parent}") from error
    except OSError as error:
        raise CheckpointError(f"{path.name}: cannot be read in {path.parent}: {error.strerror}") from error
    if start == LFS_POINTER:
        raise CheckpointError(
            f"{path.name}: is a Git LFS pointer, not the file itself; run git lfs pull in {path.parent}"
        )


def read_bytes(path: Path) -> bytes:
    """Return the contents of a file; raises CheckpointError."""
    check_readable(path)
    return path.read_bytes()


def read_json(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file; raises CheckpointError."""
    try:
        value = json.loads(read_bytes(path))
    except CheckpointError:
        raise
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path.name}: is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name}: must be a JSON object, not {type(value).__name__}")
    return value
