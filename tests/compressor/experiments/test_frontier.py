"""The frontier's table: it lists what nothing beats, and its speeds are those of whole models."""

from itertools import pairwise

from compressor.experiments.compression import compressions
from compressor.experiments.decoding import decoding
from compressor.experiments.tables import WHOLE, frontier_experiments, frontier_table, total_bytes
from compressor.process.processor import processor
from tests.conftest import tiny_model


def _point(name: str) -> tuple[int, float]:
    (result,) = (experiment.result() for experiment in compressions() if experiment.name == name)
    assert result is not None
    return total_bytes(result, "disk"), result["quality"]["perplexity_ratio"]


def test_a_smaller_model_is_a_worse_one() -> None:
    dense, *frontier = [experiment.name for experiment in frontier_experiments()]
    assert dense == "dense"
    for larger, smaller in pairwise(map(_point, frontier)):
        assert larger[0] > smaller[0]
        assert larger[1] < smaller[1]


def test_every_whole_model_that_is_left_out_is_beaten() -> None:
    frontier = [_point(experiment.name) for experiment in frontier_experiments()]
    for size, ratio in (_point(experiment.name) for experiment in compressions() if experiment.target in WHOLE):
        assert any(s <= size and r <= ratio for s, r in frontier)


def test_every_model_of_the_frontier_is_a_row() -> None:
    table = frontier_table()
    assert all(f"| {experiment.label} |" in table for experiment in frontier_experiments())


def test_a_speed_is_of_a_model_that_runs() -> None:
    assert decoding(tiny_model().decoder(), tokens=4) > 0
    assert processor()
