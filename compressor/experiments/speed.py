"""How fast the frontier's models decode.

Speed depends on formats and codecs, which healing keeps, so that nothing is healed here. The artefacts stay in
build/frontier, so that measuring again takes seconds.
"""

import os
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from compressor.experiments.compression import Compression
from compressor.experiments.tables import frontier_experiments
from compressor.experiments.workbench import Workbench
from compressor.process.processor import processor
from compressor.recipes import paths
from compressor.recipes.build import VALIDATION_TEXT, measure, write_artifact
from compressor.runtime import artifact
from compressor.runtime.evaluate import read_text
from compressor.runtime.generate import generate
from compressor.runtime.gpt2 import GPT2

FOLDER = Path("build") / "frontier"
ROUNDS = 9
DECODED = 64  # tokens after a prompt of one


def measured(books: Path) -> dict[str, Any]:
    """Return the speed of every model, medians over rounds in turns; the first round is not counted."""
    bench = Workbench(books)
    models = {experiment.name: _made(bench, experiment) for experiment in frontier_experiments()}
    load = round(os.getloadavg()[0], 1)
    turns = [{name: decoding(model) for name, model in models.items()} for _ in range(ROUNDS + 1)]
    speeds = {name: round(statistics.median(turn[name] for turn in turns[1:])) for name in models}
    found = {"processor": processor(), "threads": torch.get_num_threads(), "load_average": load, "rounds": ROUNDS}
    return found | {"tokens_per_second": speeds}


def _made(bench: Workbench, experiment: Compression) -> GPT2:
    """Return a model as it is served; its artefact is made unless it is there."""
    out = FOLDER / experiment.name
    if not out.exists():
        compressed = experiment.compressed(bench)
        compressed = replace(compressed, model=paths.measured(compressed.model))
        quality = measure(compressed.model, bench.checkpoint, read_text(VALIDATION_TEXT, bench.tokenizer))
        write_artifact(compressed, bench.checkpoint, out, quality=quality, build_seconds=0.0)
    return artifact.read(out).model.prepared()


def decoding(model: GPT2, tokens: int = DECODED) -> float:
    """Return tokens per second of a prepared model that continues one text by so many."""
    started = time.perf_counter()
    generate(model, torch.tensor([[1]]), tokens, temperature=0.0)
    return tokens / (time.perf_counter() - started)
