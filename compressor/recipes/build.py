"""From a checkpoint and a plan to an artefact."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Literal

import torch

from compressor import stored
from compressor.artifact import folder as artifact
from compressor.artifact.layouts import codecs_of, integers_named
from compressor.artifact.manifest import Manifest, Provenance, Quality
from compressor.artifact.tokenizer import read_tokenizer
from compressor.finite import check_logits
from compressor.gpt2 import GPT2
from compressor.huggingface import Checkpoint
from compressor.progress import Progress, silent
from compressor.recipes.context import Context
from compressor.recipes.healing import NO_HEALING, Healing
from compressor.recipes.plans import CompressedModel, Plan
from compressor.runtime.evaluate import Text, evaluate, golden, read_text
from compressor.runtime.kept import dense_states
from compressor.runtime.matrices import BYTE_GROUP
from compressor.runtime.model import Model
from compressor.runtime.reference import VALIDATION_TEXT
from compressor.storage.run_folder import require_space

MOST_LOST = 0.001  # of the perplexity, by activations of 8 bits
Activations = Literal[16, 8]


def build(
    context: Context,
    plan: Plan,
    out: Path,
    *,
    healing: Healing = NO_HEALING,
    text: Path = VALIDATION_TEXT,
    activations: Activations = 16,
    force: bool = False,
) -> Manifest:
    """Compress, heal, measure and write an artefact to `out`.

    Args:
        context: the dense model and what all steps share.
        plan: a recipe, or a budget.
        out: the artefact's folder.
        healing: how long; not at all by default.
        text: what quality is measured on.
        activations: bits of rounded rows, see `compressor.runtime.matrices.matrix_of`; 8 are taken only if they cost
            at most MOST_LOST of the perplexity.
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
    chosen: Activations = 16
    if activations == 8 and not _has_groups(compressed.model):
        context.echo(f"activations stay at 16 bits: no codes are in groups of at most {BYTE_GROUP}")
    elif activations == 8:
        in_bytes = compressed.model.decoder(activations=8)
        other = measure(in_bytes, checkpoint, judged, context.progress)
        lost = other.perplexity / quality.perplexity - 1
        context.echo(f"activations of 8 bits: perplexity {100 * lost:+.3f} %, of which {100 * MOST_LOST} % are allowed")
        if lost <= MOST_LOST:
            running, quality, chosen = in_bytes, other, 8
        about = {"activations": {"bits": chosen, "perplexity_lost": round(lost, 6)}}
        compressed = replace(compressed, settings=compressed.settings | about)
    return write_artifact(
        compressed, checkpoint, out, running, quality=quality, build_seconds=seconds, activations=chosen, force=force
    )


def write_artifact(
    compressed: CompressedModel,
    checkpoint: Checkpoint,
    out: Path,
    running: Model,
    *,
    quality: Quality,
    build_seconds: float,
    activations: Activations = 16,
    force: bool = False,
) -> Manifest:
    """Write the artefact of a compressed model to `out`, which `running` is.

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
        stored.contents(compressed.model, checkpoint.tokenizer_json, running, activations),
        quality=quality,
        golden=golden(running, read_tokenizer(checkpoint.tokenizer_json)),
        provenance=provenance,
        force=force,
    )


def _has_groups(model: GPT2) -> bool:
    """Return whether activations of 8 bits make a difference."""
    codecs = {codec for form in model.matrices().values() for codec in codecs_of(form.spec())}
    return any((found := integers_named(codec)) and 0 < found.group <= BYTE_GROUP for codec in codecs)


def measure(running: Model, checkpoint: Checkpoint, text: Text, progress: Progress = silent) -> Quality:
    """Return the quality of a model, as it is served, against the checkpoint on a text."""
    dense = checkpoint.model.decoder()
    states = dense_states(dense, json.dumps(checkpoint.source.sha256, sort_keys=True), text, progress)
    return evaluate(running, dense, text, progress, states=states)
