"""What becomes of a service whose Redis is killed, frozen, slow, poisoned, flushed and restarted under load."""

import random
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from service.cache.breaker import FAILURES
from tests.e2e.load import Body, Load, Questions, loaded, percentile_ms
from tests.e2e.replica import Replica, Samples, replica
from tests.redis_server import Proxy, RedisServer, redis_server
from tests.service.conftest import wait_until

CLIENTS = 8
ROWS_KEPT = 64  # by the process itself, so that Redis is asked again and again
PATIENCE_SECONDS = 240.0  # only bounds a failing test
LATE_TIMEOUTS = 5  # by which a slow Redis is late
Poison = Callable[[bytes], bytes]
POISONS: dict[str, Poison] = {
    "wrong length": lambda value: value[:-4],
    "wrong dtype": lambda value: value.replace(b"<f4", b"<f8", 1),
    "wrong digest": lambda value: value[:-1] + bytes([value[-1] ^ 1]),
}


def questions(vocabulary: int, seed: int = 0) -> list[Body]:
    """Return look-ups and texts whose tokens are all over the table."""
    chance = random.Random(seed)
    bodies: list[Body] = []
    for _ in range(40):
        bodies.append(("/embeddings", {"inputs": [chance.randrange(vocabulary) for _ in range(24)]}))
        prompt = [chance.randrange(vocabulary) for _ in range(12)]
        bodies.append(("/v1/completions", {"prompt": prompt, "max_tokens": 4, "temperature": 0}))
    return bodies


class Ordeal:
    """A service under load, and its Redis.

    Attributes:
        figures: what was counted and timed, by fault.
    """

    def __init__(
        self, service: Replica, redis: RedisServer, proxy: Proxy, load: Load, times: tuple[float, float]
    ) -> None:
        """Let every fault last so many seconds, and a slow Redis be so many seconds late."""
        self.figures: dict[str, dict[str, float]] = {}
        self._service, self._redis, self._proxy, self._load = service, redis, proxy, load
        self._seconds, self._late_seconds = times

    def run(self) -> None:
        """Inject every fault, one after the other, and check that Redis is used again after each."""
        with self._told("none"):
            pass
        for name, begin, end in (
            ("killed", self._redis.kill, self._redis.start),
            ("frozen", self._redis.freeze, self._redis.thaw),
            ("slow", lambda: self._delay(self._late_seconds), lambda: self._delay(0)),
        ):
            with self._told(name):
                begin()
                self._check_nobody_asks()
            end()
            self._check_it_recovers()
        for name, poison in POISONS.items():
            errors = self._service.metrics().asked("error")
            with self._told(name):
                self._poison(poison)
                wait_until(lambda errors=errors: self._service.metrics().asked("error") > errors)  # type: ignore[misc]
            self._redis.client.flushall()
            self._check_it_recovers()
        with self._told("flushed"):
            self._redis.client.flushall()
        self._check_it_recovers()
        with self._told("restarted"):
            self._redis.restart()
        self._check_it_recovers()

    def _check_nobody_asks(self) -> None:
        """Wait for the breaker; from then on requests go on, and none of them asks Redis."""
        wait_until(self._is_open, seconds=PATIENCE_SECONDS)
        time.sleep(2 * self._late_seconds)  # in which those end who had asked before
        before, sent = self._service.metrics(), self._load.sent
        wait_until(lambda: self._load.sent >= sent + 4 * CLIENTS, seconds=PATIENCE_SECONDS)
        after = self._service.metrics()
        assert after.sum("core_cache_breaker_open") == 1, list(self.figures)
        assert after.trips == before.trips
        assert after.asked("bypass") > before.asked("bypass")

    def _check_it_recovers(self) -> None:
        wait_until(lambda: not self._is_open(), seconds=PATIENCE_SECONDS)
        hits = self._service.metrics().asked("hit")
        wait_until(lambda: self._service.metrics().asked("hit") > hits, seconds=PATIENCE_SECONDS)

    def _is_open(self) -> bool:
        return self._service.metrics().sum("core_cache_breaker_open") == 1

    def _delay(self, seconds: float) -> None:
        self._proxy.delay_seconds = seconds

    def _poison(self, poison: Poison) -> None:
        for key in self._redis.stored():
            value = self._redis.client.get(key)
            if isinstance(value, bytes):
                self._redis.client.set(key, poison(value))

    @contextmanager
    def _told(self, fault: str) -> Iterator[None]:
        """Note what happens while a fault lasts."""
        before, sent, began = self._service.metrics(), self._load.sent, time.monotonic()
        yield
        time.sleep(max(0.0, self._seconds - (time.monotonic() - began)))
        after, seconds = self._service.metrics(), time.monotonic() - began
        self.figures[fault] = {
            "requests": self._load.sent - sent,
            "requests_per_second": round((self._load.sent - sent) / seconds, 1),
            "asked": after.trips - before.trips,
        } | {f"rows_{r}": after.asked(r) - before.asked(r) for r in ("hit", "miss", "error", "bypass")}


def redis_faults(model: Path, vocabulary: int, folder: Path, seconds: float, timeout_ms: int) -> dict[str, Any]:
    """Inject every fault for so many seconds; return the figures.

    Asserted are: no failed request, no answer that differs from that of a service without a cache, no request that
    asks Redis twice, none that asks while the breaker is open, and that Redis is used again when it is well.
    """
    asked = Questions(questions(vocabulary))
    with replica([model], folder / "plain.log", cache="off", threads="1") as plain:
        asked.learn(plain.url)
    with redis_server() as redis, Proxy(redis.port) as proxy:
        settings = {"cache": "always", "cache_bytes": str(_row_bytes(model) * ROWS_KEPT), "threads": "1"}
        settings["cache_timeout_ms"] = str(timeout_ms)
        url = f"redis://127.0.0.1:{proxy.port}"
        with replica([model], folder / "faults.log", redis_url=url, **settings) as service:
            wait_until(lambda: service.metrics().sum("core_cache_breaker_open") == 0)
            before = service.metrics()
            with loaded(service.url, asked.ask, CLIENTS) as load:
                ordeal = Ordeal(service, redis, proxy, load, (seconds, LATE_TIMEOUTS * timeout_ms / 1000))
                ordeal.run()
            after = service.metrics()
            assert (load.failed, load.wrong, service.tracebacks()) == (0, [], 0), load.statuses
            assert after.trips - before.trips <= load.sent
            assert after.sum("requests_rejected_total") == 0
            return _summary(ordeal, load, before, after, timeout_ms)


def _summary(ordeal: Ordeal, load: Load, before: Samples, after: Samples, timeout_ms: int) -> dict[str, Any]:
    seconds = load.seconds[200]
    return {
        "requests": load.sent,
        "failed": load.failed,
        "different_answers": len(load.wrong),
        "asked": after.trips - before.trips,
        "timeout_ms": timeout_ms,
        "failures_until_open": FAILURES,
        "latency_p50_ms": percentile_ms(seconds, 0.5),
        "latency_p99_ms": percentile_ms(seconds, 0.99),
        "latency_max_ms": percentile_ms(seconds, 1.0),
        "faults": ordeal.figures,
    }


def _row_bytes(model: Path) -> int:
    from compressor.runtime.load import load
    from service.cache.local_tier import ENTRY_BYTES

    return load(model)[0].config.n_embd * 4 + ENTRY_BYTES
