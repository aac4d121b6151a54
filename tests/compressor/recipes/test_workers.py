"""Worker processes end with their parent, whatever ends it, and what ends a worker is one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from compressor.recipes.executor import Executor

ROOT = Path(__file__).parents[3]

# Tasks that take far longer than the test waits, and a function so large that nobody would put it into a message.
# A worker's id is one write, since two workers write to the same pipe at the same time.
LONG = """
import os, signal, time
from functools import partial
from compressor.recipes.executor import Executor

def work(data, number):
    os.write(1, b"%d\\n" % os.getpid())
    end = time.monotonic() + 300
    while time.monotonic() < end:
        pass

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background jobs ignore
    list(Executor(workers=2).map(partial(work, bytes(10**7)), range(4)))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_workers_and_their_files_go_with_their_parent(number: signal.Signals, tmp_path: Path) -> None:
    script, files = tmp_path / "long.py", tmp_path / "files"
    script.write_text(LONG)
    files.mkdir()
    environment = os.environ | {"TMPDIR": str(files), "JOBLIB_TEMP_FOLDER": str(files), "PYTHONPATH": str(ROOT)}
    shared = _shared_memory()
    with subprocess.Popen(
        [sys.executable, script],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        cwd=tmp_path,
    ) as parent:
        try:
            assert parent.stdout is not None
            workers = [int(parent.stdout.readline()) for _ in range(2)]
            assert all(map(_is_there, workers))
            parent.send_signal(number)
            parent.wait(60)
        finally:
            parent.kill()
    for _ in range(300):  # looks rather than seconds, which pass by the hundred while a virtual machine is paused
        left = [*filter(_is_there, workers), *os.listdir(files), *(_shared_memory() - shared)]
        if not left:
            break
        time.sleep(0.1)
    assert left == []


def _shared_memory() -> set[str]:
    """Return the names of joblib's files in shared memory."""
    folder = Path("/dev/shm")  # noqa: S108
    return {path.name for path in folder.glob("*") if "loky" in path.name or "joblib" in path.name}


def _is_there(pid: int) -> bool:
    """Return whether a process runs; one that nobody has waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_a_worker_that_dies_is_one_line() -> None:
    with pytest.raises(ValueError, match="workers: one has died, perhaps for want of memory; give fewer --workers"):
        list(Executor(workers=2).map(eval, ["__import__('os').kill(__import__('os').getpid(), 9)"] * 2))
