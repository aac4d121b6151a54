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
from compressor.methods import METHODS
from compressor.methods.base import Target, is_target
from compressor.progress import Progress, silent
from compressor.recipes import budget, heal
from compressor.recipes import build as compress
from compressor.recipes.build import HEALING_TOKENS, VALIDATION_TEXT, Healing, Made, Recipe
from compressor.recipes.calibrate import collect, sample_text
from compressor.recipes.executor import HERE, Executor
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
    plan: Recipe | budget.Config
    heal_tokens: int = 0
    books: bool = False
    untied: bool = False

    @property
    def target(self) -> Target:
        """Which matrices it compresses, and healing may change."""
        return (
            self.plan.target or METHODS[self.plan.method].target if isinstance(self.plan, Recipe) else self.plan.target
        )

    def inputs(self) -> dict[str, Any]:
        """Return all that the result depends on; a result with other inputs is out of date."""
        weights = huggingface.EMBEDDED_FOLDER / "model.safetensors"
        is_recipe = isinstance(self.plan, Recipe)
        found: dict[str, Any] = {
            "method": self.plan.method if isinstance(self.plan, Recipe) else "budget",
            "config": self.plan.settings() if isinstance(self.plan, Recipe) else asdict(self.plan),
            "model_sha256": hashlib.sha256(weights.read_bytes()).hexdigest(),
            "text_sha256": hashlib.sha256(VALIDATION_TEXT.read_bytes()).hexdigest(),
        }
        if self.books or not is_recipe or self.heal_tokens or self.untied:
            found |= {"books": self.books, "heal_tokens": self.heal_tokens, "untied": self.untied}
        return found


def experiments() -> list[Experiment]:
    """Return all experiments, by file name."""
    return [_experiment(path) for path in sorted(EXPERIMENTS.glob("*.json"))]


def _experiment(path: Path) -> Experiment:
    raw = json.loads(path.read_text())
    plan: Recipe | budget.Config
    if "ratio" in raw:
        plan = budget.Config(ratio=raw["ratio"], target=raw.get("target", "all"))
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
        executor: Executor = HERE,
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
        self.dense = self.checkpoint.model.prepared()
        self.tokenizer = read_tokenizer(self.checkpoint.tokenizer_json)

    @cached_property
    def corpus(self) -> Corpus:
        """The books."""
        return read_corpus(self._folder / TRAIN, self.tokenizer, self.dense.config.eos_token_id)

    @cached_property
    def sampled(self) -> Tensor:
        """Calibration text that the model writes."""
        return sample_text(self.dense, progress=self.progress)

    @cached_property
    def measured(self) -> dict[str, list[budget.Choice]]:
        """Every candidate of every piece, on the books."""
        ids = self.calibration(books=True)
        statistics = collect(self.dense, ids, self.progress)
        return budget.measure(self.dense, statistics, ids, executor=self.executor, progress=self.progress)

    @cached_property
    def sampled_to_heal(self) -> Tensor:
        """Text to heal on that the model writes."""
        return sample_text(self.dense, HEALING_TOKENS, seed=1, progress=self.progress)

    def prepare(self, chosen: Sequence[Experiment]) -> None:
        """Make what several experiments share, so that it is not made in every process that runs some."""
        needs = {
            "measured": any(isinstance(experiment.plan, budget.Config) for experiment in chosen),
            "corpus": any(experiment.books for experiment in chosen),
            "sampled": any(_needs_text(experiment) for experiment in chosen),
            "sampled_to_heal": any(experiment.heal_tokens and not experiment.books for experiment in chosen),
        }
        for name in (name for name, is_needed in needs.items() if is_needed):
            getattr(self, name)

    def calibration(self, *, books: bool) -> Tensor:
        """Return calibration text [rows, T]."""
        context = self.dense.config.n_positions
        return self.corpus.calibration(CALIBRATION_ROWS, context) if books else self.sampled

    def run(self, experiment: Experiment) -> dict[str, Any]:
        """Return the result of an experiment, whose healing then leaves nothing to resume."""
        if self.anew:
            shutil.rmtree(healing_folder(experiment), ignore_errors=True)
        made = self._healed(experiment, self._untied(experiment, self.made(experiment)))
        sizes = measure_bytes(made.model, made.vector_codec, tied=experiment.untied)
        quality = compress.measure(
            made.model, self.checkpoint, read_text(VALIDATION_TEXT, self.tokenizer), self.progress
        )
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

    def made(self, experiment: Experiment) -> Made:
        """Return what an experiment compresses the model to, before it is healed."""
        if isinstance(experiment.plan, Recipe):
            calibrated = METHODS[experiment.plan.method].calibrated
            calibration = self.calibration(books=experiment.books) if calibrated else None
            return compress.make(self.checkpoint, experiment.plan, self.progress, calibration=calibration)
        measured = {n: c for n, c in self.measured.items() if is_target(c[0].piece.matrix, experiment.target)}
        return compress.spent(self.checkpoint, experiment.plan, measured)

    def _untied(self, experiment: Experiment, made: Made) -> Made:
        if not experiment.untied:
            return made
        head = self.checkpoint.model.matrices()["wte"]
        return replace(made, model=made.model.with_matrices({"lm_head": head}))

    def _healed(self, experiment: Experiment, made: Made) -> Made:
        if not experiment.heal_tokens:
            return made
        context = min(heal.Config.context, self.dense.config.n_positions)
        config = heal.Config(tokens=experiment.heal_tokens, context=context, precision="fp32")  # the same on every CPU
        return compress.healed(
            replace(made, target=experiment.target),
            self.checkpoint,
            Healing(config=config, folder=healing_folder(experiment)),
            lambda _: self.corpus.training if experiment.books else self.sampled_to_heal,
            self.progress,
            held_back=self.corpus.held_back(heal.SELECTION_ROWS, config.context) if experiment.books else None,
        )


def healing_folder(experiment: Experiment) -> Path:
    """Return the folder of an experiment's healing checkpoints."""
    return Path("build") / "healing" / experiment.name


def _needs_text(experiment: Experiment) -> bool:
    plan = experiment.plan
    return isinstance(plan, Recipe) and METHODS[plan.method].calibrated and not experiment.books


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
