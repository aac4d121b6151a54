"""A real Prometheus with our rules that scrapes one service every second."""

import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from tests.deploy.manifests import ROOT
from tests.redis_server import free_port
from tests.service.conftest import wait_until


@contextmanager
def prometheus(program: str, target: str, folder: Path) -> Iterator[httpx.Client]:
    """Run the program until the block ends, with its files in `folder`; `target` is the service's host and port."""
    address = f"127.0.0.1:{free_port()}"
    (folder / "prometheus.yml").write_text(_configuration(target))
    arguments = {"config.file": folder / "prometheus.yml", "storage.tsdb.path": folder / "data"}
    options = [f"--{key}={value}" for key, value in (arguments | {"web.listen-address": address}).items()]
    with (
        subprocess.Popen([program, *options, "--log.level=error"]) as process,
        httpx.Client(base_url=f"http://{address}", timeout=60) as client,
    ):
        try:
            wait_until(lambda: _ready(client))
            yield client
        finally:
            process.terminate()


def ask(client: httpx.Client, expression: str) -> list[Any]:
    """Return the series that answer a query with a number; an invalid query fails the test."""
    answer = client.get("/api/v1/query", params={"query": expression})
    assert answer.status_code == 200, f"{expression}: {answer.text}"
    series: list[Any] = answer.json()["data"]["result"]
    return [one for one in series if one["value"][1] != "NaN"]


def wait_until_answered(
    expressions: Iterable[str], ask: Callable[[str], list[Any]], load: Callable[[], None], seconds: float
) -> None:
    """Load a service until every query has been answered at some time; those that never are fail the test."""
    waiting = set(expressions)

    def answered() -> bool:
        load()
        waiting.difference_update([expression for expression in waiting if ask(expression)])
        return not waiting

    try:
        wait_until(answered, seconds=seconds)
    except AssertionError:
        pytest.fail("never answered: " + "\n".join(sorted(waiting)))


def _configuration(target: str) -> str:
    """Return ours, but for where the service is and how often it is asked."""
    text = (ROOT / "docker/prometheus/prometheus.yml").read_text()
    configuration = yaml.safe_load(text.replace("/etc/prometheus", str(ROOT / "docker/prometheus")))
    configuration["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (job,) = configuration["scrape_configs"]
    del job["dns_sd_configs"]
    job["static_configs"] = [{"targets": [target]}]
    return str(yaml.safe_dump(configuration))


def _ready(client: httpx.Client) -> bool:
    try:
        return client.get("/-/ready").status_code == 200
    except httpx.TransportError:
        return False
