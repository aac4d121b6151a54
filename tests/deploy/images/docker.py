"""Docker's command line, and what a container holds in memory."""

import json
import os
import subprocess
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from compressor.pages import ROOT
from service.process import cgroup
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


def memory_bytes(pid: int) -> int:
    """Return the working set of the container of a process, as Kubernetes counts it: without unused cached files.

    Args:
        pid: of the process, as this machine sees it.

    Raises:
        OSError: if the process has ended.
    """
    found = cgroup.memory(process=pid)
    Path(f"/proc/{pid}/exe").readlink()  # of a process that has ended, what was found would be the whole machine's
    assert found is not None
    return found.current - found.inactive_file


@dataclass(frozen=True)
class State:
    """A container's state.

    Attributes:
        pid: of its process 1, as this machine sees it.
        started: when.
    """

    pid: int
    started: datetime
    running: bool
    exit_code: int
    health: str


def state(container: str) -> State:
    """Return the state of a container."""
    (found,) = json.loads(docker("inspect", container))
    now = found["State"]
    return State(
        pid=now["Pid"],
        started=datetime.fromisoformat(now["StartedAt"]),
        running=now["Running"],
        exit_code=now["ExitCode"],
        health=now.get("Health", {}).get("Status", ""),
    )


def seconds_to_ready(container: str) -> float:
    """Return how long after the container's start the service's own log says that it is ready."""
    for line in logs(container, "--timestamps").splitlines():
        when, _, text = line.partition(" ")
        if text.startswith("{") and json.loads(text).get("event") == "ready":
            return (datetime.fromisoformat(when) - state(container).started).total_seconds()
    raise RuntimeError(f"{container} was never ready")


def wait_healthy(container: str) -> None:
    """Wait until a container's own check finds it healthy."""
    wait_until(lambda: state(container).health == "healthy" or not state(container).running, seconds=120)
    assert state(container).health == "healthy", logs(container)
