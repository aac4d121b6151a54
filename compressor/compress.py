"""From a checkpoint and a recipe to a sealed artefact."""

import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from compressor import artifact, huggingface
from compressor.artifact import Manifest, Provenance, Quality
from compressor.codecs import FloatCodec, codec_named
from compressor.evaluate import evaluate, golden, read_text
from compressor.formats import Format
from compressor.gpt2 import GPT2
from compressor.huggingface import Checkpoint
from compressor.methods import METHODS, quantize
from compressor.methods.base import Target
from compressor.progress import Progress, silent

VALIDATION_TEXT = huggingface.EMBEDDED_FOLDER / "validation.txt"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to do with a checkpoint.

    Attributes:
        method: a key of METHODS.
        options: the method's own, by the names of its Config.
        rest: codec of the matrices that the method leaves alone; None keeps the checkpoint's dtype.
    """

    method: str
    options: Mapping[str, Any]
    rest: str | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}")
        legal = METHODS[self.method].config.__dataclass_fields__
        if unknown := self.options.keys() - legal.keys():
            known = ", ".join(legal) or "none"
            raise ValueError(f"{min(unknown)} is not an option of {self.method}, which has: {known}")
        if self.rest is not None:
            codec_named(self.rest)
        METHODS[self.method].config(**self.options)

    def settings(self) -> dict[str, Any]:
        """Return every option, given or default."""
        config = METHODS[self.method].config(**self.options)
        return asdict(config) | {"rest": self.rest or "as in the checkpoint"}


def compress(checkpoint: Checkpoint, recipe: Recipe, progress: Progress = silent) -> GPT2:
    """Return the compressed model.

    Raises:
        ValueError: if an option does not suit a matrix.
    """
    method = METHODS[recipe.method]
    config = method.config(**recipe.options)
    compressed: dict[str, Format] = {}
    for name, form in checkpoint.model.matrices().items():
        if _is_target(name, method.target):
            compressed[name] = method.compress(form.dense(), config, None, progress)
        elif recipe.rest is not None:
            compressed[name] = quantize.compress(form.dense(), quantize.Config(codec=recipe.rest))
    return checkpoint.model.with_matrices(compressed)


def vector_codec(checkpoint: Checkpoint, recipe: Recipe) -> str:
    """Return the codec of biases and LayerNorm vectors: `rest` where that is a float dtype."""
    is_float = recipe.rest is not None and isinstance(codec_named(recipe.rest), FloatCodec)
    return recipe.rest if recipe.rest and is_float else checkpoint.vector_codec


def build(
    checkpoint: Checkpoint,
    recipe: Recipe,
    out: Path,
    *,
    text: Path = VALIDATION_TEXT,
    force: bool = False,
    progress: Progress = silent,
) -> Manifest:
    """Compress, measure and write an artefact to `out`.

    Raises:
        ValueError: if an option is illegal.
        ArtifactError: if `out` exists and `force` is not set.
    """
    artifact.refuse_existing(out, force)
    started = time.perf_counter()
    model = compress(checkpoint, recipe, progress)
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json.decode())
    quality = measure(model, checkpoint, text, progress)
    provenance = Provenance(
        source=checkpoint.source,
        method=recipe.method,
        config=recipe.settings(),
        seed=0,
        versions={"torch": torch.__version__},
        build_seconds=round(time.perf_counter() - started, 1),
    )
    return artifact.write(
        out,
        model,
        checkpoint.tokenizer_json,
        vector_codec=vector_codec(checkpoint, recipe),
        quality=quality,
        golden=golden(model.prepared(), tokenizer),
        provenance=provenance,
        force=force,
    )


def measure(model: GPT2, checkpoint: Checkpoint, text: Path, progress: Progress = silent) -> Quality:
    """Return the quality of `model` against the checkpoint on a text file."""
    tokenizer = Tokenizer.from_str(checkpoint.tokenizer_json.decode())
    return evaluate(model.prepared(), checkpoint.model.prepared(), read_text(text, tokenizer), progress)


def _is_target(name: str, target: Target) -> bool:
    return target == "all" or (target == "embedding" and name in ("wte", "lm_head"))
