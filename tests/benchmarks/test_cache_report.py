"""What the README says of the cache is what was measured last."""

from pathlib import Path

from tests.benchmarks import cache_report

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_block_is_fresh() -> None:
    results = cache_report.read()
    assert cache_report.refreshed(README, results) == README, "run: python -m tests.benchmarks.cache --report"
