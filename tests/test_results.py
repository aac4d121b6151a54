"""Committed results are those of this code: they name the versions of artefacts and runtime that made them."""

import json
import subprocess

import pytest

from compressor.pages import ROOT
from compressor.runtime.version import versions

GPT2 = "python -m compressor.experiments gpt2 --wikitext FILE --lambada FILE"
# By folder or file, what makes it anew.
MAKES = {
    "compressor/experiments/results/compression/": "ttgpt compare --books DIR",
    "compressor/experiments/results/pretraining/": "ttgpt compare --books DIR",
    "compressor/experiments/results/decoding.json": "python -m compressor.experiments decoding --books DIR",
    "compressor/experiments/results/pretraining-cost.json": "python -m compressor.experiments training",
    "compressor/experiments/results/gpt2.json": GPT2,
    "compressor/experiments/results/probe.json": "python -m compressor.experiments probe --books DIR ARTEFACT...",
    "compressor/experiments/results/ttm-layer.json": "python -m compressor.experiments training",
    "tests/benchmarks/results/bench.json": "ttgpt bench DIR... --json > tests/benchmarks/results/bench.json",
    "tests/benchmarks/results/cache.json": "make bench-cache",
    "tests/benchmarks/results/prompts.json": "make bench-prompts",
    "tests/benchmarks/results/scaling.json": "make scaling",
    "tests/benchmarks/results/sizing.json": "make sizing",
    "tests/benchmarks/results/speed.json": "make bench",
    "tests/deploy/images/results.json": "make test-images",
    "tests/e2e/results/faults.json": "make soak",
}
# What does not depend on versions: what other people's clients say, and a text that a test asks for again.
OTHERS = {"tests/e2e/results/clients.json", "tests/e2e/results/answer.json"}


def _listed(pattern: str) -> list[str]:
    command = ["git", "ls-files", pattern]
    return subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout.split()


@pytest.mark.parametrize("name", sorted(set(_listed("*results/*.json")) - OTHERS))
def test_results_were_made_with_these_versions(name: str) -> None:
    """Those from before versions were kept say null: they claim nothing."""
    (command,) = (command for place, command in MAKES.items() if name.startswith(place))
    made_with = json.loads((ROOT / name).read_text())["made_with"]
    assert made_with in (None, versions()), f"run: {command}"


def test_what_makes_results_is_named_on_a_page() -> None:
    pages = "".join((ROOT / page).read_text() for page in _listed("*README.md"))
    assert [command for command in MAKES.values() if f"`{command}`" not in pages] == []
