"""Docker's command line, and what a container holds in memory."""

import json
import math
import os
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from compressor.pages import ROOT
from tests.service.conftest import wait_until

FOLDER = ROOT / "build" / "images"
# Base images of other origin than the Dockerfiles', named in the environment by those who have them.
BASES = ("PYTHON_IMAGE", "BUILD_IMAGE", "BUSYBOX_IMAGE", "TORCH_INDEX")


def docker(*words: str | Path, **environment: str) -> str:
    """Run a command of Docker in the root of the tree; return what it prints.

    Raises:
        RuntimeError: with what it says, if it fails.
    """
    command = ["docker", *map(str, words)]
    run = subprocess.run(
        command,
        cwd=ROOT,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if run.returncode:
        raise RuntimeError(f"{' '.join(command)}: {run.stdout}{run.stderr}")
    return run.stdout.strip()


def logs(container: str, *options: str) -> str:
    """Return what a container has written."""
    command = ["docker", "logs", *options, container]
    return subprocess.check_output(command, stderr=subprocess.STDOUT, text=True)


def without_daemon() -> str:
    """Return why no daemon answers, or nothing if one does."""
    try:
        docker("info")
        docker("compose", "version")
    except (OSError, RuntimeError) as error:
        return " ".join(str(error).split())[-300:]
    return ""


def build_options() -> list[str]:
    """Return the options by which images are built from the bases at hand."""
    given = [f"{name}={os.environ[name]}" for name in BASES if name in os.environ]
    return ["--network", "host", *(word for value in given for word in ("--build-arg", value))]


def build(*words: str) -> None:
    """Build an image of this tree."""
    docker("build", *build_options(), *words, ".")


class MemoryGroup:
    """The control group of a process, which is its container's; it stays this one when the process has ended.

    Args:
        pid: of the process, as this machine sees it.
    """

    def __init__(self, pid: int) -> None:
        lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        groups = dict(line.split(":", 2)[1:] for line in lines)
        self._version = _V1 if "memory" in groups else _V2
        self._folder = Path(f"{self._version['folder']}{groups[self._version['controller']]}")

    def charged_bytes(self, what: str = "usage") -> int:
        """Return what it is charged for, "usage" now or the "peak", without cached files that nobody uses.

        Raises:
            OSError: if the container has gone.
        """
        stat = dict(line.split() for line in (self._folder / "memory.stat").read_text().splitlines())
        return int((self._folder / self._version[what]).read_text()) - int(stat[self._version["inactive_file"]])


_V1 = {
    "folder": "/sys/fs/cgroup/memory",
    "controller": "memory",
    "usage": "memory.usage_in_bytes",
    "peak": "memory.max_usage_in_bytes",
    "inactive_file": "total_inactive_file",
}
_V2 = {
    "folder": "/sys/fs/cgroup",
    "controller": "",
    "usage": "memory.current",
    "peak": "memory.peak",
    "inactive_file": "inactive_file",
}


@dataclass(frozen=True)
class State:
    """A container's state.

    Attributes:
        pid: of its process 1, as this machine sees it.
        seconds_to_ready: from the start of the container until the service's own log says that it is ready.
    """

    pid: int

    running: bool
    exit_code: int
    health: str
    seconds_to_ready: float


def state(container: str) -> State:
    """Return the state of a container."""
    (found,) = json.loads(docker("inspect", container))
    now = found["State"]
    return State(
        pid=now["Pid"],
        running=now["Running"],
        exit_code=now["ExitCode"],
        health=now.get("Health", {}).get("Status", ""),
        seconds_to_ready=_seconds_to_ready(container, datetime.fromisoformat(now["StartedAt"])),
    )


def _seconds_to_ready(container: str, started: datetime) -> float:
    for line in logs(container, "--timestamps").splitlines():
        when, _, text = line.partition(" ")
        if text.startswith("{") and json.loads(text).get("event") == "ready":
            return (datetime.fromisoformat(when) - started).total_seconds()
    return math.nan


def wait_healthy(container: str) -> None:
    """Wait until a container's own check finds it healthy."""
    wait_until(lambda: state(container).health == "healthy" or not state(container).running, seconds=120)
    assert state(container).health == "healthy", logs(container)
