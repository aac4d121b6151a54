"""The plot of speed is of the committed results, which are of a full run."""

from compressor.pages import read
from tests.benchmarks import report
from tests.benchmarks.engines import ENGINES
from tests.benchmarks.plan import FULL

RESULTS = read(report.SPEED)


def test_the_plot_is_fresh() -> None:
    assert report.PLOT.is_file() == (RESULTS is not None)
    assert RESULTS is None or report.checksum(RESULTS) in report.PLOT.read_text(), "run: make pages"


def test_nothing_was_left_out() -> None:
    assert RESULTS is None or set(RESULTS["engines"]) == set(ENGINES)
    assert RESULTS is None or RESULTS["plan"]["name"] == FULL.name
