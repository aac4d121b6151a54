"""A preset of gpt2-mini, carried over to a larger GPT-2.

What a budget buys for random weights says nothing about trained ones. Speed and memory depend on the forms alone: each
matrix takes the one that was chosen at the same depth of gpt2-mini, each block of the token table that of the same
block, with ranks in proportion to the width.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from compressor import huggingface
from compressor.formats import Format, Stacked
from compressor.methods import METHODS
from compressor.methods.base import Statistics
from compressor.progress import silent
from compressor.recipes import budget
from compressor.recipes.context import Context
from compressor.recipes.pieces import pieces
from compressor.recipes.plans import Budget, CompressedModel

PLANS = Path(__file__).parents[2] / "compressor" / "experiments" / "results" / "compression"


@dataclass(frozen=True, kw_only=True)
class Carried(Budget):
    """A budget that is spent as it was for gpt2-mini; nothing is measured.

    Attributes:
        preset: whose committed plan it follows.
    """

    preset: str

    @property
    def is_calibrated(self) -> bool:
        return False

    @torch.inference_mode()
    def make(self, context: Context) -> CompressedModel:
        dense, mini = context.checkpoint.model, huggingface.load(huggingface.EMBEDDED).model.config
        plan = json.loads((PLANS / f"budget-{self.preset}.json").read_text())["plan"]
        forms: dict[str, Format] = {}
        for name, matrix in dense.matrices().items():
            chosen = choices(plan, at_depth(name, mini.n_layer, dense.config.n_layer))
            weight, parts_of = matrix.dense(), pieces(name, matrix.shape)  # [out, in]
            moment = Statistics(second_moment=torch.eye(weight.shape[1]))
            parts = []
            for piece, (method, options) in zip(parts_of, chosen, strict=True):
                if "rank" in options:
                    options["rank"] = int(options["rank"]) * dense.config.n_embd // mini.n_embd
                found, config = METHODS[method].found, METHODS[method].config(**options)
                parts.append(found(piece.name, weight[piece.rows], config, moment, silent))
            forms[name] = parts[0] if len(parts) == 1 else Stacked.of(parts)
        vectors = budget.SMALL_VECTORS if (self.ratio or 1) >= budget.SCARCE else dense.vector_codec
        model = dense.with_matrices(forms).with_vectors(vectors)
        return CompressedModel(model=model, method=self.name, settings={"preset": self.preset})


def at_depth(name: str, layers: int, of_layers: int) -> str:
    """Return the name of the matrix at the same depth of a model with `layers` layers instead of `of_layers`."""
    if not name.startswith("h."):
        return name
    _, layer, rest = name.split(".", 2)
    return f"h.{int(layer) * layers // of_layers}.{rest}"


def choices(plan: list[dict[str, Any]], matrix: str) -> list[tuple[str, dict[str, Any]]]:
    """Return method and options of every piece of a matrix, from top to bottom."""
    found = [row["choice"].split() for row in plan if row["piece"].partition("[")[0] == matrix]
    return [(method, dict(option.split("=") for option in options)) for method, *options in found]
