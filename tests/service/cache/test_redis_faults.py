"""Whatever stands in TTGPT_REDIS_URL or is answered by Redis: refused in one line at start, or no more than a miss."""

import inspect
import resource
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis.asyncio import connection

from service.cache.answers import ANSWER
from service.settings import Settings
from tests.redis_server import FakeRedis, RedisServer, Reply, redis_server, sound_reply
from tests.service.compressed import compressed_artifacts
from tests.service.conftest import sample, serving, wait_until
from tests.service.test_process import outcome

OPEN = "ttgpt_core_cache_breaker_open"
CLASSES = (connection.Connection, connection.SSLConnection, connection.UnixDomainSocketConnection)
CLASSES += (connection.AbstractConnection, connection.ConnectionPool)  # type: ignore[assignment]
KNOWN = sorted({name for kind in CLASSES for name in inspect.signature(kind).parameters} - {"kwargs"})
USED = {"db", "username", "password", "client_name", "max_connections", "health_check_interval", "socket_keepalive"}


def of(folder: Path, url: str, **fields: Any) -> Settings:
    return Settings(models=(folder,), threads=1, cache="always", redis_url=url, **{"cache_timeout_ms": 200, **fields})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compressed_artifacts(tmp_path_factory.mktemp("compressed"))[0]


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@127.0.0.1?foo=bar",
        "redis://:secret@127.0.0.1?decode_responses=true",
        "redis://:secret@127.0.0.1?ssl_cert_reqs=none",
        "redis://:secret@127.0.0.1?protocol=9",
        "redis://:secret@127.0.0.1/0?db=x",
        "redis://:secret@127.0.0.1:70000",
        "redis://:se/secret@127.0.0.1",
        "redis://user:secret",
        "rediss://:secret@127.0.0.1?ssl_ca_certs=/nowhere",
    ],
)
def test_a_url_that_will_not_do_is_one_line_and_exit_code_2(artifacts: list[Path], url: str) -> None:
    code, errors = outcome(artifacts[0], "--port", 0, TTGPT_LOG_LEVEL="error", TTGPT_REDIS_URL=url)
    assert (code, len(errors)) == (2, 1), errors
    assert "redis_url: " in errors[0]
    assert "TTGPT_REDIS_URL" in errors[0]
    assert "secret" not in errors[0]


@pytest.mark.parametrize(
    "url",
    [
        *(f"redis://:secret@h?{name}=1" for name in KNOWN if name not in USED),
        *(f"redis://:secret@h?{name}=" for name in sorted(USED)),
        "redis://:secret@h?db=1&db2=1",
        "redis://:secret@h?max_connections=many",
        "redis://:secret@h?max_connections=-1",
        "redis://:secret@h?health_check_interval=often",
        "redis://:secret@h/name",
        "redis://:secret@h/-1",
        "redis://:secret@h#fragment",
        "redis://:secret@h:0",
        "redis://:secret@[::1",
        "redis://:secret@:6379",
        "redis://u:p#secret@h",
        "redis://u:1?x=secret@h",
        "rediss://:secret@h?ssl_cert_reqs=perhaps",
        "rediss://:secret@h?ssl_min_version=99",
        "rediss://:secret@h?ssl_ciphers=none-of-them",
        "rediss://:secret@h?ssl_ca_data=none",
        "rediss://:secret@h?ssl_certfile=/nowhere",
        "rediss://:secret@h?ssl_include_verify_flags=some",
        "unix:///socket?password=secret&ssl_ca_path=/",
        "unix://:secret@",
        "REDIS+tls://:secret@h",
    ],
)
def test_what_means_nothing_or_breaks_the_cache_is_refused_without_the_password(url: str) -> None:
    with pytest.raises(ValueError, match="redis_url") as caught:
        of(Path("x"), url)
    assert "secret" not in str(caught.value)


def embed(client: httpx.Client, ids: list[int]) -> Any:
    answer = client.post("/embeddings", json={"inputs": ids})
    assert answer.status_code == 200, answer.text
    return answer.json()["data"][0]["vectors"]


def test_what_may_be_set_in_the_url_reaches_redis(folder: Path) -> None:
    with redis_server() as redis:
        redis.client.acl_setuser("ttgpt", enabled=True, passwords=["+p@ss"], commands=["+@all"], keys=["*"])
        url = f"redis://127.0.0.1:{redis.port}?username=ttgpt&password=p%40ss&db=3&client_name=replica"
        with serving(of(folder, f"{url}&max_connections=7&health_check_interval=1&socket_keepalive=yes")) as client:
            embed(client, [505, 900])
            wait_until(lambda: int(str(redis.client.info("keyspace").get("db3", {}).get("keys", 0))) > 2)
            told = redis.client.client_list()
            assert ("ttgpt", "replica", "3") in [(c["user"], c["name"], c["db"]) for c in told]


@pytest.mark.parametrize(
    "url",
    [
        f"redis://{'a' * 70}.example",  # no host name: what raises is no RedisError
        "redis://127.0.0.1:1",
        "redis://:wrong@{redis}",
        "redis://%FF:%ZZ@{redis}",
        "redis://{redis}/99",
        "redis://{redis}?db=-1",
        "redis://{redis}?client_name=two%20words",
        "rediss://{redis}?ssl_cert_reqs=none",
        "unix:///nowhere",
        f"unix:///{'a' * 200}",
        "unix:///a%00b",
    ],
)
def test_a_url_that_leads_nowhere_is_no_more_than_a_miss(folder: Path, redis: RedisServer, url: str) -> None:
    with serving(of(folder, url.format(redis=f"127.0.0.1:{redis.port}"))) as client:
        wait_until(lambda: sample(client, OPEN) == 1)
        assert len(embed(client, [505, 900])) == 2
        assert client.get("/livez").status_code == 200


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="module")
def fake() -> Iterator[FakeRedis]:
    with FakeRedis() as fake:
        yield fake


@pytest.fixture(scope="module")
def client(folder: Path, fake: FakeRedis) -> Iterator[httpx.Client]:
    with serving(of(folder, f"redis://127.0.0.1:{fake.port}")) as client:
        yield client


def saying(*pieces: bytes) -> Reply:
    return lambda command: pieces if command[0] in (b"MGET", b"SET") else sound_reply(command)


ANSWERS = {
    "nothing": b"",
    "garbage": b"\x00\xff\xfe{}\r\n",
    "another protocol": b"HTTP/1.1 400 Bad Request\r\n\r\n",
    "a wrong password": b"-WRONGPASS invalid username-password pair\r\n",
    "no permission": b"-NOPERM this user has no permissions\r\n",
    "no password": b"-NOAUTH Authentication required.\r\n",
    "out of memory": b"-OOM command not allowed when used memory > 'maxmemory'.\r\n",
    "loading": b"-LOADING Redis is loading the dataset in memory\r\n",
    "read only": b"-READONLY You can't write against a read only replica.\r\n",
    "moved": b"-MOVED 1 127.0.0.1:1\r\n",
    "moved nowhere": b"-MOVED\r\n",
    "asked": b"-ASK x y z\r\n",
    "wrong type": b"-WRONGTYPE Operation against a key holding the wrong kind of value\r\n",
    "no error": b"-\r\n",
    "an error in no encoding": b"-\xff\xfe \x80\r\n",
    "a number": b":5\r\n",
    "a word": b"+OK\r\n",
    "a string": b"$5\r\nhello\r\n",
    "no list": b"*-1\r\n",
    "an empty list": b"*0\r\n",
    "too few": b"*1\r\n$-1\r\n",
    "too many": b"*9\r\n" + b"$-1\r\n" * 9,
    "numbers": b"*2\r\n:1\r\n:2\r\n",
    "errors": b"*2\r\n-ERR a\r\n-ERR b\r\n",
    "lists": b"*2\r\n*1\r\n*1\r\n:1\r\n*0\r\n",
    "a map": b"%1\r\n+a\r\n:1\r\n",
    "a push": b">2\r\n+a\r\n:1\r\n",
    "depth": b"*1\r\n" * 2000,
    "half an answer": b"*2\r\n$100\r\nabc",
    "a length below zero": b"$-2\r\n",
    "an endless string": b"$9999999999999999999\r\n",
    "a huge string": b"*2\r\n$536870912\r\n",
    "a huge list": b"*2147483647\r\n",
    "a huge list in a list": b"*2\r\n*1\r\n*2147483647\r\n",
    "an endless list": b"*99999999999999999999\r\n",
    "two answers": b"*2\r\n$-1\r\n$-1\r\n*2\r\n$-1\r\n$-1\r\n",
}


@pytest.mark.parametrize("answer", ANSWERS)
def test_whatever_redis_answers_is_no_more_than_a_miss(client: httpx.Client, fake: FakeRedis, answer: str) -> None:
    fake.reply = sound_reply
    wait_until(lambda: sample(client, OPEN) == 0)  # the task that watches Redis has outlived the last answer, too
    fake.reply = saying(ANSWERS[answer])
    number = 200 + 2 * list(ANSWERS).index(answer)
    assert len(embed(client, [number, number + 1])) == 2
    assert client.get("/livez").status_code == 200


@pytest.mark.parametrize("pieces", [[b"*2\r\n$536870912\r\n", *[bytes(1 << 20)] * 512], [b"*2147483647\r\n"]])
def test_no_answer_is_larger_than_the_question(folder: Path, fake: FakeRedis, pieces: list[bytes]) -> None:
    fake.reply = sound_reply
    with serving(of(folder, f"redis://127.0.0.1:{fake.port}", cache_timeout_ms=5000)) as client:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        fake.reply = saying(*pieces)
        assert len(embed(client, [505, 900])) == 2
        assert client.get("/livez", timeout=5).status_code == 200
        grown_mib = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(f"{grown_mib:.0f} MiB")
    assert grown_mib < 200  # without a bound 442 MiB, or a loop that stands still while 16 GiB are made and freed


def test_an_answer_of_another_version_is_a_miss(artifacts: list[Path], redis: RedisServer) -> None:
    settings = of(artifacts[0], redis.url, cache_answers=True)
    body = {"inputs": "The sea", "parameters": {"max_new_tokens": 4, "details": True}}
    with serving(settings) as first:
        expected = first.post("/generate", json=body).json()
        wait_until(lambda: len(redis.stored("*:answer:*")) == 1)
    (key,) = redis.stored("*:answer:*")
    for payload in (
        b"",
        b"null",
        b"{}",
        b"[]",
        b'["length", []]',
        b'["length", [[1, 2, 3, 4, 5]]]',
        b"\xff",
        b"[" * 9999,
    ):
        redis.client.set(key, ANSWER.encode(key, payload))
        with serving(settings) as second:
            assert second.post("/generate", json=body).json() == expected
