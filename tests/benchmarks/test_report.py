"""What the README says of speed is what was measured last."""

from pathlib import Path

from tests.benchmarks import report
from tests.benchmarks.engines import ENGINES
from tests.benchmarks.plan import FULL

README = (Path(__file__).parents[2] / "README.md").read_text()
RESULTS = report.read()


def test_the_block_is_fresh() -> None:
    assert report.refreshed(README, RESULTS) == README, "run: python -m tests.benchmarks --report"


def test_the_plot_is_fresh() -> None:
    assert report.PLOT.is_file() == (RESULTS is not None)
    assert RESULTS is None or report.checksum(RESULTS) in report.PLOT.read_text(), "run: make bench BENCH=--report"


def test_nothing_was_left_out() -> None:
    assert RESULTS is None or set(RESULTS["engines"]) == set(ENGINES)
    assert RESULTS is None or RESULTS["plan"]["name"] == FULL.name
