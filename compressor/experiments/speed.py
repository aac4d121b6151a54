"""How fast the frontier's models decode: `python -m compressor.experiments --books DIR`, on a quiet machine.

Speed depends on formats and codecs, which healing keeps, so that nothing is healed here. The artefacts stay in
build/frontier, so that measuring again takes seconds.
"""

import argparse
import json
import os
import statistics
import time
from dataclasses import replace
from pathlib import Path

import torch

from compressor.experiments.runner import Experiment, Workbench
from compressor.experiments.tables import DECODING, frontier_experiments, refresh_pages
from compressor.process.memory import keep_freed_memory
from compressor.process.processor import processor
from compressor.recipes import paths
from compressor.recipes.build import VALIDATION_TEXT, seal
from compressor.runtime import artifact
from compressor.runtime.evaluate import read_text
from compressor.runtime.generate import generate
from compressor.runtime.gpt2 import GPT2
from compressor.storage import durable

FOLDER = Path("build") / "frontier"
ROUNDS = 9
DECODED = 64  # tokens after a prompt of one


def main() -> None:
    """Measure every model in turn, round after round, and write the medians; the first round is not counted."""
    parser = argparse.ArgumentParser("python -m compressor.experiments", description=__doc__)
    parser.add_argument("--books", type=Path, required=True, help="folder with train.txt.xz and valid.txt.xz")
    bench = Workbench(parser.parse_args().books)
    keep_freed_memory()
    models = {experiment.name: _made(bench, experiment) for experiment in frontier_experiments()}
    load = round(os.getloadavg()[0], 1)
    turns = [{name: decoding(model) for name, model in models.items()} for _ in range(ROUNDS + 1)]
    speeds = {name: round(statistics.median(turn[name] for turn in turns[1:])) for name in models}
    found = {"processor": processor(), "threads": torch.get_num_threads(), "load_average": load, "rounds": ROUNDS}
    found |= {"tokens_per_second": speeds}
    durable.write(DECODING, (json.dumps(found, indent=2) + "\n").encode())
    refresh_pages()


def _made(bench: Workbench, experiment: Experiment) -> GPT2:
    """Return a model as it is served; its artefact is made unless it is there."""
    out = FOLDER / experiment.name
    if not out.exists():
        made = bench.made(experiment)
        text = read_text(VALIDATION_TEXT, bench.tokenizer)
        seal(replace(made, model=paths.measured(made.model)), bench.checkpoint, out, text=text)
    return artifact.read(out).model.prepared()


def decoding(model: GPT2, tokens: int = DECODED) -> float:
    """Return tokens per second of a prepared model that continues one text by so many."""
    started = time.perf_counter()
    generate(model, torch.tensor([[1]]), tokens, temperature=0.0)
    return tokens / (time.perf_counter() - started)
