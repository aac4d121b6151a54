"""From a checkpoint and a recipe to a sealed artefact."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from compressor import huggingface
from compressor.errors import check_range
from compressor.huggingface import Checkpoint
from compressor.methods import METHODS, quantize
from compressor.methods.base import Statistics, Target, is_target
from compressor.progress import Echo, Progress, silent, unheard
from compressor.recipes import budget, heal, paths
from compressor.recipes.calibrate import DEFAULT_TOKENS, collect, read_ids, sample_text
from compressor.recipes.executor import HERE, Executor
from compressor.recipes.journal import Journal
from compressor.runtime import artifact
from compressor.runtime.artifact import Manifest, Provenance, Quality
from compressor.runtime.codecs import codec_named
from compressor.runtime.evaluate import Text, evaluate, golden, read_text
from compressor.runtime.finite import check_logits
from compressor.runtime.formats import Format
from compressor.runtime.gpt2 import GPT2
from compressor.runtime.tokenizer import read_tokenizer
from compressor.storage.run_folder import require_space

VALIDATION_TEXT = huggingface.EMBEDDED_FOLDER / "validation.txt"
VERIFIED_ROWS = 8  # rows of calibration text that a promised perplexity ratio is verified on
HEALING_TOKENS = 131072  # sampled from the model to heal on, where no text is given
TOLD_MINUTES = 2  # from which on a user is told at once how long a budget takes
MAX_HEALING_TOKENS = 8_000_000  # read from the user's texts, at most
HEALING_MINUTES = 0.01, 10**6


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What to do with a checkpoint.

    Attributes:
        method: a key of METHODS.
        options: the method's own, by the names of its Config.
        rest: codec of the matrices that the method leaves alone; None keeps the checkpoint's dtype.
        target: which matrices the method is used for; None means those that it is meant for.
    """

    method: str
    options: Mapping[str, Any]
    rest: str | None = None
    target: Target | None = None

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ValueError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}")
        legal = METHODS[self.method].config.__dataclass_fields__
        if unknown := self.options.keys() - legal.keys():
            known = ", ".join(legal) or "none"
            raise ValueError(f"{min(unknown)} is not an option of {self.method}, which has: {known}")
        if self.target is not None and self.target not in get_args(Target):
            raise ValueError(f"target must be one of {', '.join(get_args(Target))}, not {self.target!r}")
        if METHODS[self.method].target == "none" and self.target not in (None, "none"):
            raise ValueError(f"target must be none for {self.method}, which leaves every matrix alone")
        if self.rest is not None:
            codec_named(self.rest)
        METHODS[self.method].config(**self.options)

    def settings(self) -> dict[str, Any]:
        """Return every option, given or default."""
        config = METHODS[self.method].config(**self.options)
        target = {"target": self.target} if self.target else {}
        return asdict(config) | {"rest": self.rest or "as in the checkpoint"} | target


def compress(
    checkpoint: Checkpoint, recipe: Recipe, progress: Progress = silent, *, calibration: Tensor | None = None
) -> GPT2:
    """Return the compressed model.

    Args:
        checkpoint: the dense model.
        recipe: what to do with it.
        progress: told of every long step.
        calibration: text [rows, T] for methods that need statistics; by default the model writes it itself.

    Raises:
        ValueError: if an option does not suit a matrix.
    """
    method = METHODS[recipe.method]
    config = method.config(**recipe.options)
    target = recipe.target or method.target
    statistics = statistics_of(checkpoint, calibration, progress) if method.calibrated else {}
    compressed: dict[str, Format] = {}
    for name, form in checkpoint.model.matrices().items():
        if is_target(name, target):
            compressed[name] = method.found(name, form.dense(), config, statistics.get(name), progress)
        elif recipe.rest is not None:
            rounding = quantize.Config(codec=recipe.rest)
            compressed[name] = METHODS["quantize"].found(name, form.dense(), rounding, None, progress)
    return checkpoint.model.with_matrices(compressed)


def statistics_of(
    checkpoint: Checkpoint, calibration: Tensor | None = None, progress: Progress = silent
) -> dict[str, Statistics]:
    """Return the statistics of every matrix, from text [rows, T] or, by default, text that the model writes."""
    dense = checkpoint.dense
    return collect(dense, _text_or_sample(dense, calibration, progress), progress)


def _text_or_sample(dense: GPT2, calibration: Tensor | None, progress: Progress) -> Tensor:
    return sample_text(dense, progress=progress) if calibration is None else calibration


@dataclass(frozen=True, kw_only=True)
class Made:
    """A compressed model and how it was made.

    Attributes:
        model: as stored.
        method, settings: for the manifest.
        target: which matrices healing may change.
    """

    model: GPT2
    method: str
    settings: dict[str, Any]
    target: Target = "all"


@dataclass(frozen=True, kw_only=True)
class Healing:
    """How long to heal; nothing by default.

    Attributes:
        config: of `compressor.recipes.heal`; its `tokens` count unless `minutes` is set.
        minutes: to heal for on this machine, translated to tokens by timing a few steps.
        folder: for checkpoints.
    """

    config: heal.Config = heal.Config(tokens=0)  # noqa: RUF009  # frozen
    minutes: float | None = None
    folder: Path | None = None

    def __post_init__(self) -> None:
        if self.minutes:  # else nothing is healed
            check_range("heal_minutes", self.minutes, *HEALING_MINUTES)

    def within(self, model: GPT2) -> "Healing":
        """Return the same for a model whose context may be shorter."""
        context = min(self.config.context, model.config.n_positions)
        return replace(self, config=replace(self.config, context=context))

    @property
    def wanted(self) -> bool:
        """Whether there is anything to do."""
        return bool(self.minutes) or self.config.tokens > 0


def make(
    checkpoint: Checkpoint, recipe: Recipe, progress: Progress = silent, *, calibration: Tensor | None = None
) -> Made:
    """Return the model that a recipe makes."""
    model = compress(checkpoint, recipe, progress, calibration=calibration)
    if recipe.rest is not None and codec_named(recipe.rest).is_float:
        model = model.with_vectors(recipe.rest)
    target = recipe.target or "all"  # else a method is meant for some matrices, and healing for all
    return Made(model=model, method=recipe.method, settings=recipe.settings(), target=target)


def make_within(
    checkpoint: Checkpoint,
    config: budget.Config,
    progress: Progress = silent,
    *,
    calibration: Tensor | None = None,
    executor: Executor = HERE,
    run: Path | None = None,
    echo: Echo = unheard,
) -> Made:
    """Return the best model that a byte budget buys.

    Args:
        checkpoint: the dense model.
        config: the budget.
        progress: told of every long step.
        calibration: text [rows, T]; by default the model writes it itself.
        executor: where candidates are measured.
        run: folder in which what was measured is kept, and looked for.
        echo: told what a user should know.

    Raises:
        ValueError: if the budget is too small for any choice.
    """
    dense = checkpoint.dense
    wanted = partial(is_target, target=config.target)
    if (minutes := budget.predicted_seconds(dense, wanted) / 60) > TOLD_MINUTES:
        echo(f"measuring the candidates will take some {minutes:.0f} minutes or more")
    ids = _text_or_sample(dense, calibration, progress)
    statistics = collect(dense, ids, progress)
    journal = None if run is None else Journal(run, budget.identity(dense, ids), echo)
    measured = budget.measure(
        dense, statistics, ids, only=wanted, executor=executor, progress=progress, journal=journal
    )
    return spent(checkpoint, config, measured, ids)


def spent(
    checkpoint: Checkpoint,
    config: budget.Config,
    measured: Mapping[str, list[budget.Choice]],
    ids: Tensor | None = None,
) -> Made:
    """Return the model that a budget buys of what was measured.

    Args:
        checkpoint: the dense model.
        config: the budget.
        measured: every candidate of every piece of its target.
        ids: text [rows, T] that a promised perplexity ratio is verified on.

    Raises:
        ValueError: if the budget is too small for any choice.
    """
    dense = checkpoint.dense
    chosen, codec = budget.choose(measured, config, checkpoint.model)
    if (limit := config.max_perplexity_ratio) is not None and ids is not None:
        chosen = _verified(checkpoint, dense, measured, limit, ids)
    settings = {key: value for key, value in asdict(config).items() if value is not None}
    return Made(
        model=checkpoint.model.with_matrices(budget.assembled(chosen.values())).with_vectors(codec),
        method="budget",
        settings=settings | {"plan": budget.explain(measured, chosen)},
        target=config.target,
    )


def _verified(
    checkpoint: Checkpoint, dense: GPT2, measured: Mapping[str, list[budget.Choice]], limit: float, ids: Tensor
) -> dict[str, budget.Choice]:
    """Return the smallest choice whose perplexity ratio on calibration text keeps `limit`, not only by prediction."""
    text = Text(name="calibration", sha256="", num_bytes=1, ids=ids[-VERIFIED_ROWS:].flatten())
    for share in (1.0, 0.7, 0.5, 0.35, 0.25, 0.1, 0.0):
        chosen = budget.smallest_within(measured, share * math.log(limit))
        model = checkpoint.model.with_matrices(budget.assembled(chosen.values()))
        ratio = evaluate(model.prepared(), dense, text).perplexity_ratio
        if ratio is not None and ratio <= limit:
            return chosen
    best = math.ceil(1e4 * (ratio or 1.0)) / 1e4
    raise ValueError(f"max_perplexity_ratio must be at least {best} for this model and text, not {limit}")


def healed(
    made: Made,
    checkpoint: Checkpoint,
    healing: Healing,
    read: Callable[[int], Tensor] | None = None,
    progress: Progress = silent,
    *,
    held_back: Tensor | None = None,
    echo: Echo = unheard,
) -> Made:
    """Return `made` after healing.

    Args:
        made: what to heal.
        checkpoint: the dense model.
        healing: how long.
        read: gives about so many tokens of text [rows, T]; by default the dense model writes them.
        progress: told of every long step.
        held_back: tokens [T] that select the state; by default the last of the text.
        echo: told what a user should know.
    """
    dense = checkpoint.dense
    config = healing.within(checkpoint.model).config

    def frozen(name: str) -> bool:
        return not is_target(name, made.target)

    if healing.minutes:
        config = replace(config, minutes=healing.minutes)
        begun = heal.tokens_begun(healing.folder, made.model, dense, config, frozen) if healing.folder else None
        config = replace(config, tokens=begun or heal.tokens_in(made.model, dense, config))
    tokens = min(config.tokens, MAX_HEALING_TOKENS if read else HEALING_TOKENS) + heal.SELECTION_ROWS * config.context
    text = read(tokens) if read else sample_text(dense, tokens, seed=1, progress=progress)
    result = heal.heal(
        made.model,
        dense,
        text,
        config,
        held_back=held_back,
        frozen=frozen,
        folder=healing.folder,
        progress=progress,
        echo=echo,
    )
    report = {"tokens": result.tokens, "kl_before": result.kl_before, "kl_after": result.kl_after}
    return replace(made, model=result.model, settings=made.settings | {"heal": asdict(config) | report})


def seal(
    made: Made,
    checkpoint: Checkpoint,
    out: Path,
    *,
    text: Text,
    force: bool = False,
    build_seconds: float = 0.0,
    progress: Progress = silent,
) -> Manifest:
    """Measure a compressed model on a text and write its artefact to `out`.

    Raises:
        ArtifactError: if `out` exists and `force` is not set.
    """
    tokenizer = read_tokenizer(checkpoint.tokenizer_json)
    provenance = Provenance(
        source=checkpoint.source,
        method=made.method,
        config=made.settings,
        seed=0,
        versions={"torch": torch.__version__},
        build_seconds=build_seconds,
    )
    return artifact.write(
        out,
        made.model,
        checkpoint.tokenizer_json,
        quality=measure(made.model, checkpoint, text, progress),
        golden=golden(made.model.prepared(), tokenizer),
        provenance=provenance,
        force=force,
    )


def build(
    checkpoint: Checkpoint,
    plan: Recipe | budget.Config,
    out: Path,
    *,
    healing: Healing | None = None,
    text: Path = VALIDATION_TEXT,
    calibration_texts: Sequence[Path] = (),
    memory_limit: int | None = None,
    force: bool = False,
    executor: Executor = HERE,
    progress: Progress = silent,
    run: Path | None = None,
    echo: Echo = unheard,
) -> Manifest:
    """Compress, heal, measure and write an artefact to `out`.

    Args:
        checkpoint: the dense model.
        plan: a recipe, or a budget.
        out: the artefact's folder.
        healing: how long; not at all by default.
        text: what quality is measured on.
        calibration_texts: for statistics and healing; by default the model writes its own text.
        memory_limit: bytes that the matrices may occupy while serving, see `compressor.recipes.paths`.
        force: replace an artefact in `out`.
        executor: where a budget's measurements run.
        progress: told of every long step.
        run: folder in which what a budget has measured is kept until the artefact is there, see `run_folder`.
        echo: told what a user should know.

    Raises:
        ValueError: if an option is illegal, a text will not do, or logits are not finite; before the first long step.
        ArtifactError: if `out` exists and `force` is not set.
    """
    artifact.refuse_existing(out, force)
    check_logits(checkpoint.dense)
    started = time.perf_counter()
    tokenizer = read_tokenizer(checkpoint.tokenizer_json)
    context = checkpoint.model.config.n_positions

    def read(tokens: int) -> Tensor:
        return read_ids(calibration_texts, tokenizer, context=context, tokens=tokens)

    judged = read_text(text, tokenizer)
    calibration = read(DEFAULT_TOKENS) if calibration_texts else None
    _check(checkpoint, plan, healing or Healing(), read if calibration_texts else None)
    if run is not None:
        require_space("out", run, estimated_bytes(checkpoint, plan))
    if isinstance(plan, Recipe):
        made = make(checkpoint, plan, progress, calibration=calibration)
        uses_text = METHODS[plan.method].calibrated
    else:
        made = make_within(checkpoint, plan, progress, calibration=calibration, executor=executor, run=run, echo=echo)
        uses_text = True
    paths.check_limit(made.model, memory_limit)
    if healing is not None and healing.wanted:
        made = healed(made, checkpoint, healing, read if calibration_texts else None, progress, echo=echo)
        uses_text = True
    if uses_text:
        source = [path.name for path in calibration_texts] or "sampled from the model"
        made = replace(made, settings=made.settings | {"calibration": source})
    made = replace(made, model=paths.measured(made.model, memory_limit))
    seconds = round(time.perf_counter() - started, 1)
    manifest = seal(made, checkpoint, out, text=judged, force=force, build_seconds=seconds, progress=progress)
    if run is not None:
        Journal.clear(run)
    return manifest


def _check(
    checkpoint: Checkpoint, plan: Recipe | budget.Config, healing: Healing, read: Callable[[int], Tensor] | None
) -> None:
    """Refuse at once what would fail after hours; raises ValueError."""
    model = checkpoint.model
    if isinstance(plan, Recipe):
        method = METHODS[plan.method]
        options = method.config(**plan.options)
        for name, form in model.matrices().items():
            if is_target(name, plan.target or method.target):
                options.check(form.shape, model.config.n_head)
    if not healing.wanted:
        return
    if isinstance(plan, Recipe) and METHODS[plan.method].target == "none" and plan.rest is None:
        raise ValueError(f"healing does not go with {plan.method}, which changes nothing; leave one of them out")
    config = healing.within(model).config
    if read is not None:
        heal.check_text(read(config.least_tokens), config)
    if healing.folder is not None:
        trained = sum(math.prod(vector.shape) for vector in model.vectors().values())
        trained += sum(form.out_features * form.in_features for form in model.matrices().values())
        require_space("heal_folder", healing.folder, heal.CHECKPOINT_BYTES * trained)


def estimated_bytes(checkpoint: Checkpoint, plan: Recipe | budget.Config) -> int:
    """Return about how many bytes a run writes: the artefact, and what a budget keeps until that is there."""
    model = checkpoint.model
    vectors = 4 * sum(math.prod(vector.shape) for vector in model.vectors().values())
    if not isinstance(plan, Recipe):
        targets = {name: form for name, form in model.matrices().items() if is_target(name, plan.target)}
        dense = sum(4 * form.out_features * form.in_features for form in targets.values())
        others = sum(form.num_bytes for name, form in model.matrices().items() if name not in targets)
        # No candidate takes more than int8, and all of them together take about as much as fp32.
        bought = min(plan.size_bytes or dense, dense // 4, int(dense / (plan.ratio or 1)))
        return dense + bought + others + vectors
    method = METHODS[plan.method]
    codec = getattr(method.config(**plan.options), "codec", None)
    total = vectors
    for name, form in model.matrices().items():
        wanted = codec if is_target(name, plan.target or method.target) else plan.rest
        total += form.num_bytes if wanted is None else _stored_bytes(wanted, form.shape)
    return total


def _stored_bytes(codec: str, shape: tuple[int, int]) -> int:
    return sum(math.prod(part.shape) * part.dtype.itemsize for part in codec_named(codec).layout(shape).values())


def measure(model: GPT2, checkpoint: Checkpoint, text: Text, progress: Progress = silent) -> Quality:
    """Return the quality of `model` against the checkpoint on a text."""
    return evaluate(model.prepared(), checkpoint.dense, text, progress)
