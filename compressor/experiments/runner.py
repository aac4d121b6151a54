"""An experiment: a small file of differences from a dense, unquantised run, and what came out of it.

Its result is a JSON file of the same name in results/, which is rerun only when it is missing or out of date.
"""

import hashlib
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from compressor import huggingface
from compressor.evaluation.questions import accuracy
from compressor.experiments.corpus import Corpus, read_corpus, read_packed_text
from compressor.huggingface import Checkpoint
from compressor.methods.base import Target, is_target
from compressor.progress import Progress, silent
from compressor.recipes import heal
from compressor.recipes.build import VALIDATION_TEXT, measure
from compressor.recipes.context import HEALING_TOKENS, Context
from compressor.recipes.executor import IN_PROCESS, Executor
from compressor.recipes.healing import Healing
from compressor.recipes.plans import Budget, CompressedModel, Plan, Recipe
from compressor.runtime.artifact import measure_bytes
from compressor.runtime.evaluate import GOLDEN_PROMPT, evaluate, read_text
from compressor.runtime.generate import generate
from compressor.runtime.gpt2 import GPT2
from compressor.runtime.tokenizer import read_tokenizer

EXPERIMENTS = Path(__file__).parent
RESULTS = EXPERIMENTS / "results"
CALIBRATION_ROWS = 128  # of the books
SAMPLE_TOKENS = 40
TRAIN, VALID = "train.txt.xz", "valid.txt.xz"


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One row of a table.

    Attributes:
        name: of its file.
        label: what the table calls it.
        plan: how the embedded model is compressed.
        heal_tokens: that it is healed on.
        books: whether it is calibrated and healed on books, of which valid.txt then judges it, too; by default on
            text that the dense model writes.
        untied: whether the head keeps the dense table, so that only reading uses the compressed one.
    """

    name: str
    label: str
    plan: Plan
    heal_tokens: int = 0
    books: bool = False
    untied: bool = False

    @property
    def target(self) -> Target:
        """Which matrices it compresses, and healing may change."""
        return self.plan.matrices

    def inputs(self) -> dict[str, Any]:
        """Return all that the result depends on; a result with other inputs is out of date."""
        weights = huggingface.EMBEDDED_FOLDER / "model.safetensors"
        found: dict[str, Any] = {
            "method": self.plan.name,
            "config": self.plan.settings(),
            "model_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "text_sha256": hashlib.sha256(VALIDATION_TEXT.read_bytes()).hexdigest(),
        }
        if self.books or self.plan.is_measured or self.heal_tokens or self.untied:
            found |= {"books": self.books, "heal_tokens": self.heal_tokens, "untied": self.untied}
        return found


def experiments() -> list[Experiment]:
    """Return all experiments, by file name."""
    return [_experiment(path) for path in sorted(EXPERIMENTS.glob("*.json"))]


def _experiment(path: Path) -> Experiment:
    raw = json.loads(path.read_text())
    plan: Plan
    if "ratio" in raw:
        plan = Budget(ratio=raw["ratio"], target=raw.get("target", "all"))
    else:
        plan = Recipe(
            method=raw.get("method", "dense"),
            options=raw.get("options", {}),
            rest=raw.get("rest"),
            target=raw.get("target"),
        )
    kept = {key: raw[key] for key in ("label", "heal_tokens", "books", "untied") if key in raw}
    return Experiment(name=path.stem, plan=plan, **kept)


def result_of(experiment: Experiment) -> dict[str, Any] | None:
    """Return the committed result, or None where it is missing or out of date."""
    path = RESULTS / f"{experiment.name}.json"
    if not path.is_file():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    return result if result["inputs"] == experiment.inputs() else None


class Workbench:
    """What experiments share; everything is made when it is first asked for.

    Attributes:
        books: folder with train.txt.xz and valid.txt.xz, or None.
        executor: where candidates are measured.
        progress: progress callback.
        checkpoint: what is compressed; by default the embedded model.
        anew: whether healing that was interrupted begins anew.
    """

    def __init__(
        self,
        books: Path | None = None,
        executor: Executor = IN_PROCESS,
        progress: Progress = silent,
        *,
        checkpoint: Checkpoint | None = None,
        anew: bool = False,
    ) -> None:
        self.books = books
        self.executor = executor
        self.progress = progress
        self.anew = anew
        self.checkpoint = checkpoint or huggingface.load(huggingface.EMBEDDED)
        self.dense = self.checkpoint.dense
        self.tokenizer = read_tokenizer(self.checkpoint.tokenizer_json)

    @cached_property
    def corpus(self) -> Corpus:
        """The books."""
        return read_corpus(self._folder / TRAIN, self.tokenizer, self.dense.config.eos_token_id)

    @cached_property
    def on_books(self) -> Context:
        """What experiments share that are calibrated on books."""
        given = self.corpus.calibration(CALIBRATION_ROWS, self.dense.config.n_positions)
        return Context(checkpoint=self.checkpoint, given=given, executor=self.executor, progress=self.progress)

    @cached_property
    def on_samples(self) -> Context:
        """What experiments share that are calibrated on text that the model writes."""
        return Context(checkpoint=self.checkpoint, executor=self.executor, progress=self.progress)

    @cached_property
    def sampled_to_heal(self) -> Tensor:
        """Text to heal on that the model writes."""
        return self.on_samples.healing_text(HEALING_TOKENS, 0)

    def prepare(self, chosen: Sequence[Experiment]) -> None:
        """Make what several experiments share, so that it is not made in every process that runs some."""
        plans = [experiment.plan for experiment in chosen]
        if any(plan.is_measured for plan in plans):
            self.on_books.candidates("all")
        if any(experiment.books for experiment in chosen):
            _ = self.corpus
        if any(plan.is_calibrated and not experiment.books for plan, experiment in zip(plans, chosen, strict=True)):
            _ = self.on_samples.calibration
        if any(experiment.heal_tokens and not experiment.books for experiment in chosen):
            _ = self.sampled_to_heal

    def run(self, experiment: Experiment) -> dict[str, Any]:
        """Return the result of an experiment, whose healing then leaves nothing to resume."""
        if self.anew:
            shutil.rmtree(healing_folder(experiment), ignore_errors=True)
        made = self._healed(experiment, self._untied(experiment, self.compressed(experiment)))
        sizes = measure_bytes(made.model, tied=experiment.untied)
        quality = measure(made.model, self.checkpoint, read_text(VALIDATION_TEXT, self.tokenizer), self.progress)
        tasks = accuracy(made.model.prepared(), VALIDATION_TEXT.read_text(), self.tokenizer, self.progress)
        result = {
            "inputs": experiment.inputs(),
            "bytes": {component: size.model_dump() for component, size in sizes.items()},
            "quality": quality.model_dump(),
            "tasks": asdict(tasks),
            "sample": sample(made.model.prepared(), self.tokenizer),
        }
        result |= {key: made.settings[key] for key in ("heal", "plan") if key in made.settings}
        if experiment.books:
            text = read_packed_text(self._folder / VALID, self.tokenizer)
            judged = evaluate(made.model.prepared(), self.dense, text, self.progress)
            result |= {"valid": judged.model_dump(), "target_bytes": _target_bytes(made.model, experiment.target)}
        shutil.rmtree(healing_folder(experiment), ignore_errors=True)
        return result

    @property
    def _folder(self) -> Path:
        if self.books is None:
            raise ValueError(f"books: give the folder with {TRAIN} and {VALID} (--books)")
        return self.books

    def compressed(self, experiment: Experiment) -> CompressedModel:
        """Return what an experiment compresses the model to, before it is healed."""
        on_books = experiment.books or experiment.plan.is_measured
        return experiment.plan.make(self.on_books if on_books else self.on_samples)

    def _untied(self, experiment: Experiment, made: CompressedModel) -> CompressedModel:
        if not experiment.untied:
            return made
        head = self.checkpoint.model.matrices()["wte"]
        return replace(made, model=made.model.with_matrices({"lm_head": head}))

    def _healed(self, experiment: Experiment, compressed: CompressedModel) -> CompressedModel:
        if not experiment.heal_tokens:
            return compressed
        config = heal.Config(tokens=experiment.heal_tokens, precision="fp32")  # the same on every CPU
        context = self.on_books if experiment.books else self.on_samples
        healing = Healing(
            config=config, folder=healing_folder(experiment), text=None if experiment.books else self.sampled_to_heal
        )
        if experiment.books:
            held_back = self.corpus.held_back(heal.SELECTION_ROWS, healing.config_for(self.dense).context)
            healing = replace(healing, text=self.corpus.training, held_back=held_back)
        return healing.apply(replace(compressed, target=experiment.target), context)


def healing_folder(experiment: Experiment) -> Path:
    """Return the folder of an experiment's healing checkpoints."""
    return Path("build") / "healing" / experiment.name


def _target_bytes(model: GPT2, target: Target) -> dict[str, int]:
    """Return what the matrices of a target occupy, and would in fp32."""
    forms = [form for name, form in model.matrices().items() if is_target(name, target)]
    return {
        "disk": sum(form.num_bytes for form in forms),
        "dense_fp32": sum(4 * form.out_features * form.in_features for form in forms),
    }


def sample(model: GPT2, tokenizer: Tokenizer) -> str:
    """Return what a prepared model continues the prompt with, greedily."""
    prompt = tokenizer.encode(GOLDEN_PROMPT, add_special_tokens=False).ids
    ids = generate(model, torch.tensor([prompt]), SAMPLE_TOKENS, temperature=0)[0]
    return tokenizer.decode(ids[len(prompt) :].tolist())
