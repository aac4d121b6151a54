"""A real Prometheus scrapes the real service under load: every query is valid, and answered where load allows it."""

import itertools
import socket
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from service.engine import Engine
from service.metrics import Metrics
from service.settings import Settings
from tests.deploy.control_group import write_group
from tests.deploy.manifests import ROOT
from tests.deploy.queries import RULES, raw_metrics, recorded, shown
from tests.service.conftest import artifacts, serving, wait_until
from tests.tools import debian_program

__all__ = ["artifacts"]

# Exported by the cache of contractions where there is one.
CACHE = {
    *(f"ttgpt_core_contraction_seconds_{kind}" for kind in ("sum", "count", "bucket")),
    "ttgpt_core_cache_requests_total",
    "ttgpt_core_cache_operation_seconds_sum",
    "ttgpt_core_cache_operation_seconds_count",
    "ttgpt_core_cache_bytes",
    "ttgpt_core_cache_breaker_open",
}


@dataclass
class Stack:
    """A service, a Prometheus that scrapes it, and the control group that the service sees."""

    service: httpx.Client
    prometheus: httpx.Client
    root: Path
    rounds: Iterator[int]

    def load(self) -> None:
        """Send some of every kind of request, and let the control group be throttled."""
        write_group(self.root, next(self.rounds))
        for model in ("tiny-fp32", "tiny-int8"):
            body = {"inputs": "The sea", "model": model, "parameters": {"max_new_tokens": 4}}
            assert self.service.post("/generate", json=body).status_code == 200
            assert "data:" in self.service.post("/generate_stream", json=body).text
            assert self.service.post("/embeddings", json={"inputs": "The sea", "model": model}).status_code == 200
        assert self.service.post("/generate", json={"inputs": 1}).status_code == 422

    def ask(self, expression: str) -> list[Any]:
        """Return the series that answer a query; an invalid one fails the test."""
        answer = self.prometheus.get("/api/v1/query", params={"query": expression})
        assert answer.status_code == 200, f"{expression}: {answer.text}"
        series: list[Any] = answer.json()["data"]["result"]
        return series

    def exported(self) -> set[str]:
        """Return the names of all series of the service."""
        lines = self.service.get("/metrics").text.splitlines()
        return {line.partition("{")[0].partition(" ")[0] for line in lines if not line.startswith("#")}


def _configuration(target: str) -> str:
    """Return ours, but for where the service is and how often it is asked."""
    text = (ROOT / "docker/prometheus/prometheus.yml").read_text()
    configuration = yaml.safe_load(text.replace("/etc/prometheus", str(ROOT / "docker/prometheus")))
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = configuration["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [target]}]
    return str(yaml.safe_dump(configuration))


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def stack(artifacts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    program = debian_program("prometheus", "prometheus")
    folder, root = tmp_path_factory.mktemp("prometheus"), tmp_path_factory.mktemp("root")
    write_group(root, 0)
    settings = Settings(models=tuple(artifacts), threads=1)
    address = f"127.0.0.1:{_free_port()}"
    with serving(settings, Engine(settings, Metrics(root))) as service:
        (folder / "prometheus.yml").write_text(_configuration(f"{service.base_url.host}:{service.base_url.port}"))
        arguments = {"config.file": folder / "prometheus.yml", "storage.tsdb.path": folder / "data"}
        options = [f"--{key}={value}" for key, value in (arguments | {"web.listen-address": address}).items()]
        with (
            subprocess.Popen([program, *options, "--log.level=error"]) as process,
            httpx.Client(base_url=f"http://{address}", timeout=60) as prometheus,
        ):
            try:
                wait_until(lambda: _ready(prometheus))
                yield Stack(service, prometheus, root, itertools.count(1))
            finally:
                process.terminate()


def _ready(prometheus: httpx.Client) -> bool:
    try:
        return prometheus.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False


def test_every_query_names_metrics_that_exist(stack: Stack) -> None:
    stack.load()
    expressions = shown() + [rule["expr"] for rule in RULES]
    assert set[str]().union(*map(raw_metrics, expressions)) - CACHE <= stack.exported()


def test_every_query_is_valid_and_answered(stack: Stack) -> None:
    """Alerts must be valid, too, but stay silent."""
    possible = stack.exported()
    records = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
    waiting = {e for e in [*shown(), *records] if raw_metrics(e) - possible <= set() or recorded(e)}
    assert len(waiting) > 40

    def answered() -> bool:
        stack.load()
        waiting.difference_update([expression for expression in waiting if stack.ask(expression)])
        return not waiting

    _until(answered, waiting)
    for expression in shown() + [rule["expr"] for rule in RULES]:
        stack.ask(expression)


def _until(condition: Callable[[], bool], waiting: set[str]) -> None:
    try:
        wait_until(condition, seconds=120)
    except AssertionError:
        pytest.fail("never answered: " + "\n".join(sorted(waiting)))


def test_the_rules_are_loaded_and_well(stack: Stack) -> None:
    def evaluated() -> list[dict[str, Any]]:
        groups = stack.prometheus.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] != "unknown" for rule in evaluated()))
    assert {rule["health"] for rule in evaluated()} == {"ok"}
    assert len(evaluated()) == len(RULES)
    assert [rule["name"] for rule in evaluated() if rule.get("state") == "firing"] == []
