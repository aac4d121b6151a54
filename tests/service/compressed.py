"""Tiny models whose token table is compressed and contracted while serving."""

from pathlib import Path

from compressor.formats import Format
from compressor.gpt2 import GPT2
from compressor.methods import tensorgpt, ttm
from tests.conftest import tiny_model, write_artifact

NAMES = ("token-mps", "tt-matrix")


def trains() -> Format:
    """Return the tiny model's table as a tensor train per row."""
    return tensorgpt.compress(tiny_model(seed=3).wte.dense(), tensorgpt.Config(rank=2))


def tt_matrix() -> Format:
    """Return the tiny model's table as one TT-matrix."""
    return ttm.compress(tiny_model(seed=4).wte.dense(), ttm.Config(rank=8))


def compressed_models() -> dict[str, GPT2]:
    """Return a model for every format that is contracted."""
    tables = dict(zip(NAMES, (trains(), tt_matrix()), strict=True))
    return {name: tiny_model(seed=5).with_matrices({"wte": table}) for name, table in tables.items()}


def compressed_artifacts(folder: Path) -> list[Path]:
    """Write one artefact for every such model."""
    return [write_artifact(folder / name, model) for name, model in compressed_models().items()]
