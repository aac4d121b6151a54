"""Experiments on compression: the embedded model, made small in one way."""

import hashlib
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from compressor.artifact.folder import measure_bytes
from compressor.evaluation.questions import accuracy
from compressor.experiments.corpus import read_packed_text
from compressor.experiments.experiment import Experiment, definitions
from compressor.experiments.workbench import VALID, Workbench
from compressor.gpt2 import GPT2
from compressor.methods.base import Target, is_target
from compressor.recipes import heal
from compressor.recipes.build import measure
from compressor.recipes.healing import Healing
from compressor.recipes.plans import Budget, CompressedModel, Plan, Recipe
from compressor.runtime import reference
from compressor.runtime.evaluate import GOLDEN_PROMPT, read_text
from compressor.runtime.generate import generate
from compressor.runtime.model import Model
from compressor.runtime.reference import VALIDATION_TEXT
from compressor.stored import compression_of

SAMPLE_TOKENS = 40


@dataclass(frozen=True, kw_only=True)
class Compression(Experiment):
    """One way to make the embedded model small.

    With `books` it is calibrated and healed on books, of which valid.txt then judges it, too; by default on text that
    the dense model writes.

    Attributes:
        plan: how the embedded model is compressed.
        heal_tokens: that it is healed on.
        untied: whether the head keeps the dense table, so that only reading uses the compressed one.
    """

    kind = "compression"
    plan: Plan
    heal_tokens: int = 0
    untied: bool = False

    @property
    def target(self) -> Target:
        """Which matrices it compresses, and healing may change."""
        return self.plan.matrices

    def inputs(self) -> dict[str, Any]:
        """Return all that the result depends on; a result with other inputs is out of date."""
        found: dict[str, Any] = {
            "method": self.plan.name,
            "config": self.plan.settings(),
            "model_sha256": reference.sha256(),
            "text_sha256": hashlib.sha256(VALIDATION_TEXT.read_bytes()).hexdigest(),
        }
        if self.books or self.plan.is_measured or self.heal_tokens or self.untied:
            found |= {"books": self.books, "heal_tokens": self.heal_tokens, "untied": self.untied}
        return found

    def is_whole(self, result: dict[str, Any]) -> bool:
        """Return whether it was judged on every text that it should be."""
        return not self.books or "valid" in result

    def run(self, bench: Workbench) -> dict[str, Any]:
        """Return the result; its healing then leaves nothing to resume."""
        if bench.anew:
            shutil.rmtree(self._healing_folder, ignore_errors=True)
        made = self._healed(self._untied(self.compressed(bench), bench), bench)
        running = made.model.decoder()
        sizes = measure_bytes(running.config, compression_of(made.model), running.num_bytes, tied=self.untied)
        quality = measure(running, bench.checkpoint, read_text(VALIDATION_TEXT, bench.tokenizer), bench.progress)
        tasks = accuracy(running, VALIDATION_TEXT.read_text(), bench.tokenizer, bench.progress)
        result = {
            "inputs": self.inputs(),
            "bytes": {component: size.model_dump() for component, size in sizes.items()},
            "quality": quality.model_dump(),
            "tasks": asdict(tasks),
            "sample": sample(running, bench.tokenizer),
        }
        result |= {key: made.settings[key] for key in ("heal", "plan") if key in made.settings}
        if self.books:
            text = read_packed_text(bench.folder / VALID, bench.tokenizer)
            judged = measure(running, bench.checkpoint, text, bench.progress)
            result |= {"valid": judged.model_dump(), "target_bytes": _target_bytes(made.model, self.target)}
        shutil.rmtree(self._healing_folder, ignore_errors=True)
        return result

    def compressed(self, bench: Workbench) -> CompressedModel:
        """Return what the model is compressed to, before it is healed."""
        return self.plan.make(bench.context(books=self.books or self.plan.is_measured))

    def _untied(self, made: CompressedModel, bench: Workbench) -> CompressedModel:
        if not self.untied:
            return made
        head = bench.checkpoint.model.matrices()["wte"]
        return replace(made, model=made.model.with_matrices({"lm_head": head}))

    def _healed(self, compressed: CompressedModel, bench: Workbench) -> CompressedModel:
        if not self.heal_tokens:
            return compressed
        healing = Healing(tokens=self.heal_tokens, precision="fp32", folder=self._healing_folder)  # on every CPU alike
        if not self.books:
            healing = replace(healing, text=bench.sampled_to_heal)
        else:
            held_back = bench.corpus.held_back(heal.SELECTION_ROWS, healing.config_for(bench.dense).context)
            healing = replace(healing, text=bench.corpus.training, held_back=held_back)
        return healing.apply(replace(compressed, target=self.target), bench.context(books=self.books))

    @property
    def _healing_folder(self) -> Path:
        return Path("build") / "healing" / self.name


def compressions() -> list[Compression]:
    """Return all experiments on compression, by name."""
    return [_compression(name, raw) for name, raw in definitions(Compression.kind).items()]


def prepare(chosen: Sequence[Compression], bench: Workbench) -> None:
    """Make what several experiments share, so that it is not made in every process that runs some."""
    if any(experiment.plan.is_measured for experiment in chosen):
        _ = bench.on_books.search("all").estimates
    if any(experiment.books for experiment in chosen):
        _ = bench.corpus
    if any(experiment.plan.is_calibrated and not experiment.books for experiment in chosen):
        _ = bench.on_samples.calibration
    if any(experiment.heal_tokens and not experiment.books for experiment in chosen):
        _ = bench.sampled_to_heal


def _compression(name: str, raw: dict[str, Any]) -> Compression:
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
    return Compression(name=name, plan=plan, **kept)


def _target_bytes(model: GPT2, target: Target) -> dict[str, int]:
    """Return what the matrices of a target occupy, and would in fp32."""
    forms = [form for name, form in model.matrices().items() if is_target(name, target)]
    return {
        "disk": sum(form.num_bytes for form in forms),
        "dense_fp32": sum(4 * form.out_features * form.in_features for form in forms),
    }


def sample(model: Model, tokenizer: Tokenizer) -> str:
    """Return what a model continues the prompt with, greedily."""
    prompt = tokenizer.encode(GOLDEN_PROMPT, add_special_tokens=False).ids
    ids = generate(model, np.array([prompt]), SAMPLE_TOKENS, temperature=0)[0]
    return tokenizer.decode(ids[len(prompt) :].tolist())
