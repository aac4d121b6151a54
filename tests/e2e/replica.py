"""A service in a process of its own, as an operator runs it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.e2e.pod import Pod, pod
from tests.redis_server import free_port
from tests.service.conftest import wait_until

ROOT = Path(__file__).parents[2]


class Replica:
    """One process; may be killed and started again on the same port.

    Attributes:
        url: where it listens.
        log: what it wrote on stderr so far; a file.
        start_seconds: from the latest start to readiness.
        pod: whose limits it gets when it starts, if any.
    """

    def __init__(self, models: Sequence[Path], log: Path, **environment: str) -> None:
        """Start nothing yet; `environment` is the settings without their prefix, in small letters."""
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = log
        self.start_seconds = 0.0
        self.pod: Pod | None = None
        self._models = list(map(str, models))
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("TTGPT_")}
        self._environment = inherited | {f"TTGPT_{key.upper()}": value for key, value in environment.items()}
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it is ready."""
        began = time.monotonic()
        command = [sys.executable, "-m", "service", *self._models, "--port", str(self.port)]
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=ROOT, env=self._environment, stderr=log)
        if self.pod is not None:
            self.pod.hold(self._process.pid)
        wait_until(self._ready, seconds=120)
        self.start_seconds = time.monotonic() - began

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        """The running process."""
        assert self._process is not None
        return self._process

    def kill(self) -> None:
        """End it without a word."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self) -> None:
        """Ask it to stop."""
        self.process.send_signal(signal.SIGTERM)

    def rss_mb(self) -> float:
        """Return the resident memory in 10^6 bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 1e6

    def peak_rss_mb(self) -> float | None:
        """Return the most that was ever resident, in 10^6 bytes; None if the process has ended."""
        if self.process.poll() is not None:
            return None
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(round(int(line.split()[1]) * 1024 / 1e6, 1) for line in lines if line.startswith("VmHWM"))

    def metrics(self) -> "Samples":
        """Return all samples of now."""
        return Samples(httpx.get(f"{self.url}/metrics", timeout=60).text)

    def tracebacks(self) -> int:
        """Return how many there are in the log."""
        return self.log.read_text().count("Traceback")

    def _ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False


class Samples:
    """What one scrape of /metrics said."""

    def __init__(self, text: str) -> None:
        self._values: dict[str, float] = {}
        for line in text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                self._values[name] = float(value)

    def sum(self, name: str, **labels: str) -> float:
        """Return the sum of the series of `ttgpt_<name>` with these labels."""
        wanted = [f"{label}={json.dumps(value)}" for label, value in labels.items()]
        found = (v for k, v in self._values.items() if k.partition("{")[0] == f"ttgpt_{name}")
        if not wanted:
            return sum(found)
        return sum(
            value
            for key, value in self._values.items()
            if key.partition("{")[0] == f"ttgpt_{name}" and all(part in key for part in wanted)
        )

    def asked(self, result: str, tier: str = "redis") -> float:
        """Return how many values of contracted cores had this result."""
        return self.sum("core_cache_requests_total", tier=tier, result=result)

    @property
    def trips(self) -> float:
        """How often a request has waited for Redis."""
        return self.sum("core_cache_operation_seconds_count", tier="redis", op="get")


@contextmanager
def replica(models: Sequence[Path], log: Path, **environment: str) -> Iterator[Replica]:
    """Run a replica until the block ends."""
    with _ended(Replica(models, log, **environment)) as made:
        made.start()
        yield made


@contextmanager
def limited_replica(models: Sequence[Path], log: Path) -> Iterator[Replica]:
    """Run a replica in the limits of a pod until the block ends."""
    with pod() as limits, _ended(Replica(models, log)) as made:
        made.pod = limits
        made.start()
        yield made


@contextmanager
def _ended(made: Replica) -> Iterator[Replica]:
    try:
        yield made
    finally:
        made.kill()
