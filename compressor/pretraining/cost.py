"""What a variant costs: tokens per second and memory while training, tokens per second while decoding.

Every variant has a process of its own; they take turns, step by step, so that what else the machine does falls on all.
"""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch

from compressor import paths
from compressor.evaluate import Text
from compressor.generate import generate
from compressor.memory import keep_freed_memory
from compressor.pretraining.config import Config
from compressor.pretraining.experiment import VARIANTS, config_of
from compressor.pretraining.model import sealed
from compressor.pretraining.text import Corpus, batch_of_step
from compressor.pretraining.training import Training

STEP_TOKENS = 8192
ROUNDS = 5
DECODED = 64  # tokens after a prompt of one


def measured(threads: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return the cost of every variant, medians over rounds in turns; the first round is not counted."""
    found: dict[str, list[dict[str, float]]] = {name: [] for name in VARIANTS}
    with ExitStack() as stack:
        workers = {name: stack.enter_context(_worker(name, threads)) for name in VARIANTS}
        for _ in range(rounds + 1):
            for name, worker in workers.items():
                cast("IO[str]", worker.stdin).write("\n")
                cast("IO[str]", worker.stdin).flush()
                found[name].append(json.loads(cast("IO[str]", worker.stdout).readline()))
    costs = {name: _summary(config_of(name), values[1:]) for name, values in found.items()}
    return {"threads": threads, "step_tokens": STEP_TOKENS, "rounds": rounds, "variants": costs}


def work(variant: str, threads: int) -> None:
    """Answer every line on stdin with one turn's measurements, as a line of JSON."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    config = config_of(variant).model_copy(update={"batch_tokens": STEP_TOKENS})
    ids = torch.randint(config.model.vocab_size, (64 * STEP_TOKENS,), generator=torch.Generator().manual_seed(0))
    training = Training(config, Corpus(None, ids, Text("", "", 1, ids[:2]), ""), Path())  # type: ignore[arg-type]
    for _ in sys.stdin:
        turn = {str(phase.context): _step_seconds(training, config, k) for k, phase in enumerate(config.phases)}
        turn["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        turn["decode"] = _decode_seconds(training)
        print(json.dumps(turn), flush=True)


def _step_seconds(training: Training, config: Config, phase: int) -> float:
    """Return how long one step of a phase takes."""
    first = 0 if phase == 0 else int(config.phases[phase - 1].until * config.steps) + 1
    batch = batch_of_step(config, training.corpus.training, first)
    started = time.perf_counter()
    training.train(*batch)
    return time.perf_counter() - started


def _decode_seconds(training: Training) -> float:
    """Return how long a token takes when the model is stored and decodes one text."""
    model = paths.measured(sealed(training.model, training.config.codec)).prepared()
    started = time.perf_counter()
    generate(model, torch.tensor([[1]]), DECODED, temperature=0.0)
    return (time.perf_counter() - started) / DECODED


def _summary(config: Config, turns: list[dict[str, float]]) -> dict[str, float]:
    seconds, begin = 0.0, 0.0
    for phase in config.phases:  # as long as each phase is
        seconds += (phase.until - begin) * statistics.median(turn[str(phase.context)] for turn in turns)
        begin = phase.until
    return {
        "train_tokens_per_second": round(STEP_TOKENS / seconds),
        "decode_tokens_per_second": round(1 / statistics.median(turn["decode"] for turn in turns)),
        "peak_mb": round(max(turn["peak_mb"] for turn in turns)),
    }


@contextmanager
def _worker(variant: str, threads: int) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "compressor.pretraining", "worker", variant, str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
        yield child
        cast("IO[str]", child.stdin).close()
        child.wait()
