"""A real Prometheus scrapes the real service, with a real Redis, under load: every query is valid and answered."""

import itertools
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.engine.engine import Engine
from service.metrics import Metrics
from service.settings import Settings
from tests.deploy.boards.board import drawn, words
from tests.deploy.boards.panel import NO_DATA
from tests.deploy.boards.source import Prometheus
from tests.deploy.control_group import write_group
from tests.deploy.prometheus import ask, prometheus, wait_until_answered
from tests.deploy.queries import DASHBOARDS, RECORDED, RULES, panels, raw_metrics, shown
from tests.redis_server import RedisServer, redis_server
from tests.service.compressed import NAMES, compressed_artifacts
from tests.service.conftest import artifacts, sample, serving, wait_until
from tests.tools import debian_program

__all__ = ["artifacts"]

MODELS = ("tiny-fp32", "tiny-int8", *NAMES)


@dataclass
class Stack:
    """A service, a Prometheus that scrapes it, its Redis, and the control group that it sees."""

    service: httpx.Client
    prometheus: httpx.Client
    redis: RedisServer
    root: Path
    rounds: Iterator[int]

    def load(self) -> None:
        """Send some of every kind of request, new ones each time, and let the control group be throttled."""
        number = next(self.rounds)
        write_group(self.root, number)
        for model in MODELS:
            body = {"inputs": f"The sea {number}", "model": model, "parameters": {"max_new_tokens": 4}}
            assert self.service.post("/generate", json=body).status_code == 200
            assert "data:" in self.service.post("/generate_stream", json=body).text
            rows = [20 * number + i for i in range(20)]
            assert self.service.post("/embeddings", json={"inputs": rows, "model": model}).status_code == 200
        assert self.service.post("/generate", json={"inputs": 1}).status_code == 422

    def ask(self, expression: str) -> list[Any]:
        return ask(self.prometheus, expression)

    def exported(self) -> set[str]:
        """Return the names of all series of the service."""
        lines = self.service.get("/metrics").text.splitlines()
        return {line.partition("{")[0].partition(" ")[0] for line in lines if not line.startswith("#")}


@contextmanager
def _serving(models: tuple[Path, ...], redis_url: str, root: Path) -> Iterator[httpx.Client]:
    """Serve everything there is, with every tier of the cache, and a draft, in use."""
    settings = Settings(
        models=models,
        draft_model=Path("tiny-int8"),
        threads=1,
        redis_url=redis_url,
        cache="always",
        cache_answers=True,
    )
    with serving(settings, Engine(settings, Metrics(root))) as client:
        yield client


@pytest.fixture(scope="module")
def stack(artifacts: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    program = debian_program("prometheus", "prometheus")
    folder, root = tmp_path_factory.mktemp("prometheus"), tmp_path_factory.mktemp("root")
    write_group(root, 0)
    models = (*artifacts, *compressed_artifacts(tmp_path_factory.mktemp("compressed")))
    with redis_server() as redis, _serving(models, redis.url, root) as service:
        target = f"{service.base_url.host}:{service.base_url.port}"
        with prometheus(program, target, folder) as asked:
            yield Stack(service, asked, redis, root, itertools.count(1))


def test_every_query_names_metrics_that_exist(stack: Stack) -> None:
    stack.load()
    expressions = shown() + [rule["expr"] for rule in RULES]
    assert set[str]().union(*map(raw_metrics, expressions)) <= stack.exported()


def test_every_query_is_valid_and_answered(stack: Stack) -> None:
    """Alerts must be valid, too, but stay silent."""
    waiting = {*shown(), *RECORDED}
    assert len(waiting) > 60

    wait_until_answered(waiting, stack.ask, stack.load, seconds=120)
    for expression in shown() + [rule["expr"] for rule in RULES]:
        stack.ask(expression)


def test_every_panel_of_the_pictures_has_data(stack: Stack) -> None:
    stack.load()
    now = time.time()
    for board in DASHBOARDS.values():
        shown = words(drawn(board, Prometheus(stack.prometheus, (now - 30, now))))
        assert NO_DATA not in shown
        assert {panel["title"] for panel in panels(board)} <= set(shown)


def test_the_rules_are_loaded_and_well(stack: Stack) -> None:
    def evaluated() -> list[dict[str, Any]]:
        groups = stack.prometheus.get("/api/v1/rules").json()["data"]["groups"]
        return [rule for group in groups for rule in group["rules"]]

    wait_until(lambda: all(rule["health"] != "unknown" for rule in evaluated()))
    assert {rule["health"] for rule in evaluated()} == {"ok"}
    assert len(evaluated()) == len(RULES)
    assert [rule["name"] for rule in evaluated() if rule.get("state") == "firing"] == []


def test_a_dead_redis_is_seen_and_fails_nobody(stack: Stack) -> None:
    """The last test of this file, because it leaves the breaker open."""
    stack.redis.kill()

    def pending() -> bool:
        stack.load()
        alerts = stack.prometheus.get("/api/v1/alerts").json()["data"]["alerts"]
        return "TtgptCacheBreakerOpen" in {alert["labels"]["alertname"] for alert in alerts}

    wait_until(pending)
    assert sample(stack.service, "ttgpt_core_cache_breaker_open") == 1
