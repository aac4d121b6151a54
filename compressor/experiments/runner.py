"""Runs the experiments that have no result yet."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

from compressor.experiments.compression import Compression, compressions, prepare
from compressor.experiments.experiment import Experiment
from compressor.experiments.pretraining import pretrainings
from compressor.experiments.workbench import TRAIN, VALID, Workbench
from compressor.progress import Progress, silent
from compressor.recipes.executor import IN_PROCESS, Executor
from compressor.storage.run_folder import require_files


def experiments() -> list[Experiment]:
    """Return all experiments."""
    return [*compressions(), *pretrainings()]


def run_missing(
    *, books: Path | None = None, rerun: bool = False, executor: Executor = IN_PROCESS, progress: Progress = silent
) -> Iterator[str]:
    """Run what has no result yet, writing each as it comes; yield the names.

    Args:
        books: folder with train.txt.xz and valid.txt.xz; experiments on books are run only where it is given.
        rerun: run all, and heal and train all anew.
        executor: where they run; each experiment is one task.
        progress: progress callback of this process.
    """
    chosen = [experiment for experiment in experiments() if books or not experiment.books]
    missing = [experiment for experiment in chosen if rerun or not _is_done(experiment)]
    bench = Workbench(books, executor, progress, anew=rerun)
    if not executor.in_process:
        prepare([experiment for experiment in missing if isinstance(experiment, Compression)], bench)
        bench.progress = silent
    for experiment, result in zip(missing, executor.map(partial(_result_on, bench), missing), strict=True):
        experiment.write(result)
        yield experiment.name


def check_books(books: Path | None) -> None:
    """Refuse at once what would fail when all experiments have run; raises ValueError."""
    if books is not None:
        require_files("books", [books / TRAIN, books / VALID])
    elif late := [e.name for e in experiments() if e.books and e.result() is None]:
        raise ValueError(f"books: experiment {late[0]} has no up-to-date result and needs them (--books DIR)")


def _result_on(bench: Workbench, experiment: Experiment) -> dict[str, Any]:
    return experiment.run(bench)


def _is_done(experiment: Experiment) -> bool:
    result = experiment.result()
    return result is not None and experiment.is_whole(result)
