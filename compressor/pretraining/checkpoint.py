"""Checkpoints of a run: one file of tensors, replaced whole or not at all."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

FILE = "checkpoint.safetensors"


def write(folder: Path, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a checkpoint beside the last one, flush it to disk, and put it in its place.

    Whatever interrupts it, the folder holds either the last checkpoint or this one, and both whole.

    Raises:
        OSError: if it cannot be written; the last checkpoint is still there, and nothing else.
    """
    data = save({name: tensor.contiguous() for name, tensor in tensors.items()}, {"about": json.dumps(about)})
    new = folder / f"{FILE}.new"
    try:
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, folder / FILE)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    _fsync(folder)


def read(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the tensors and what is said about them, or None where there is no checkpoint.

    Raises:
        ValueError: if the file is damaged.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, KeyError, ValueError) as error:
        raise ValueError(f"checkpoint: {path} is damaged ({error}); remove it to start again") from error


def said(folder: Path) -> dict[str, Any]:
    """Return what is said about the checkpoint in `folder`, nothing where there is none; raises ValueError."""
    found = read(folder)
    return {} if found is None else found[1]


def _fsync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
