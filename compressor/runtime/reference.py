"""The embedded dense model, gpt2-mini, as it runs: what artefacts made of it are compared with."""

import hashlib
import json
from dataclasses import fields
from pathlib import Path

import numpy as np

from compressor.artifact import tensor_file
from compressor.artifact.gpt2_config import GPT2Config
from compressor.runtime._decoder import Matrix
from compressor.runtime.model import LINEARS, Model

NAME = "gpt2-mini"
FOLDER = Path(__file__).parents[1] / "reference"
WEIGHTS = FOLDER / "model.safetensors"
VALIDATION_TEXT = FOLDER / "validation.txt"


def sha256() -> str:
    """Return the sha256 of the model's weights."""
    with WEIGHTS.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dense(threads: int | None = None) -> Model:
    """Return the model.

    Args:
        threads: that compute; all cores that the process may use by default.
    """
    raw = json.loads((FOLDER / "config.json").read_text())
    raw["n_inner"] = raw["n_inner"] or 4 * raw["n_embd"]
    config = GPT2Config(**{field.name: raw[field.name] for field in fields(GPT2Config)})
    with tensor_file.opened(WEIGHTS) as file:
        found = {name.removeprefix("transformer."): values for name, values in file.tensors()}
    matrices = {}
    for name in config.matrix_shapes():
        values = found[f"{name}.weight"]
        values = values.T if name.endswith(LINEARS) else values  # which Hugging Face has as [in, out]
        matrices[name] = Matrix.floats(np.ascontiguousarray(values))
    vectors = {name: found[name].astype(np.float32) for name in config.vector_shapes()}
    return Model(config, matrices, vectors, threads)
