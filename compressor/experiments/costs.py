"""What `ttgpt compare` leaves out: costs, which depend on the machine and want it quiet, a probe, and published texts.

python -m compressor.experiments decoding --books DIR  tokens per second of the frontier's models
python -m compressor.experiments probe --books DIR ARTEFACT...  which book a passage is from, by hidden states
python -m compressor.experiments gpt2 --wikitext FILE --lambada FILE  GPT-2's variants on published texts
python -m compressor.experiments training              speed and memory of pre-training, and of the tensor-train layer
"""

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from compressor.display import bar
from compressor.experiments import decoding, pretraining_cost, probe, published, ttm_cost
from compressor.experiments.experiment import write_result
from compressor.experiments.tables import refresh_pages
from compressor.experiments.workbench import VALID
from compressor.huggingface import load
from compressor.process.memory import keep_freed_memory
from compressor.runtime.published import LAMBADA


def main() -> None:
    """Parse, measure, write; a caller's mistake is one line on stderr and exit code 2."""
    parser = _parser()
    given = parser.parse_args()
    keep_freed_memory()
    if given.command == "worker":
        pretraining_cost.work(given.variant, given.threads)
        return
    try:
        for name, result in _measured(given):
            write_result(name, result)
    except ValueError as error:
        parser.exit(2, f"error: {error}\n")
    refresh_pages()


def _parser() -> argparse.ArgumentParser:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("python -m compressor.experiments", description=__doc__, formatter_class=raw)
    commands = parser.add_subparsers(dest="command", required=True)
    books = commands.add_parser("decoding")
    books.add_argument("--books", type=Path, required=True, help="folder with train.txt.xz and valid.txt.xz")
    probing = commands.add_parser("probe")
    probing.add_argument("--books", type=Path, required=True, help="folder with valid.txt.xz")
    probing.add_argument("folders", type=Path, nargs="+", metavar="ARTEFACT")
    gpt2 = commands.add_parser("gpt2")
    gpt2.add_argument("--wikitext", type=Path, required=True, help="wiki.test.tokens or wiki.test.raw")
    gpt2.add_argument("--lambada", type=Path, required=True, help="lambada_test.jsonl")
    gpt2.add_argument("--model", default="gpt2", help="a hub id, a folder or gpt2-mini")
    gpt2.add_argument("--stride", type=int, help="tokens from one window to the next, by default the context")
    gpt2.add_argument("--out", type=Path, default=Path("build/gpt2"), help="folder of the artefacts, which are kept")
    commands.add_parser("training").add_argument("--threads", type=int, default=torch.get_num_threads())
    worker = commands.add_parser("worker")
    worker.add_argument("variant", choices=[pretraining_cost.REFERENCE, *pretraining_cost.EXPERIMENTS])
    worker.add_argument("threads", type=int)
    return parser


def _measured(given: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield what a command measures, by the names of the results' files."""
    if given.command == "probe":
        yield "probe", probe.measured(given.books / VALID, given.folders, bar)
    elif given.command == "gpt2":
        texts = {published.RAW: given.wikitext, published.DETOKENISED: given.wikitext, LAMBADA: given.lambada}
        yield "gpt2", published.measured(load(given.model), texts, given.out, stride=given.stride, progress=bar)
    elif given.command == "decoding":
        yield "decoding", decoding.measured(given.books)
    else:
        yield "pretraining-cost", pretraining_cost.measured(given.threads)
        yield "ttm-layer", {"threads": given.threads, "rows": ttm_cost.measured()}
