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

from compressor.experiments.decoding import decoding
from compressor.experiments.pretraining import pretrainings
from compressor.pretraining.config import SHIPPED, Config, read_config
from compressor.pretraining.model import quantized
from compressor.pretraining.text import Corpus, batch_of_step
from compressor.pretraining.training import Training
from compressor.process.memory import keep_freed_memory
from compressor.runtime.evaluate import Text

REFERENCE = "gpt2-mini"  # the shipped recipe, beside the experiment's variants
BASE = "dense"
EXPERIMENTS = {experiment.name: experiment for experiment in pretrainings()}
GROUP = 3  # variants whose processes are there at the same time, beside the base's
ROUNDS = 4


def measured(threads: int, rounds: int = ROUNDS) -> dict[str, Any]:
    """Return the cost of every variant, medians over rounds in turns; the first round is not counted.

    Groups of variants take turns with the base, which so is measured once per group.
    """
    others = [REFERENCE, *(name for name in EXPERIMENTS if name != BASE)]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (BASE, *others)}
    for start in range(0, len(others), GROUP):
        with ExitStack() as stack:
            names = [BASE, *others[start : start + GROUP]]
            workers = {name: stack.enter_context(_worker(name, threads)) for name in names}
            turns = [{name: _turn(worker) for name, worker in workers.items()} for _ in range(rounds + 1)]
        for turn in turns[1:]:
            for name, values in turn.items():
                found[name].append(values)
    costs = {name: _summary(_config(name), values) for name, values in found.items()}
    return {"threads": threads, "rounds": rounds, "variants": costs}


def work(variant: str, threads: int) -> None:
    """Answer every line on stdin with one turn's measurements, as a line of JSON."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    config = _config(variant)
    ids = torch.randint(
        config.model.vocab_size, (64 * config.batch_tokens,), generator=torch.Generator().manual_seed(0)
    )
    training = Training(config, Corpus(None, ids, Text("", "", 1, ids[:2].numpy()), ""), Path())  # type: ignore[arg-type]
    stored = quantized(training.model, config.codec).decoder(threads)
    for _ in sys.stdin:
        turn = {str(phase.context): _step_seconds(training, k) for k, phase in enumerate(config.phases)}
        turn["peak_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3
        turn["decode"] = decoding(stored)
        print(json.dumps(turn), flush=True)


def _config(variant: str) -> Config:
    return read_config(SHIPPED[REFERENCE]) if variant == REFERENCE else EXPERIMENTS[variant].config()


def _turn(worker: "subprocess.Popen[str]") -> dict[str, float]:
    to, back = cast("IO[str]", worker.stdin), cast("IO[str]", worker.stdout)
    to.write("\n")
    to.flush()
    answer: dict[str, float] = json.loads(back.readline())
    return answer


def _step_seconds(training: Training, phase: int) -> float:
    """Return how long one step of a phase takes."""
    config = training.config
    first = 0 if phase == 0 else int(config.phases[phase - 1].until * config.steps) + 1
    batch = batch_of_step(config, training.corpus.training, first)
    started = time.perf_counter()
    training.train(*batch)
    return time.perf_counter() - started


def _summary(config: Config, turns: list[dict[str, float]]) -> dict[str, float]:
    seconds, begin = 0.0, 0.0
    for phase in config.phases:  # as long as each phase is
        seconds += (phase.until - begin) * statistics.median(turn[str(phase.context)] for turn in turns)
        begin = phase.until
    return {
        "train_tokens_per_second": round(config.batch_tokens / seconds),
        "decode_tokens_per_second": round(statistics.median(turn["decode"] for turn in turns)),
        "peak_mb": round(max(turn["peak_mb"] for turn in turns)),
    }


@contextmanager
def _worker(variant: str, threads: int) -> Iterator["subprocess.Popen[str]"]:
    command = [sys.executable, "-m", "compressor.experiments", "worker", variant, str(threads)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as child:  # noqa: S603
        yield child
        cast("IO[str]", child.stdin).close()
        child.wait()
