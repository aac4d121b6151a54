"""The papers' layers against dense ones: equal tokens, order, tokenizer and recipe, two seeds, on books.

`python -m compressor.pretraining` runs it. Runs resume from their checkpoints; results are committed in results/, and
`ttgpt compare` draws them.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from compressor.figures import figure
from compressor.pretraining.config import FOLDER, Config, parse_config
from compressor.pretraining.model import initialised, linears, parameter_count, quantized
from compressor.pretraining.text import Corpus
from compressor.pretraining.training import CHECKPOINT, Training
from compressor.progress import Echo
from compressor.recipes import checkpoint
from compressor.runtime import artifact
from compressor.runtime.evaluate import Text, evaluate
from compressor.runtime.gpt2 import GPT2

RESULTS = FOLDER / "results"
JUDGED_CONTEXTS = 160  # of the validation text, for the final perplexity
_RAW = json.loads((FOLDER / "experiment.json").read_text())
SEEDS: list[int] = _RAW["seeds"]
VARIANTS: dict[str, Any] = _RAW["variants"]


def config_of(variant: str, seed: int = 0) -> Config:
    """Return the config of one run; raises ValueError."""
    return parse_config(_RAW["config"] | VARIANTS[variant] | {"seed": seed}, variant)


def runs() -> list[tuple[str, int]]:
    """Return every run: all variants with the first seed, then with the next."""
    return [(variant, seed) for seed in SEEDS for variant in VARIANTS]


def train(corpus: Corpus, folder: Path, wanted: Iterable[tuple[str, int]], echo: Echo = print) -> None:
    """Train the runs that are not finished, each in its folder below `folder`."""
    for variant, seed in wanted:
        config = config_of(variant, seed)
        place = run_folder(folder, variant, seed)
        if checkpoint.metadata(place / CHECKPOINT).get("step") == config.steps:
            continue
        place.mkdir(parents=True, exist_ok=True)
        training = Training(config, corpus, place, echo)
        for _ in training.run():
            if training.step % config.validate_every == 0:
                echo(f"{variant}, seed {seed}: {training.tokens:,} tokens, validation {training.curve[-1].loss:.3f}")


def judge(folder: Path, text: Text, wanted: Iterable[tuple[str, int]], echo: Echo = print) -> None:
    """Measure finished runs that have no result yet, as they would be stored, and write what was found."""
    RESULTS.mkdir(exist_ok=True)
    for variant, seed in wanted:
        found = checkpoint.read(run_folder(folder, variant, seed) / CHECKPOINT)
        result = result_of(variant)
        config = config_of(variant, seed)
        if found is None or found[1]["step"] != config.steps or str(seed) in result["runs"]:
            continue
        tensors, about = found
        stored = quantized(_restored(config, tensors), config.codec)
        part = Text(text.name, text.sha256, text.num_bytes, text.ids[: JUDGED_CONTEXTS * config.model.n_positions + 1])
        quality = evaluate(stored.prepared(), None, part)
        result["runs"][str(seed)] = {
            "perplexity": round(quality.perplexity, 3),
            "text": {"name": text.name, "sha256": text.sha256, "tokens": quality.tokens, "context": quality.context},
            "curve": [point[:2] for point in about["curve"]],
        }
        write_result(variant, result | sizes(config, stored))
        echo(f"{variant}, seed {seed}: perplexity {figure(quality.perplexity, 2)}")


def result_of(variant: str) -> dict[str, Any]:
    """Return what is known of a variant under its present config; "runs" by seed may be empty."""
    path = RESULTS / f"{variant}.json"
    config = config_of(variant).model_dump(mode="json")
    found = json.loads(path.read_text()) if path.is_file() else {}
    return found if found.get("config") == config else {"config": config, "runs": {}}


def write_result(variant: str, result: dict[str, Any]) -> None:
    """Write the result of a variant."""
    (RESULTS / f"{variant}.json").write_text(json.dumps(result, indent=2, sort_keys=True) + "\n")


def sizes(config: Config, stored: GPT2) -> dict[str, Any]:
    """Return how many parameters are trained, in all and in the linears of each part, and the bytes stored."""
    model = initialised(config)
    parts = {"attention": 0, "mlp": 0}
    for name, layer in linears(model).items():
        parts["attention" if ".attn." in name else "mlp"] += parameter_count(layer)
    disk = sum(size.disk for size in artifact.measure_bytes(stored).values())
    return {"parameters": {"all": parameter_count(model), **parts}, "bytes": disk}


def run_folder(folder: Path, variant: str, seed: int) -> Path:
    """Return the folder of one run's checkpoints."""
    return folder / f"{variant}-s{seed}"


def _restored(config: Config, tensors: dict[str, Tensor]) -> GPT2:
    model = initialised(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensors[f"now.{name}"])
    return model
