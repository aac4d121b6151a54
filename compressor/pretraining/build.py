"""From a config and text files to an artefact that is served."""

import shutil
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from compressor import artifact, paths
from compressor.artifact import Manifest, Provenance, Source
from compressor.evaluate import evaluate, golden
from compressor.pretraining import checkpoint
from compressor.pretraining.config import Config
from compressor.pretraining.model import parameter_count, sealed
from compressor.pretraining.text import Corpus, read_corpus
from compressor.pretraining.training import Training
from compressor.progress import Echo, Progress, silent

METHOD = "pretrain"
Watch = Callable[[Training], Iterable[float]]


def pretrain(
    config: Config,
    texts: Sequence[Path],
    out: Path,
    *,
    validation: Path | None = None,
    memory_limit: int | None = None,
    force: bool = False,
    progress: Progress = silent,
    watch: Watch = Training.run,
    echo: Echo = print,
) -> Manifest:
    """Train on text files and write an artefact to `out`; a run that was interrupted goes on from its checkpoint.

    Checkpoints are in a folder beside `out`, with ".run" behind its name, which is removed in the end.

    Args:
        config: what to train.
        texts: to train on, files or folders.
        out: the artefact's folder.
        validation: for the validation curve and the artefact's quality; by default the end of the texts.
        memory_limit: bytes that the matrices may occupy while serving, see `compressor.paths`.
        force: replace an artefact in `out`.
        progress: told of reading and evaluating.
        watch: runs the training to its end, and may tell about it.
        echo: told what a user should know.

    Raises:
        ValueError: if a text, the tokenizer, a checkpoint or a folder will not do.
        ArtifactError: if `out` exists and `force` is not set.
    """
    artifact.refuse_existing(out, force)
    folder = run_folder(out)
    remembered = checkpoint.said(folder).get("tokenizer") if config.tokenizer is None else None
    corpus = read_corpus(config, texts, validation, tokenizer_json=remembered, progress=progress)
    _make_writable(folder)
    training = Training(config, corpus, folder, echo)
    paths.check_limit(sealed(training.model, config.codec), memory_limit)
    if training.step:
        echo(f"goes on from the checkpoint in {folder}: {training.tokens:,} tokens are done")
    for _ in watch(training):
        pass
    manifest = _seal(training, corpus, out, memory_limit, force, progress)
    shutil.rmtree(folder, ignore_errors=True)
    return manifest


def run_folder(out: Path) -> Path:
    """Return the folder of checkpoints for an artefact's folder."""
    return out.parent / f"{out.name}.run"


def _make_writable(folder: Path) -> None:
    """Make the folder and try it, so that hours of training do not end in an error."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise ValueError(f"out: cannot write to {folder}: {error.strerror}") from error


def _seal(
    training: Training, corpus: Corpus, out: Path, memory_limit: int | None, force: bool, progress: Progress
) -> Manifest:
    """Measure the trained model and write its artefact."""
    config = training.config
    model = paths.measured(sealed(training.model, config.codec), memory_limit)
    running = model.prepared()
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
        model,
        corpus.tokenizer.to_str().encode(),
        vector_codec=config.codec,
        quality=evaluate(running, None, corpus.validation, progress),
        golden=golden(running, corpus.tokenizer),
        provenance=provenance,
        force=force,
    )
