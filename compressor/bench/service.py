"""The service as a process of its own, as `ttgpt serve` starts it."""

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from compressor.process.interrupt import held

POLL_SECONDS = 0.02
STOP_SECONDS = 150  # more than the service takes to drain by default


class Service(subprocess.Popen[bytes]):
    """`python -m service`, which is what `ttgpt serve` becomes. Its log goes to a file.

    Attributes:
        started: when, on the monotonic clock.
    """

    def __init__(self, artifact: Path, log: Path, environment: Mapping[str, str]) -> None:
        self.started = time.monotonic()
        command = [sys.executable, "-m", "service", "--port=0", "--", str(artifact)]
        with log.open("wb") as output:
            super().__init__(command, env=environment, stdout=output, stderr=output)

    def stop(self) -> None:
        """End it, and wait until it has ended."""
        self.terminate()
        try:
            self.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()


@contextmanager
def served(artifact: Path, seconds: float, environment: Mapping[str, str]) -> Iterator[tuple[Service, str]]:
    """Serve one artefact; gives the process and the address, once it is ready.

    Args:
        artifact: its folder.
        seconds: that it may take to become ready.
        environment: of the process, settings among it.

    Raises:
        RuntimeError: if the service does not become ready.
    """
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "service.log"
        process = None
        try:
            with held():
                process = Service(artifact, log, environment)
            yield process, _ready(process, log, time.monotonic() + seconds)
        finally:
            if process is not None:
                process.stop()


def _ready(process: Service, log: Path, deadline: float) -> str:
    url = ""
    while time.monotonic() < deadline and process.poll() is None:
        lines = log.read_text().splitlines(keepends=True)
        if not url and lines and lines[0].endswith("\n"):
            url = str(json.loads(lines[0])["url"])
        if url and _is_ready(url):
            return url
        time.sleep(POLL_SECONDS)
    reasons = log.read_text().strip().splitlines() or ["it said nothing"]
    raise RuntimeError(f"the service did not become ready: {reasons[-1]}")


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/readyz", timeout=5) as answer:  # noqa: S310  # our own process
            return bool(answer.status == 200)
    except OSError:  # not listening yet, or too busy to answer
        return False
