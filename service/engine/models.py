"""The loaded artefacts, each checked against its own golden values before it serves a request."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache as cached
from pathlib import Path
from typing import Protocol

import numpy as np
from tokenizers import Tokenizer

from compressor.artifact.folder import MANIFEST, Arrays, Owner, Parse
from compressor.artifact.gpt2_config import component_of
from compressor.artifact.manifest import Golden, Manifest, Spec
from compressor.artifact.tokenizer import read_tokenizer, same_tokens
from compressor.errors import ArtifactError
from compressor.runtime._decoder import Matrix
from compressor.runtime.evaluate import hidden_states
from compressor.runtime.load import as_stored
from compressor.runtime.load import load as read
from compressor.runtime.model import Model
from service.engine.streaming import Vocabulary, vocabulary
from service.errors import UnknownModelError
from service.metrics import Metrics

QUALITY = ("perplexity", "perplexity_ratio", "kl", "top1_agreement")


@dataclass(frozen=True)
class LoadedModel:
    """One artefact, ready to run.

    Attributes:
        name: the folder's name, by which clients choose it.
        decoder: what computes.
        tokenizer: text to ids.
        vocabulary: ids to bytes.
        manifest: what the artefact says about itself.
        artifact_bytes: of all its files.
        modified_seconds: when the artefact was written, in seconds since 1970.
        load_seconds: by phase: read, prepare, warm_up.
        encoding: held while texts are encoded in a thread, which takes up to 200 bytes for each of theirs.
    """

    name: str
    decoder: Model
    tokenizer: Tokenizer
    vocabulary: Vocabulary
    manifest: Manifest
    artifact_bytes: int
    modified_seconds: int
    load_seconds: Mapping[str, float]
    encoding: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def context(self) -> int:
        """Longest prompt and continuation together, in tokens."""
        return self.decoder.config.n_positions

    @property
    def eos_id(self) -> int:
        """The token that ends a text."""
        return self.decoder.config.eos_token_id

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`; lets other threads run meanwhile, which `Tokenizer.encode` does not."""
        return self.tokenizer.encode_batch_fast([text])[0].ids


def report(model: LoadedModel, metrics: Metrics) -> None:
    """Say what was loaded, how large it is and how good, and start its counters at 0."""
    name, manifest = model.name, model.manifest
    provenance, quality = manifest.provenance, manifest.quality
    metrics.model_info.labels(name, manifest.digest, provenance.method, provenance.source.id).set(1)
    resident: Counter[str] = Counter()
    for part, size_bytes in model.decoder.num_bytes.items():
        resident[component_of(part)] += size_bytes
    for component, size in manifest.bytes.items():
        metrics.model_weight_bytes.labels(name, component, "disk").set(size.disk)
        metrics.model_weight_bytes.labels(name, component, "resident").set(resident[component])
        metrics.model_dense_equivalent_bytes.labels(name, component).set(size.dense_fp32)
    metrics.model_artifact_bytes.labels(name).set(model.artifact_bytes)
    for metric in QUALITY:
        if (value := getattr(quality, metric)) is not None:
            metrics.model_quality.labels(name, metric, quality.text).set(value)
    for phase, seconds in model.load_seconds.items():
        metrics.model_load_seconds.labels(name, phase).set(seconds)
    metrics.start_counters(name)


class Models:
    """The models by name; the first one is the default.

    Attributes:
        default: answers requests that name none.
        drafts: by the names of the models that they propose tokens to.
    """

    def __init__(self, models: Sequence[LoadedModel], draft: LoadedModel | None = None) -> None:
        """Hold these models.

        Args:
            models: at least one.
            draft: proposes to all of them that have its vocabulary, but itself.
        """
        self._by_name = {model.name: model for model in models}
        self.default = models[0]
        self.drafts = {model.name: draft for model in models if draft is not None and proposes_to(draft, model)}

    def __iter__(self) -> Iterator[LoadedModel]:
        return iter(self._by_name.values())

    def named(self, name: str | None) -> LoadedModel:
        """Return the model called `name`, or the default; raises UnknownModelError."""
        if name is None:
            return self.default
        if name not in self._by_name:
            raise UnknownModelError(list(self._by_name))
        return self._by_name[name]


def proposes_to(draft: LoadedModel, model: LoadedModel) -> bool:
    """Return whether what `draft` writes are tokens of another model, `model`."""
    same_size = draft.decoder.config.vocab_size == model.decoder.config.vocab_size
    return draft is not model and same_size and same_tokens(draft.tokenizer, model.tokenizer)


class Remembers(Protocol):
    """What models remember contractions with."""

    def make(self, owner: Owner, tensors: Arrays, spec: Spec) -> Matrix:
        """Return a matrix as it is served."""

    def attach(self, name: str, digest: str, decoder: Model) -> None:
        """Have a model remember what it contracts."""


def load_all(
    folders: Sequence[Path],
    default: str | None,
    on_loaded: Callable[[LoadedModel], None],
    cache: Remembers | None = None,
    threads: int | None = None,
    draft: Path | None = None,
) -> Models:
    """Load every folder, the default model first, and report each as soon as it is ready.

    Args:
        folders: of the artefacts.
        default: name of the default model, the first one's by default.
        on_loaded: callback for every model.
        cache: what they remember with, if anything.
        threads: that compute; all cores that the process may use by default.
        draft: name of one of the models, or folder of another artefact, that proposes tokens to the models.

    Raises:
        ValueError: if two folders have the same name, none has the default's, or the draft can propose to none.
        ArtifactError: naming the file and the field that is wrong.
    """
    by_name = {folder.resolve().name: folder for folder in folders}
    if len(by_name) < len(folders):
        raise ValueError(f"models: folders must have different names, not {', '.join(map(str, folders))}")
    if default is not None and default not in by_name:
        raise ValueError(f"default_model must be one of {', '.join(by_name)}, not {default}")
    parse = cached(read_tokenizer)  # models of one checkpoint share its tokenizer

    def loaded(folder: Path) -> LoadedModel:
        model = load(folder, cache, threads, parse)
        on_loaded(model)
        return model

    models = {name: loaded(by_name[name]) for name in sorted(by_name, key=lambda name: name != default)}
    if draft is None:
        return Models(list(models.values()))
    return _with_draft(models, by_name, draft, loaded)


def _with_draft(
    models: Mapping[str, LoadedModel],
    folders: Mapping[str, Path],
    draft: Path,
    loaded: Callable[[Path], LoadedModel],
) -> Models:
    """Return models with a draft, which is one of them or else `loaded`; raises ValueError if it is of no use."""
    served = [name for name, folder in folders.items() if str(draft) == name or draft.resolve() == folder.resolve()]
    try:
        if not served and draft.resolve().name in models:
            raise ValueError(f"{draft} must have another name than the models served")
        found = Models(list(models.values()), models[served[0]] if served else loaded(draft))
        if not found.drafts:
            raise ValueError(
                f"{draft} must have the tokenizer and vocabulary of another model, to propose tokens to it"
            )
    except ValueError as error:
        raise ValueError(f"draft_model (TTGPT_DRAFT_MODEL, --draft): {error}") from error
    return found


def load(
    folder: Path, cache: Remembers | None = None, threads: int | None = None, parse: Parse = read_tokenizer
) -> LoadedModel:
    """Load one artefact and make it reproduce its golden values.

    Raises:
        ArtifactError: naming the file and the field that is wrong.
    """
    times = [time.monotonic()]
    try:
        artifact, decoder = read(folder, threads, as_stored if cache is None else cache.make, parse)
        times.append(time.monotonic())
        if cache is not None:
            cache.attach(artifact.name, artifact.manifest.digest, decoder)
        words = vocabulary(artifact.tokenizer, decoder.config.vocab_size)
        times.append(time.monotonic())
        check_golden(decoder, artifact.manifest.golden)
        times.append(time.monotonic())
    except ArtifactError as error:
        raise _with_folder(error, folder) from error
    return LoadedModel(
        name=artifact.name,
        decoder=decoder,
        tokenizer=artifact.tokenizer,
        vocabulary=words,
        manifest=artifact.manifest,
        artifact_bytes=artifact.size_bytes,
        modified_seconds=artifact.modified_seconds,
        load_seconds={phase: times[i + 1] - times[i] for i, phase in enumerate(("read", "prepare", "warm_up"))},
    )


def check_golden(decoder: Model, golden: Golden) -> None:
    """Run the golden prompt.

    Raises:
        ArtifactError: if a score is further off than the manifest tolerates.
    """
    logits = decoder.logits(hidden_states(decoder, np.array(golden.prompt_ids, np.int64))[-1])  # [V]
    error = np.abs(logits[golden.top_ids].astype(np.float64) - golden.top_logits).max()
    if not error <= golden.tolerance:
        problem = (
            f"is missed by {error:.3g}, more than the tolerance {golden.tolerance:g}: this CPU computes differently"
        )
        raise ArtifactError(MANIFEST, "golden.top_logits", problem)


def _with_folder(error: ArtifactError, folder: Path) -> ArtifactError:
    if error.file.startswith(str(folder)):
        return error
    where = f"{error.file}: {error.field}: " if error.field else f"{error.file}: "
    return ArtifactError(str(folder / error.file), error.field, str(error).removeprefix(where))
