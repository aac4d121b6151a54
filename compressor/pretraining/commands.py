"""Runs the experiment on pre-training; its results are committed.

python -m compressor.pretraining run --books DIR --runs DIR    trains and judges what is missing, in turn
python -m compressor.pretraining judge --books DIR --runs DIR  only judges the runs that are finished
python -m compressor.pretraining cost                          speed and memory; wants a quiet machine
"""

import argparse
import json
from pathlib import Path

import torch

from compressor.pretraining import cost, experiment, ttm_cost
from compressor.pretraining.text import read_corpus, read_validation
from compressor.process.memory import keep_freed_memory


def main() -> None:
    """Parse, call."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m compressor.pretraining", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    for name in ("run", "judge"):
        command = commands.add_parser(name)
        command.add_argument("--books", type=Path, required=True, help="folder with train.txt.xz and valid.txt.xz")
        command.add_argument("--runs", type=Path, required=True, help="folder of checkpoints")
    commands.add_parser("cost").add_argument("--threads", type=int, default=torch.get_num_threads())
    worker = commands.add_parser("worker")
    worker.add_argument("variant", choices=[cost.REFERENCE, *experiment.VARIANTS])
    worker.add_argument("threads", type=int)
    arguments = parser.parse_args()
    keep_freed_memory()
    if arguments.command == "worker":
        cost.work(arguments.variant, arguments.threads)
    elif arguments.command == "cost":
        _write("cost", cost.measured(arguments.threads))
        _write("ttm-layer", {"threads": arguments.threads, "rows": ttm_cost.measured()})
    else:
        _experiment(arguments.books, arguments.runs, train=arguments.command == "run")


def _experiment(books: Path, folder: Path, *, train: bool) -> None:
    config = experiment.config_of("dense")
    if train:
        corpus = read_corpus(config, [books / "train.txt.xz"], books / "valid.txt.xz")
        for run in experiment.runs():
            experiment.train(corpus, folder, [run])
            experiment.judge(folder, corpus.validation, [run])
    else:
        experiment.judge(folder, read_validation(config, books / "valid.txt.xz"), experiment.runs())


def _write(name: str, value: object) -> None:
    experiment.RESULTS.mkdir(exist_ok=True)
    (experiment.RESULTS / f"{name}.json").write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
