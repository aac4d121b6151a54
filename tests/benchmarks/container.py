"""The service in a container of its image, under limits, as `compressor.bench.service` has it as a process."""

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.deploy.images.docker import docker, memory_bytes, state, wait_healthy

NAME = "ttgpt-sizing"


class Container:
    """A running container, to be asked as a process is.

    Attributes:
        pid: of its process 1, as this machine sees it.
        started: when, on the monotonic clock.
        returncode: of its process 1, None while it runs.
    """

    def __init__(self, image: str, artifact: Path, limit_mib: int | None, environment: Mapping[str, str]) -> None:
        self.started = time.monotonic()
        self.returncode: int | None = None
        limits = ["--cpus", "2", *([] if limit_mib is None else ["--memory", f"{limit_mib}m"])]
        variables = [word for name, value in environment.items() for word in ("--env", f"{name}={value}")]
        volume = f"{artifact.resolve()}:/models/{artifact.name}:ro"
        options = ["--read-only", "--volume", volume, "--publish", "127.0.0.1::8000", *limits, *variables]
        docker("rm", "--force", NAME)  # of a run that was killed
        docker("run", "--detach", "--name", NAME, *options, image, f"/models/{artifact.name}")
        self.pid = state(NAME).pid

    def send_signal(self, number: signal.Signals) -> None:
        docker("kill", "--signal", number.name, NAME)

    def poll(self) -> int | None:
        """Return the exit code of its process 1, None while it runs."""
        if self.returncode is None and not Path(f"/proc/{self.pid}").exists():
            self.returncode = int(docker("wait", NAME))
        return self.returncode

    def memory_bytes(self) -> int:
        """Return its working set, see `docker.memory_bytes`."""
        return memory_bytes(self.pid)


@contextmanager
def contained(
    image: str, artifact: Path, limit_mib: int | None, environment: Mapping[str, str]
) -> Iterator[tuple[Container, str]]:
    """Serve one artefact on two cores; gives the container and the address, once it is ready.

    Args:
        image: of the service.
        artifact: its folder.
        limit_mib: of memory, None for none.
        environment: settings.
    """
    try:
        container = Container(image, artifact, limit_mib, environment)
        wait_healthy(NAME)
        yield container, f"http://{docker('port', NAME, '8000/tcp')}"
    finally:
        docker("rm", "--force", NAME)
