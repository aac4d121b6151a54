"""All generated blocks of all pages: `python -m tests.pages` makes them and the plots anew from committed results."""

from compressor.experiments import pretraining_tables as pretraining
from compressor.experiments import tables
from compressor.pages import read, refresh
from tests.benchmarks import artifacts, cache_report, prompts, sizing
from tests.benchmarks import report as speed
from tests.benchmarks.scaling import report as scaling
from tests.deploy.images import found as images
from tests.e2e import answer
from tests.e2e import report as faults
from tests.e2e.clients import report as clients

SERVICE = (*answer.BLOCKS, *cache_report.BLOCKS, *prompts.BLOCKS, *faults.BLOCKS, *clients.BLOCKS)
BLOCKS = (*tables.BLOCKS, *speed.BLOCKS, *sizing.BLOCKS, *scaling.BLOCKS, *images.BLOCKS, *artifacts.BLOCKS, *SERVICE)


def main() -> None:
    """Write what is stale, and the rest once more."""
    refresh(BLOCKS)
    tables.draw_plots()
    pretraining.draw()
    if (results := read(speed.SPEED)) is not None:
        speed.draw(results, speed.PLOT)
    if (results := read(scaling.RESULTS)) is not None:
        scaling.draw(results)


if __name__ == "__main__":
    main()
