"""From a config and text files to an artefact that is served."""

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from compressor import stored
from compressor.artifact import folder as artifact
from compressor.artifact.manifest import Manifest, Provenance, Source
from compressor.pretraining.config import Config
from compressor.pretraining.model import initialised, parameter_count, quantized
from compressor.pretraining.text import Corpus, read_corpus
from compressor.pretraining.training import CHECKPOINT, CHECKPOINT_BYTES, Training
from compressor.progress import Echo, Progress, silent
from compressor.recipes import checkpoint
from compressor.runtime.evaluate import evaluate, golden
from compressor.storage.run_folder import claimed, require_space

METHOD = "pretrain"
Watch = Callable[[Training], Iterable[float]]


def pretrain(
    config: Config,
    texts: Sequence[Path],
    out: Path,
    *,
    validation: Path | None = None,
    force: bool = False,
    progress: Progress = silent,
    watch: Watch = Training.run,
    echo: Echo = print,
) -> Manifest:
    """Train on text files and write an artefact to `out`; a run that was interrupted resumes from its checkpoint.

    Checkpoints are in the run folder of `out`, which is removed in the end.

    Args:
        config: what to train.
        texts: to train on, files or folders.
        out: the artefact's folder.
        validation: for the validation curve and the artefact's quality; by default the end of the texts.
        force: replace an artefact in `out`.
        progress: progress callback.
        watch: runs the training to its end, and may tell about it.
        echo: gets what a user should know, a line each.

    Raises:
        ValueError: if a text, the tokenizer, a checkpoint or a folder will not do.
        ArtifactError: if `out` exists and `force` is not set.
    """
    artifact.refuse_existing(out, force)
    with claimed(out) as folder:
        artifact.refuse_existing(out, force)  # which a run that has just ended may have made
        _check_space(config, folder)
        remembered = checkpoint.metadata(folder / CHECKPOINT).get("tokenizer") if config.tokenizer is None else None
        corpus = read_corpus(config, texts, validation, tokenizer_json=remembered, progress=progress)
        training = Training(config, corpus, folder, echo)
        if training.step:
            echo(f"resumes from the checkpoint in {folder}: {training.tokens:,} tokens are done")
        for _ in watch(training):
            pass
        manifest = _write_artifact(training, corpus, out, force, progress)
        (folder / CHECKPOINT).unlink(missing_ok=True)
    return manifest


def _check_space(config: Config, folder: Path) -> None:
    """Refuse a disk on which two checkpoints, of which one replaces the other, and the artefact have no room."""
    last = folder / CHECKPOINT
    have = last.stat().st_size if last.is_file() else 0
    require_space("out", folder, (2 * CHECKPOINT_BYTES + 4) * parameter_count(initialised(config)) - have)


def _write_artifact(training: Training, corpus: Corpus, out: Path, force: bool, progress: Progress) -> Manifest:
    """Measure the trained model and write its artefact."""
    config = training.config
    model = quantized(training.model, config.codec)
    running = model.decoder()
    run = {
        "parameters": parameter_count(training.model),
        "tokens_per_second": round(training.tokens / max(training.seconds, 1e-9)),
        "curve": [[point.tokens, point.loss] for point in training.curve],
    }
    provenance = Provenance(
        source=Source(id=METHOD, sha256=corpus.sha256),
        method=METHOD,
        config=config.model_dump(mode="json") | run,
        seed=config.seed,
        versions={"torch": torch.__version__},
        build_seconds=round(training.seconds, 1),
    )
    return artifact.write(
        out,
        stored.contents(model, corpus.tokenizer.to_str().encode(), running),
        quality=evaluate(running, None, corpus.validation, progress),
        golden=golden(running, corpus.tokenizer),
        provenance=provenance,
        force=force,
    )
