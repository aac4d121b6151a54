"""Measuring processes: each measurement in one of its own, so that no engine disturbs another."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
BUSY = "import os, sys\nwhile os.getppid() == int(sys.argv[1]): sum(range(10000))"  # ends with its parent at the latest


def environment(threads: int | None = None) -> dict[str, str]:
    """Return the environment of a child: no hub, and `threads` threads where a library asks the environment."""
    inherited = {key: value for key, value in os.environ.items() if not key.startswith(("OMP_", "MKL_"))}
    limits = {} if threads is None else {"OMP_NUM_THREADS": str(threads), "MKL_NUM_THREADS": str(threads)}
    return inherited | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)} | limits


def run(module: str, *arguments: object, threads: int, seconds: float) -> dict[str, Any]:
    """Run a module of this package; return the JSON of its last line, or why there is none as "failed"."""
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *map(str, arguments)]
    return parsed(command, environment(threads), seconds)


@contextmanager
def busy_loop() -> Iterator[int]:
    """Keep one core busy from another process meanwhile; gives the process's id."""
    with subprocess.Popen([sys.executable, "-c", BUSY, str(os.getpid())]) as process:
        try:
            yield process.pid
        finally:
            process.kill()


def parsed(command: list[str], env: dict[str, str], seconds: float) -> dict[str, Any]:
    """Run a command; return the JSON of its last line, {} without one, or why it failed as "failed"."""
    try:
        done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=seconds, check=False)
    except subprocess.TimeoutExpired:
        return {"failed": f"took longer than {seconds:g} s"}
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0:
        reasons = done.stderr.strip().splitlines() or lines or ["no output"]
        return {"failed": f"exit code {done.returncode}: {reasons[-1]}"}
    result: dict[str, Any] = json.loads(lines[-1]) if lines else {}
    return result
