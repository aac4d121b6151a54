"""From a checkpoint and a plan to an artefact."""

import json
import time
from dataclasses import replace
from pathlib import Path

import torch

from compressor import stored
from compressor.artifact import folder as artifact
from compressor.artifact.manifest import Manifest, Provenance, Quality
from compressor.artifact.tokenizer import read_tokenizer
from compressor.finite import check_logits
from compressor.huggingface import Checkpoint
from compressor.progress import Progress, silent
from compressor.recipes.context import Context
from compressor.recipes.healing import NO_HEALING, Healing
from compressor.recipes.plans import CompressedModel, Plan
from compressor.runtime.evaluate import Text, evaluate, golden, read_text
from compressor.runtime.kept import dense_states
from compressor.runtime.model import Model
from compressor.runtime.reference import VALIDATION_TEXT
from compressor.storage.run_folder import require_space


def build(
    context: Context,
    plan: Plan,
    out: Path,
    *,
    healing: Healing = NO_HEALING,
    text: Path = VALIDATION_TEXT,
    force: bool = False,
) -> Manifest:
    """Compress, heal, measure and write an artefact to `out`.

    Args:
        context: the dense model and what all steps share.
        plan: a recipe, or a budget.
        out: the artefact's folder.
        healing: how long; not at all by default.
        text: what quality is measured on.
        force: replace an artefact in `out`.

    Raises:
        ValueError: if an option is illegal, a text will not do, or logits are not finite; before the first long step.
        ArtifactError: if `out` exists and `force` is not set.
    """
    artifact.refuse_existing(out, force)
    checkpoint = context.checkpoint
    check_logits(checkpoint.dense)
    started = time.perf_counter()
    judged = read_text(text, read_tokenizer(checkpoint.tokenizer_json))
    if context.texts:
        _ = context.calibration  # read at once, so that a text that will not do is refused at once
    plan.check(checkpoint.model)
    healing.check(plan, context)
    require_space("out", out, plan.estimated_bytes(checkpoint.model))
    compressed = healing.apply(plan.make(context), context)
    if plan.is_calibrated or healing.is_wanted:
        source = [path.name for path in context.texts] or "sampled from the model"
        compressed = replace(compressed, settings=compressed.settings | {"calibration": source})
    check_logits(compressed.model)
    seconds = round(time.perf_counter() - started, 1)
    running = compressed.model.decoder()
    quality = measure(running, checkpoint, judged, context.progress)
    return write_artifact(compressed, checkpoint, out, running, quality=quality, build_seconds=seconds, force=force)


def write_artifact(
    compressed: CompressedModel,
    checkpoint: Checkpoint,
    out: Path,
    running: Model,
    *,
    quality: Quality,
    build_seconds: float,
    force: bool = False,
) -> Manifest:
    """Write the artefact of a compressed model to `out`.

    Raises:
        ArtifactError: if `out` exists and `force` is not set.
    """
    provenance = Provenance(
        source=checkpoint.source,
        method=compressed.method,
        config=compressed.settings,
        seed=0,
        versions={"torch": torch.__version__},
        build_seconds=build_seconds,
    )
    return artifact.write(
        out,
        stored.contents(compressed.model, checkpoint.tokenizer_json, running),
        quality=quality,
        golden=golden(running, read_tokenizer(checkpoint.tokenizer_json)),
        provenance=provenance,
        force=force,
    )


def measure(running: Model, checkpoint: Checkpoint, text: Text, progress: Progress = silent) -> Quality:
    """Return the quality of a model, as it is served, against the checkpoint on a text."""
    dense = checkpoint.model.decoder()
    states = dense_states(dense, json.dumps(checkpoint.source.sha256, sort_keys=True), text, progress)
    return evaluate(running, dense, text, progress, states=states)
