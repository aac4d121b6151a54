"""Where independent tasks run: in this process, in local processes, or on a Ray cluster; the others by joblib."""

import importlib.util
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from threading import Thread
from typing import Any, TypeVar

import torch
from joblib import Parallel, delayed
from joblib.externals.loky import BrokenProcessPool, ProcessPoolExecutor

from compressor.errors import check_range
from compressor.process.memory import keep_freed_memory

R = TypeVar("R")

EXECUTORS = ("local", "ray")
MAX_WORKERS = 256
AHEAD = 2  # tasks per worker that are made before the first answers are awaited
WATCH_SECONDS = 0.5  # between a worker's looks at its parent


@dataclass(frozen=True, kw_only=True)
class Executor:
    """Runs tasks that need nothing of each other; with equal threads the results are the same everywhere.

    Attributes:
        kind: "local" is this machine; "ray" is the cluster at RAY_ADDRESS, or else the one that runs on this
            machine, or else a new one here. Ray's workers need this version of ttgpt installed.
        workers: tasks at a time; by default 1 here, which is this process, and one per CPU on Ray. Local processes
            share torch's threads evenly; a Ray worker has the one CPU that it reserves.

    Raises:
        ValueError: if the kind is unknown, Ray is not installed, or workers are out of range.
    """

    kind: str = "local"
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.kind not in EXECUTORS:
            raise ValueError(f"executor must be one of {', '.join(EXECUTORS)}, not {self.kind!r}")
        if self.workers is not None:
            # joblib runs a single task at a time in this process, which needs no Ray.
            check_range("workers", self.workers, 2 if self.kind == "ray" else 1, MAX_WORKERS)
        if self.kind == "ray" and importlib.util.find_spec("ray") is None:
            raise ValueError("executor: ray is not installed; run: pip install 'ttgpt[ray]'")

    @property
    def in_process(self) -> bool:
        """Whether tasks run in this process."""
        return self.kind == "local" and self.workers in (None, 1)

    def map(self, function: Callable[..., R], *items: Iterable[Any]) -> Iterator[R]:
        """Yield function(*item) for each item of the zipped `items`, in order, each as soon as it is there.

        `function` is sent to the workers once, so what all tasks share belongs in a `partial`.

        Raises:
            ValueError: if Ray cannot be reached or has fewer CPUs than workers.
        """
        if self.in_process:
            return map(function, *items)
        run = _on_ray if self.kind == "ray" else _in_processes
        return run(function, zip(*items, strict=True), self.workers)


IN_PROCESS = Executor()
_function: Callable[..., Any]  # of a worker process


def _in_processes(function: Callable[..., R], tasks: Iterable[tuple[Any, ...]], workers: int | None) -> Iterator[R]:
    threads = max(1, torch.get_num_threads() // (workers or 1))
    # The function goes to each worker through a pipe as it starts, so that no file of it can be left.
    pool = ProcessPoolExecutor(
        workers, initializer=_begin, initargs=(function, os.getpid()), env={"OMP_NUM_THREADS": str(threads)}
    )
    try:
        pending: deque[Future[R]] = deque()
        for task in tasks:  # which are made as they are needed, and not all at once
            pending.append(pool.submit(partial(_call, _begun, threads), task))
            if len(pending) > AHEAD * (workers or 1):
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    except BrokenProcessPool as error:
        raise ValueError("workers: one has died, perhaps for want of memory; give fewer --workers") from error
    finally:
        pool.shutdown(kill_workers=True)


def _begin(function: Callable[..., Any], parent: int) -> None:
    """Prepare a worker process: keep what it is to do, and end it with its parent, whatever that one dies of."""
    global _function
    _function = function
    Thread(target=_end_with, args=(parent,), daemon=True).start()


def _begun() -> Callable[..., Any]:
    return _function


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os._exit(1)


def _on_ray(function: Callable[..., R], tasks: Iterable[tuple[Any, ...]], workers: int | None) -> Iterator[R]:
    import ray
    from ray.util.joblib.ray_backend import RayBackend

    cpus = _connect()
    check_range("workers", workers or cpus, 2, cpus)
    backend = RayBackend()
    # What it inherits says no, because of a flaw of multiprocessing's pool that Ray's does not have.
    backend.supports_return_generator = True
    stored = ray.put(function)
    calls = (delayed(_call)(partial(ray.get, stored), 1, task) for task in tasks)
    yield from Parallel(n_jobs=workers or cpus, backend=backend, return_as="generator")(calls)


def _connect() -> int:
    """Connect to Ray unless this process has done so, and return the number of its CPUs."""
    import ray

    if not ray.is_initialized():
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a cluster started here reports to nobody
        try:
            ray.init(include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)
        except Exception as error:  # Ray raises bare Exception
            raise ValueError(f"executor: cannot reach Ray: {error}") from error
    return int(ray.cluster_resources().get("CPU", 0))


def _call(fetch: Callable[[], Callable[..., R]], threads: int, task: tuple[Any, ...]) -> R:
    """Do one task in a worker process."""
    torch.set_num_threads(threads)
    keep_freed_memory()
    return fetch()(*task)
