"""`python -m tests.benchmarks`: measure, write the results, refresh their pages and the plot."""

import argparse
import json
import shutil
from pathlib import Path

from compressor.pages import refresh
from tests.benchmarks import machine, report
from tests.benchmarks.bars import bars
from tests.benchmarks.children import ROOT
from tests.benchmarks.engines import ENGINES
from tests.benchmarks.plan import FULL, QUICK
from tests.benchmarks.session import Session

FOLDER = ROOT / "build" / "bench"


def main() -> None:
    """Run the plan; only a full run of every engine replaces the committed results."""
    given = _arguments()
    if given.fresh:
        shutil.rmtree(FOLDER / "samples", ignore_errors=True)
    plan = QUICK if given.quick else FULL
    threads = machine.pin(given.threads)
    session = Session(plan=plan, folder=FOLDER, threads=threads, engines=tuple(given.engines))
    results = session.run(lambda line: print(line, flush=True))
    if plan is FULL and set(given.engines) == set(ENGINES):
        _write(results, report.SPEED)
        refresh(report.BLOCKS)
        report.draw(results, report.PLOT)
    else:
        _write(results, FOLDER / f"{plan.name}.json")
    session.forget()
    told = (report.tables(results), report.busy(results), report.arrival(results))
    print("", *(f"{text}\n" for text in told), *bars(results), sep="\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a smoke run; its results stay in build/")
    parser.add_argument("--fresh", action="store_true", help="forget what an interrupted run has measured")
    parser.add_argument("--threads", type=int, default=2, help="cores to use; 2 by default")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES), help="all by default")
    return parser.parse_args()


def _write(results: report.Results, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
