"""The page on pre-training is made of committed results, and its example is legal."""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TypeVar

import pytest
import torch
from tokenizers import Tokenizer

from compressor.experiments import pretraining_tables as tables
from compressor.experiments import ttm_cost
from compressor.experiments.experiment import RESULTS
from compressor.experiments.pretraining import Pretraining, pretrainings
from compressor.huggingface import EMBEDDED_FOLDER
from compressor.pretraining.config import parse_config
from compressor.pretraining.layers import TTMLayer
from compressor.pretraining.model import initialised, parameter_count
from compressor.pretraining.text import Corpus
from compressor.runtime.evaluate import Text

T = TypeVar("T")
ROOT = Path(__file__).parents[3]
README = (ROOT / tables.PAGE).read_text()


def test_the_plot_is_fresh_and_shown() -> None:
    assert tables.results_sha256() in tables.PLOT.read_text(), "run: make pages"
    assert f"(../experiments/results/{tables.PLOT.name})" in README


def test_the_readmes_config_is_legal() -> None:
    example = re.search(r"```json\n(.*?)```", README, re.DOTALL)
    assert example is not None
    assert parse_config(json.loads(example[1])).steps > 0


def test_all_variants_see_the_same_and_are_compared_at_equal_cuts() -> None:
    configs = {experiment.name: experiment.config() for experiment in pretrainings()}
    assert all(config.steps * config.batch_tokens >= 1_500_000 for config in configs.values())
    forms = {"attention", "mlp"}
    assert len({config.model_dump_json(exclude=forms) for config in configs.values()}) == 1
    counts = {name: parameter_count(initialised(config)) for name, config in configs.items()}
    width, layers = 256, 6
    attention, mlp = 4 * width**2 * layers, 8 * width**2 * layers
    cut = (counts["dense"] - counts["lpa-r64"]) / attention
    assert (counts["dense"] - counts["low-rank-mlp"]) / mlp == pytest.approx(cut, abs=0.01)
    assert counts["dense"] - counts["low-rank-all"] == pytest.approx(
        2 * counts["dense"] - counts["lpa-r64"] - counts["low-rank-mlp"], rel=1e-3
    )


def test_a_run_is_trained_judged_and_found_again(tmp_path: Path) -> None:
    tiny = {"vocab_size": 16384, "n_positions": 16, "n_embd": 16, "n_layer": 1, "n_head": 2}
    common = {"model": tiny, "tokens": 128, "batch_tokens": 32, "phases": [{"until": 1.0, "context": 16}]}
    common |= {"tokenizer": "gpt2-mini", "validate_every": 2}
    differences = {"mlp": {"kind": "ttm", "rank": 4}}
    experiment = Pretraining(name="tiny", label="tiny", differences=differences, common=common, seeds=(0, 1))
    ids = torch.arange(500)
    tokenizer = Tokenizer.from_file(str(EMBEDDED_FOLDER / "tokenizer.json"))
    corpus = Corpus(tokenizer, ids, Text("some", "0" * 64, 1000, ids.numpy()), "0" * 64)
    steps: list[float] = []

    def counted(items: Iterable[T], *, label: str, total: int) -> Iterable[T]:
        for item in items:
            steps.append(1)
            yield item

    first, again = (experiment.run_once(1, corpus, tmp_path, counted) for _ in range(2))
    assert len(steps) == 4  # the second time there is nothing to do
    assert first == again
    run, sizes = first
    assert [point[0] for point in run["curve"]] == [0, 64, 128]
    assert sizes["parameters"]["all"] > sizes["parameters"]["mlp"] > 0
    result = {"inputs": experiment.inputs(), "runs": {"1": run}}
    assert not experiment.is_whole(result)
    assert experiment.is_whole(result | {"runs": {"0": run, "1": run}})


@pytest.mark.parametrize("rank", [4, 16])
def test_the_ways_beside_ours_are_the_same_product_and_keep_more(rank: int) -> None:
    layer = TTMLayer(64, 32, rank, torch.Generator().manual_seed(0))
    x = torch.randn(128, 32, requires_grad=True)
    ours, *others = (way(x, list(layer.cores)) for way in ttm_cost.WAYS.values())
    assert all(torch.allclose(ours, other, atol=1e-6) for other in others)
    kept = {name: ttm_cost.kept_bytes(way, x, list(layer.cores)) for name, way in ttm_cost.WAYS.items()}
    assert kept["ours"]["other"] == 0
    assert kept["ours"]["all"] < min(kept["chain"]["all"], kept["contraction"]["all"])
    assert kept["ours"]["all"] == x.untyped_storage().nbytes() + sum(core.numel() * 4 for core in layer.cores)


def test_the_committed_layer_keeps_x_and_the_cores_and_nothing_else() -> None:
    rows = json.loads((RESULTS / "ttm-layer.json").read_text())["rows"]
    assert {row["rank"] for row in rows} == set(ttm_cost.RANKS)
    for row in rows:
        assert row["tokens"] == ttm_cost.TOKENS
        assert row["way"] != "ours" or row["kept"]["other"] == 0
