"""`python -m tests.e2e MODEL TABLE`: inject every fault for longer, soak, write the figures and refresh their page.

MODEL is an artefact of the size that is served, TABLE one whose token table is contracted. `--minutes` is how long
the soak lasts, `--only` names the scenarios to measure again. `make soak` builds both and runs this.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from compressor.pages import read, refresh
from compressor.runtime.version import versions
from tests.benchmarks.machine import describe
from tests.e2e import hostile, pressure, report
from tests.e2e.redis_faults import redis_faults
from tests.e2e.scarcity import scarcity
from tests.e2e.soak import soak

SETTLE_SECONDS = 120.0
LARGEST_SLOPE = 1.0  # 10^6 bytes a minute

# From the options and a folder for logs to figures.
SCENARIOS: dict[str, Callable[[argparse.Namespace, Path], dict[str, Any]]] = {
    "overload": lambda options, folder: pressure.overload(options.model, folder, seconds=30.0),
    "hang_ups": lambda options, folder: pressure.hang_ups(options.model, folder, seconds=20.0),
    "scarcity": lambda options, folder: scarcity(options.model, folder, seconds=20.0),
    "killed": lambda options, folder: pressure.kill_and_restart(options.model, folder),
    "drain": lambda options, folder: pressure.drain(options.model, folder),
    "invalid": lambda options, folder: hostile.invalid(options.model, folder),
    "scoring": lambda options, folder: hostile.scoring(options.model, folder),
    "half_sent": lambda options, folder: hostile.half_sent(options.model, folder),
    "redis": lambda options, folder: redis_faults(
        options.table, _vocabulary(options.table), folder, seconds=10.0, timeout_ms=50
    ),
    "soak": lambda options, folder: soak(
        options.model, folder, seconds=60 * options.minutes, settle_seconds=SETTLE_SECONDS
    ),
}


def main() -> None:
    """Run everything; an assertion that does not hold ends it."""
    parser = argparse.ArgumentParser(prog="python -m tests.e2e", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("table", type=Path)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--only", nargs="+", choices=SCENARIOS, default=list(SCENARIOS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options, Path(folder))
    refresh(report.BLOCKS)


def measure(options: argparse.Namespace, folder: Path) -> None:
    """Run scenarios and write the figures of each as soon as they are there; those of the others stay."""
    figures: dict[str, Any] = read(report.FAULTS) or {}
    load = round(os.getloadavg()[0], 1)
    if set(options.only) != SCENARIOS.keys():
        load = max(load, figures.get("load_average", load))
    else:
        figures["made_with"] = versions()
    figures |= {"machine": describe(threads=2), "load_average": load}
    figures |= {"model": options.model.name, "table": options.table.name}
    for name in options.only:
        found = SCENARIOS[name](options, folder)
        print(name, json.dumps(found, indent=2), flush=True)
        assert name != "soak" or found["rss_mb_per_minute"] < LARGEST_SLOPE, found
        report.write(figures := figures | {name: found})


def _vocabulary(artifact: Path) -> int:
    return int(json.loads((artifact / "config.json").read_text())["vocab_size"])


if __name__ == "__main__":
    main()
