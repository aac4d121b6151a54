"""How fast the frontier's models decode, and what they occupy meanwhile.

Speed depends on formats and codecs, which healing keeps, so that nothing is healed here.
"""

import os
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np

from compressor.experiments.tables import frontier_experiments
from compressor.experiments.workbench import Workbench
from compressor.process.processor import processor
from compressor.runtime.generate import generate
from compressor.runtime.model import Model

ROUNDS = 9
DECODED = 64  # tokens after a prompt of one


def measured(books: Path) -> dict[str, Any]:
    """Return bytes and speed of every model, medians over rounds in turns; the first round is not counted."""
    bench = Workbench(books)
    models = {experiment.name: experiment.compressed(bench).model.decoder() for experiment in frontier_experiments()}
    load = round(os.getloadavg()[0], 1)
    turns = [{name: decoding(model) for name, model in models.items()} for _ in range(ROUNDS + 1)]
    speeds = {name: round(statistics.median(turn[name] for turn in turns[1:])) for name in models}
    found = {
        "processor": processor(),
        "threads": next(iter(models.values())).threads,
        "load_average": load,
        "rounds": ROUNDS,
    }
    resident = {name: sum(model.num_bytes.values()) for name, model in models.items()}
    return found | {"resident_bytes": resident, "tokens_per_second": speeds}


def decoding(model: Model, tokens: int = DECODED) -> float:
    """Return tokens per second of a model that continues one text by so many."""
    started = time.perf_counter()
    generate(model, np.array([[1]]), tokens, temperature=0.0)
    return tokens / (time.perf_counter() - started)
