"""Checkpoints of a run: one file of tensors, replaced whole or not at all, for the run that wrote it and no other."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from compressor.gpt2 import GPT2
from compressor.storage import durable

LOST = "keeps the last checkpoint and continues; make room, or stop it and resume later"


def digest(*parts: GPT2 | Tensor | dict[str, Any] | list[str] | str) -> str:
    """Return the sha256 over all that decides about a run: models and tensors bit for bit, the rest as JSON."""
    found = hashlib.sha256()
    for part in parts:
        _feed(found, part)
    return found.hexdigest()


def write(path: Path, identity: str, tensors: Mapping[str, Tensor], about: Mapping[str, Any]) -> None:
    """Write a checkpoint in place of the last one.

    Args:
        path: of the file; its folder is made.
        identity: of the run, see `digest`.
        tensors: its state.
        about: the rest of its state, as JSON.

    Raises:
        OSError: if it cannot be written; the last checkpoint is still there, and nothing else.
    """
    metadata = {"identity": identity, "about": json.dumps(about)}
    with durable.replacing(path) as new:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new, metadata)


def read(path: Path, identity: str | None = None) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return the tensors and what is said about them, or None where there is no checkpoint.

    Raises:
        ValueError: if the file is damaged, or is not that of the run called `identity`.
    """
    if not path.is_file():
        return None
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata()
            if identity not in (None, metadata["identity"]):
                problem = "belongs to another run; remove it or choose another folder"
                raise ValueError(f"checkpoint: {path} {problem}")
            about = json.loads(metadata["about"])
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118
    except (SafetensorError, OSError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise _damaged(path, error) from error


def metadata(path: Path) -> dict[str, Any]:
    """Return what is said about a checkpoint, without its tensors; nothing where there is none; raises ValueError."""
    if not path.is_file():
        return {}
    try:
        with safe_open(path, framework="pt") as file:
            about: dict[str, Any] = json.loads(file.metadata()["about"])
            return about
    except (SafetensorError, OSError, TypeError, KeyError, json.JSONDecodeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> ValueError:
    return ValueError(f"checkpoint: {path} is damaged ({error}); remove it to start again")


def _feed(found: "hashlib._Hash", part: GPT2 | Tensor | dict[str, Any] | list[str] | str) -> None:
    if isinstance(part, GPT2):
        for name, form in sorted(part.matrices().items()):
            _feed(found, {"matrix": name, "spec": form.spec().model_dump()})
            for key, tensor in sorted(form.tensors().items()):
                _feed(found, key)
                _feed(found, tensor)
        for name, vector in sorted(part.vectors().items()):
            _feed(found, name)
            _feed(found, vector.decode())
    elif isinstance(part, Tensor):
        _feed(found, {"dtype": str(part.dtype), "shape": list(part.shape)})
        found.update(part.detach().contiguous().flatten().view(torch.uint8).numpy().data)
    else:
        found.update(json.dumps(part, sort_keys=True).encode() + b"\n")
