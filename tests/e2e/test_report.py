"""What the README says of faults is what was measured last."""

from pathlib import Path

from tests.e2e import report

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_block_is_fresh() -> None:
    assert report.refreshed(README, report.read()) == README, "run: python -m tests.e2e --report"
