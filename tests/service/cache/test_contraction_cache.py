"""The cache of contractions through HTTP, with a real Redis: what is asked, written, refused and passed by."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from compressor.artifact.folder import read
from compressor.runtime.load import as_stored
from compressor.runtime.matrices import rows
from compressor.runtime.trains import best_span
from service.cache.contractions import ContractionCache
from service.engine.models import load
from service.metrics import Metrics
from service.settings import Settings
from tests.redis_server import Proxy, RedisServer, redis_server
from tests.service.compressed import NAMES, compressed_artifacts
from tests.service.conftest import sample, serving, wait_until

IDS = [505, 900, 505, 16000, 77]  # none of which the warm-up looks at
DISTINCT = 4
REQUESTS = "ttgpt_core_cache_requests_total"
OPERATIONS = "ttgpt_core_cache_operation_seconds_count"


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return compressed_artifacts(tmp_path_factory.mktemp("compressed"))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def redis(server: RedisServer) -> RedisServer:
    server.client.flushall()
    return server


def of(folder: Path, **fields: Any) -> Settings:
    return Settings(models=(folder,), threads=1, **{"cache": "always", "cache_timeout_ms": 2000, **fields})


def embed(client: httpx.Client, ids: list[int] = IDS) -> Any:
    answer = client.post("/embeddings", json={"inputs": ids})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]["vectors"]


def generate(client: httpx.Client, **fields: Any) -> str:
    parameters = {"max_new_tokens": 20, **fields}
    answer = client.post("/generate", json={"inputs": "The old man", "parameters": parameters})
    assert answer.status_code == 200, answer.text
    return str(answer.json()["generated_text"])


def asked(client: httpx.Client, tier: str = "redis") -> dict[str, float]:
    results = ("hit", "miss", "error", "bypass")
    return {r: n for r in results if (n := sample(client, REQUESTS, tier=tier, result=r))}


def rows_in(redis: RedisServer) -> list[str]:
    return [key for key in redis.stored() if "cores" not in key]


@pytest.mark.parametrize("place", range(len(NAMES)), ids=NAMES)
def test_a_second_replica_finds_what_the_first_contracted(folders: list[Path], redis: RedisServer, place: int) -> None:
    with serving(of(folders[place], cache="off")) as plain:
        vectors, text = embed(plain), generate(plain)
        assert asked(plain) == asked(plain, "local") == {}
    settings = of(folders[place], redis_url=redis.url)
    with serving(settings) as first:
        before = asked(first)
        assert embed(first) == vectors
        assert asked(first).get("miss", 0) == before.get("miss", 0) + DISTINCT
        assert asked(first, "local")["miss"] >= DISTINCT
        wait_until(lambda: len(rows_in(redis)) == DISTINCT)
        assert generate(first) == text
    digest = load(folders[place]).manifest.digest
    wait_until(lambda: len(rows_in(redis)) > DISTINCT)
    assert {f"ttgpt:2:{digest}:wte:{row}" for row in IDS} <= set(redis.stored())
    assert all(0 < redis.client.ttl(key) <= 86400 for key in redis.stored())
    with serving(settings) as second:
        operations = sample(second, OPERATIONS, tier="redis", op="get")
        contracted = sample(second, "ttgpt_core_contraction_seconds_count", op="rows")
        hits = asked(second).get("hit", 0)
        assert embed(second) == vectors
        assert asked(second)["hit"] == hits + DISTINCT
        assert "miss" not in asked(second)
        assert sample(second, OPERATIONS, tier="redis", op="get") == operations + 1
        assert sample(second, "ttgpt_core_contraction_seconds_count", op="rows") == contracted
        assert embed(second) == vectors  # now from this process
        assert sample(second, OPERATIONS, tier="redis", op="get") == operations + 1
        assert asked(second, "local")["hit"] >= DISTINCT
        assert generate(second) == text
        assert sample(second, "ttgpt_core_cache_bytes") > DISTINCT * 128


def test_a_head_of_cores_is_timed_in_every_step_and_no_other(folders: list[Path], tiny_artifact: Path) -> None:
    with serving(Settings(models=(tiny_artifact, *folders), threads=1, cache="off")) as client:
        for name, steps in {tiny_artifact.name: 0, **dict.fromkeys(NAMES, 3)}.items():
            labels = {"model_name": name, "op": "head"}
            before = sample(client, "ttgpt_core_contraction_seconds_count", **labels)
            body = {"inputs": "x", "model": name, "parameters": {"max_new_tokens": 3}}
            assert client.post("/generate", json=body).status_code == 200
            assert sample(client, "ttgpt_core_contraction_seconds_count", **labels) == before + steps, name


def test_the_products_of_the_head_are_shared(folders: list[Path], redis: RedisServer) -> None:
    settings = of(folders[NAMES.index("tt-matrix")], redis_url=redis.url)
    assert best_span(read(settings.models[0], as_stored).specs["wte"])
    with serving(settings) as first:
        assert asked(first)["miss"] >= 1
        text = generate(first)
        wait_until(lambda: [key for key in redis.stored() if "cores" in key])
    shared = len([key for key in redis.stored() if "cores" in key])
    with serving(settings) as second:
        assert asked(second)["hit"] >= shared >= 1
        assert generate(second) == text


def poisoned_length(value: bytes) -> bytes:
    return value[:-4]


def poisoned_dtype(value: bytes) -> bytes:
    return value.replace(b"<f4", b"<f2", 1)


def poisoned_digest(value: bytes) -> bytes:
    return value[:-4] + bytes(4 * [value[-1] ^ 1])


@pytest.mark.parametrize("poison", [poisoned_length, poisoned_dtype, poisoned_digest])
def test_a_poisoned_value_is_a_miss_and_is_replaced(folders: list[Path], redis: RedisServer, poison: Any) -> None:
    settings = of(folders[0], redis_url=redis.url)
    with serving(settings) as first:
        vectors = embed(first)
        wait_until(lambda: len(rows_in(redis)) == DISTINCT)
    sound = {key: redis.client.get(key) for key in rows_in(redis)}
    for key, value in sound.items():
        redis.client.set(key, poison(value))
    with serving(settings) as second:
        assert embed(second) == vectors
        assert asked(second) == {"error": DISTINCT}
        wait_until(lambda: {key: redis.client.get(key) for key in rows_in(redis)} == sound)
        assert sample(second, "ttgpt_core_cache_breaker_open") == 0


def test_a_redis_slower_than_contracting_is_passed_by(folders: list[Path], redis: RedisServer) -> None:
    with Proxy(redis.port) as proxy:
        proxy.delay_seconds = 0.05
        url = f"redis://127.0.0.1:{proxy.port}"
        with serving(of(folders[0], cache="auto", redis_url=url)) as client:
            before = asked(client).get("bypass", 0)
            operations = sample(client, OPERATIONS, tier="redis", op="get")
            embed(client)
            assert asked(client) == {"bypass": before + DISTINCT}
            assert sample(client, OPERATIONS, tier="redis", op="get") == operations
    assert rows_in(redis) == []


def test_a_dense_table_is_not_cached_and_redis_not_even_connected_to(artifacts: list[Path], redis: RedisServer) -> None:
    with Proxy(redis.port) as proxy:
        with serving(of(artifacts[0], redis_url=f"redis://127.0.0.1:{proxy.port}")) as client:
            embed(client)
            assert asked(client) == asked(client, "local") == {}
        assert proxy.connections == 0


def test_without_redis_this_process_remembers(folders: list[Path]) -> None:
    with serving(of(folders[0])) as client:
        before = asked(client, "local")
        vectors = embed(client)
        assert embed(client) == vectors
        assert asked(client, "local")["miss"] == before["miss"] + DISTINCT
        assert asked(client, "local")["hit"] >= DISTINCT
        assert asked(client) == {}


def test_a_dead_redis_is_asked_in_vain_until_the_breaker_opens(folders: list[Path]) -> None:
    with redis_server() as server:
        pass
    with serving(of(folders[0], cache="off")) as plain:
        vectors = embed(plain, [501, 502])
    with serving(of(folders[0], redis_url=server.url)) as client:
        wait_until(lambda: sample(client, "ttgpt_core_cache_breaker_open") == 1)
        operations = sample(client, OPERATIONS, tier="redis", op="get")
        assert embed(client, [501, 502]) == vectors
        assert sample(client, OPERATIONS, tier="redis", op="get") == operations
        assert asked(client)["bypass"] >= 2
        server.start()
        try:
            wait_until(lambda: sample(client, "ttgpt_core_cache_breaker_open") == 0)
            assert len(embed(client, [503, 504])) == 2
            wait_until(lambda: len(rows_in(server)) == 2)
        finally:
            server.kill()


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"redis_url": "http://x"}, "redis_url"),
        ({"redis_url": "redis://x:port"}, "redis_url"),
        ({"redis_url": "redis://"}, "redis_url"),
        ({"redis_url": "unix://"}, "redis_url"),
        ({"cache": "sometimes"}, "cache"),
        ({"cache_bytes": -1}, "cache_bytes"),
        ({"cache_timeout_ms": 0}, "cache_timeout_ms"),
        ({"cache_ttl_seconds": 0}, "cache_ttl_seconds"),
        ({"cache_answers": True, "cache": "off"}, "TTGPT_CACHE"),
    ],
)
def test_bad_settings(fields: dict[str, Any], hint: str) -> None:
    with pytest.raises(ValueError, match=hint):
        of(Path("x"), **fields)


def test_a_password_in_the_url_is_not_shown() -> None:
    assert "secret" not in repr(of(Path("x"), redis_url="redis://:secret@host"))


def test_rows_have_the_bits_of_a_contraction(folders: list[Path], redis: RedisServer) -> None:
    for folder in folders:
        table = load(folder, ContractionCache(of(folder, cache="off"), Metrics())).decoder.matrices["wte"]
        with serving(of(folder, redis_url=redis.url)) as client:
            assert np.array_equal(np.array(embed(client), np.float32), rows(table, np.array(IDS)))
