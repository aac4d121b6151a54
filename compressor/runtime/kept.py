"""What took long and is wanted again, such as the dense model's hidden states, in the user's cache folder."""

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from compressor.progress import Progress, silent
from compressor.runtime.evaluate import Text, all_hidden_states
from compressor.runtime.model import Floats, Model
from compressor.runtime.version import VERSION
from compressor.storage import durable

T = TypeVar("T", bound=np.generic)
MOST_BYTES = 4 * 10**9  # of all that is kept; the oldest go first


def dense_states(
    dense: Model, source: str, text: Text, progress: Progress = silent, stride: int | None = None
) -> Floats:
    """Return the dense model's hidden states behind every token of a text but the last, [T - 1, D].

    They are read where this model has made them of this text before, and else made and kept, if that is possible.

    Args:
        dense: the model.
        source: what tells its weights from all others, such as their checksum.
        text: the text.
        progress: progress callback.
        stride: tokens from one window to the next, see `evaluate`.
    """
    about = ["states", source, asdict(dense.config), text.ids.tolist(), stride]
    return found_or_made(about, lambda: all_hidden_states(dense, text, progress, stride))


def found_or_made(about: Sequence[Any], make: Callable[[], NDArray[T]]) -> NDArray[T]:
    """Return the array that was kept about something, or else make it and keep it, if that is possible.

    Args:
        about: all that decides about its values, as JSON.
        make: gives the array.
    """
    key = hashlib.sha256(json.dumps([VERSION, *about], sort_keys=True).encode()).hexdigest()
    place = folder() / f"{key}.npy"
    with suppress(OSError, ValueError, EOFError):
        found: NDArray[T] = np.load(place, allow_pickle=False)
        return found
    made = make()
    with suppress(OSError):
        with durable.replacing(place) as new, new.open("wb") as file:
            np.save(file, made, allow_pickle=False)
        trim()
    return made


def folder() -> Path:
    """Return where everything is kept, which may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ttgpt"


def trim() -> None:
    """Remove the oldest files until the others have MOST_BYTES at most; raises OSError."""
    files = [path for pattern in ("*.npy", "*.safetensors") for path in folder().glob(pattern)]
    total = 0
    for path in sorted(files, key=lambda path: path.stat().st_mtime, reverse=True):
        total += path.stat().st_size
        if total > MOST_BYTES:
            path.unlink(missing_ok=True)
