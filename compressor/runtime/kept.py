"""What the dense model makes of a text, kept for the next evaluation: its hidden states, in the user's cache folder."""

import hashlib
import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import numpy as np

from compressor.progress import Progress, silent
from compressor.runtime.evaluate import Text, hidden_states, windows_of
from compressor.runtime.model import Floats, Model
from compressor.storage import durable

VERSION = 1  # rises when the same model gets other bits
MOST_BYTES = 10**9  # of all that is kept; the oldest go first


def dense_states(dense: Model, source: str, text: Text, progress: Progress = silent) -> Floats:
    """Return the dense model's hidden states behind every token of a text but the last, [T - 1, D].

    They are read where this model has made them of this text before, and else made and kept, if that is possible.

    Args:
        dense: the model.
        source: what tells its weights from all others, such as their checksum.
        text: the text.
        progress: progress callback.
    """
    shape = (len(text.ids) - 1, dense.config.n_embd)
    place = _folder() / f"{_key(dense, source, text)}.npy"
    with suppress(OSError, ValueError, EOFError):
        found: Floats = np.load(place, allow_pickle=False)
        if found.shape == shape and found.dtype == np.float32:
            return found
    states = np.empty(shape, np.float32)
    windows = windows_of(dense, text)
    for window in progress(windows, label="Evaluating the dense model", total=len(windows)):
        states[window.start : window.stop] = hidden_states(dense, text.ids[window.start : window.stop])
    with suppress(OSError):
        _keep(place, states)
    return states


def _folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ttgpt"


def _key(dense: Model, source: str, text: Text) -> str:
    about = json.dumps([VERSION, source, asdict(dense.config)], sort_keys=True)
    return hashlib.sha256(about.encode() + text.ids.tobytes()).hexdigest()


def _keep(place: Path, states: Floats) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    with durable.replacing(place) as new, new.open("wb") as file:
        np.save(file, states, allow_pickle=False)
    kept = sorted(place.parent.glob("*.npy"), key=lambda path: path.stat().st_mtime, reverse=True)
    total = 0
    for path in kept:
        total += path.stat().st_size
        if total > MOST_BYTES:
            path.unlink()
