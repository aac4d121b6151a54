"""`docker compose` without Grafana: what is promised of it, in the order in which an operator meets it."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.images import found
from tests.deploy.images.docker import docker, memory_bytes, seconds_to_ready, state, wait_healthy
from tests.deploy.prometheus import ask, wait_until_answered
from tests.deploy.queries import shown
from tests.e2e import answer
from tests.service.conftest import sample, wait_until

pytestmark = pytest.mark.images
PROJECT = "ttgpt-images-test"
SERVICES = ("compressor", "service", "redis", "prometheus")
TRAINS = "--method tensorgpt --rank 2"
INT8 = "/models/gpt2-mini-method-quantize"  # which stays in the volume, and drafts for what is served later
KV_MB = 160  # that texts leave behind when they are read; beside it, the process of a health check is small
EVERYTHING = {
    "TTGPT_CACHE": "always",
    "TTGPT_CACHE_ANSWERS": "true",
    "TTGPT_DRAFT_MODEL": INT8,
    "TTGPT_KV_BYTES": str(KV_MB * 10**6),
}
STREAMS, LONG = 12, 400


@dataclass(frozen=True)
class Stack:
    """The project of these tests; `override` is a further file of compose."""

    override: Path

    def compose(self, *words: str, **environment: str) -> str:
        files = ("--file", "docker-compose.yml", "--file", self.override)
        return docker("compose", "--project-name", PROJECT, *files, *words, **environment)

    def up(self, settings: dict[str, str], **environment: str) -> None:
        """Start what is not running yet, and what is not as it should be, with more settings for the service."""
        self.override.write_text(yaml.safe_dump({"services": {"service": {"environment": settings}}}))
        self.compose("up", "--detach", "--no-build", *SERVICES, **environment)
        wait_healthy(self.service)

    @property
    def service(self) -> str:
        """The container's name."""
        return f"{PROJECT}-service-1"

    def memory_bytes(self) -> int:
        """Return the working set of the service's container."""
        return memory_bytes(state(self.service).pid)

    def client(self, name: str, port: int) -> httpx.Client:
        """Return a client of one of the services."""
        return httpx.Client(base_url=f"http://{self.compose('port', name, str(port))}", timeout=300)

    def ask(self, expression: str) -> list[Any]:
        with self.client("prometheus", 9090) as prometheus:
            return ask(prometheus, expression)

    def firing(self, alert: str) -> bool:
        return bool(self.ask(f'ALERTS{{alertname="{alert}", alertstate="firing"}}'))


@pytest.fixture(scope="module")
def stack(service_image: str, compressor_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    made = Stack(tmp_path_factory.mktemp("compose") / "override.yml")
    made.up({})
    yield made
    made.compose("down", "--volumes", "--timeout", "5")


def test_it_is_healthy_and_answers_as_the_first_page_says(stack: Stack) -> None:
    found.record("ttgpt-service", "start_seconds", seconds_to_ready(stack.service))
    found.record("ttgpt-service", "ready_bytes", stack.memory_bytes())
    with stack.client("service", 8000) as service:
        assert answer.ask(str(service.base_url)) == answer.read()


def test_it_may_do_next_to_nothing(stack: Stack) -> None:
    lines = docker("exec", stack.service, "sh", "-c", "grep -hE '^(Uid|Cap|NoNewPrivs)' /proc/[0-9]*/status")
    rights = {name: set(value.split()) for name, value in (line.split(":") for line in lines.splitlines())}
    nothing = {f"Cap{name}": {f"{0:016x}"} for name in ("Inh", "Prm", "Eff", "Bnd", "Amb")}
    assert rights == {"Uid": {"10001"}, "NoNewPrivs": {"1"}, **nothing}


def test_it_can_write_to_tmp_only(stack: Stack) -> None:
    folders = "/ /app /etc /models /opt/venv /var/tmp /tmp"
    tried = f"for folder in {folders}; do touch $folder/x 2>/dev/null && echo $folder; done; rm /tmp/x"
    assert docker("exec", stack.service, "sh", "-c", tried) == "/tmp"  # noqa: S108


def test_no_request_in_flight_is_lost_by_sigterm(stack: Stack) -> None:
    body = {"inputs": "The sea", "parameters": {"max_new_tokens": LONG, "ignore_eos": True, "details": True}}
    with stack.client("service", 8000) as service, ThreadPoolExecutor(STREAMS) as clients:
        answers = [clients.submit(service.post, "/generate", json=body) for _ in range(STREAMS)]
        wait_until(lambda: sample(service, "ttgpt_num_requests_running") == STREAMS)
        found.record("ttgpt-service", "loaded_bytes", stack.memory_bytes())
        stopped = time.monotonic()
        docker("kill", "--signal", "TERM", stack.service)
        lengths = [one.result().json()["details"]["generated_tokens"] for one in answers]
        wait_until(lambda: not state(stack.service).running, seconds=60)
        found.record("ttgpt-service", "drain_seconds", time.monotonic() - stopped)
    assert lengths == [LONG] * STREAMS
    assert state(stack.service).exit_code == 0


def test_every_query_of_the_dashboards_has_data(stack: Stack) -> None:
    stack.up(EVERYTHING, OPTIONS=TRAINS)
    wait_until_answered(shown(), stack.ask, lambda: _load(stack), seconds=180)


def _load(stack: Stack) -> None:
    with stack.client("service", 8000) as service, ThreadPoolExecutor(4) as clients:
        bodies = [
            {"inputs": f"The sea {number}", "parameters": {"max_new_tokens": 16}} for number in (*range(6), time.time())
        ]
        for route in ("/generate", "/generate_stream"):
            assert {
                one.status_code for one in clients.map(lambda body, to=route: service.post(to, json=body), bodies)
            } == {200}
        assert service.post("/embeddings", json={"inputs": [1, 2, 3]}).status_code == 200


def test_memory_near_a_small_limit_is_warned_of(stack: Stack) -> None:
    assert not stack.firing("TtgptMemoryNearLimit")
    with stack.client("service", 8000) as service:
        for number in range(KV_MB // 2):  # of which each takes 3 MB
            body = {"inputs": f"{number}" + 400 * " sea", "parameters": {"max_new_tokens": 1}}
            assert service.post("/generate", json=body).status_code == 200
    limit = str(int(stack.memory_bytes() / 0.94))
    docker("update", "--memory", limit, "--memory-swap", limit, stack.service)
    wait_until(lambda: stack.firing("TtgptMemoryNearLimit"), seconds=240)


def test_a_service_that_is_gone_is_warned_of(stack: Stack) -> None:
    assert not stack.firing("TtgptDown")
    docker("stop", stack.service)
    wait_until(lambda: stack.firing("TtgptDown"), seconds=180)
