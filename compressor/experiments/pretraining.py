"""Experiments on pre-training: the papers' layers against dense ones, at equal tokens, order, tokenizer and recipe.

Every variant is trained on books with each of the seeds. Runs resume from their checkpoints.
"""

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from compressor.artifact import folder as artifact
from compressor.experiments.experiment import DEFINITIONS, Experiment, definitions
from compressor.experiments.workbench import Workbench
from compressor.gpt2 import GPT2
from compressor.pretraining.config import Config, parse_config
from compressor.pretraining.model import initialised, linears, parameter_count, quantized
from compressor.pretraining.text import Corpus
from compressor.pretraining.training import Training
from compressor.progress import Progress, silent
from compressor.runtime.evaluate import Text, evaluate
from compressor.stored import compression_of

JUDGED_CONTEXTS = 160  # of the validation text, for the final perplexity
BASE: dict[str, Any] = json.loads((DEFINITIONS / "pretraining.json").read_text())


@dataclass(frozen=True, kw_only=True)
class Pretraining(Experiment):
    """One architecture, trained from scratch with every seed.

    Attributes:
        differences: from the common config.
        common: the config that all share.
        seeds: of the runs.
    """

    kind = "pretraining"
    books: bool = True
    differences: dict[str, Any] = field(default_factory=dict)
    common: dict[str, Any] = field(default_factory=lambda: BASE["config"])
    seeds: tuple[int, ...] = tuple(BASE["seeds"])

    def config(self, seed: int = 0) -> Config:
        """Return the config of one run; raises ValueError."""
        return parse_config(self.common | self.differences | {"seed": seed}, self.name)

    def inputs(self) -> dict[str, Any]:
        return {"config": self.config().model_dump(mode="json")}

    def is_whole(self, result: dict[str, Any]) -> bool:
        """Return whether every seed has its run."""
        return set(map(str, self.seeds)) <= set(result["runs"])

    def run(self, bench: Workbench) -> dict[str, Any]:
        """Return the result: every seed that the committed one lacks is trained, or trained to its end."""
        known = self.result()
        result = known if known and not bench.anew else {"inputs": self.inputs(), "runs": {}}
        for seed in self.seeds:
            if str(seed) not in result["runs"]:
                folder = Path("build") / "pretraining" / f"{self.name}-s{seed}"
                if bench.anew:
                    shutil.rmtree(folder, ignore_errors=True)
                corpus = bench.pretraining_corpus(self.config())
                result["runs"][str(seed)], sizes = self.run_once(seed, corpus, folder, bench.progress)
                result |= sizes
        return result

    def run_once(
        self, seed: int, corpus: Corpus, folder: Path, progress: Progress = silent
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what came out of one run, which is resumed from its checkpoint in `folder`, and its sizes."""
        config = self.config(seed)
        folder.mkdir(parents=True, exist_ok=True)
        training = Training(config, corpus, folder)
        for _ in progress(training.run(), label=f"{self.name}, seed {seed}", total=config.steps):
            pass
        stored = quantized(training.model, config.codec)
        text = corpus.validation
        part = Text(text.name, text.sha256, text.num_bytes, text.ids[: JUDGED_CONTEXTS * config.model.n_positions + 1])
        quality = evaluate(stored.decoder(), None, part)
        found = {
            "perplexity": round(quality.perplexity, 3),
            "text": {"name": text.name, "sha256": text.sha256, "tokens": quality.tokens, "context": quality.context},
            "curve": [[point.tokens, point.loss] for point in training.curve],
        }
        return found, _sizes(config, stored)


def pretrainings() -> list[Pretraining]:
    """Return all experiments on pre-training, by name."""
    return [
        Pretraining(name=name, label=raw.pop("label"), differences=raw)
        for name, raw in definitions(Pretraining.kind).items()
    ]


def _sizes(config: Config, stored: GPT2) -> dict[str, Any]:
    """Return how many parameters are trained, in all and in the linears of each part, and the bytes stored."""
    model = initialised(config)
    parts = {"attention": 0, "mlp": 0}
    for name, layer in linears(model).items():
        parts["attention" if ".attn." in name else "mlp"] += parameter_count(layer)
    disk = sum(size.disk for size in artifact.measure_bytes(config.decoder(), compression_of(stored)).values())
    return {"parameters": {"all": parameter_count(model), **parts}, "bytes": disk}
