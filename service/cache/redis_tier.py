"""The second tier of the cache: a Redis that all replicas share. However slow, wrong or gone it is, no request fails.

Only the event loop talks to Redis. A request asks at most once, and waits for at most the timeout; after a few
failures in a row it is not asked, until a task beside the requests finds that Redis answers again. What is to be
written is handed to another task, from any thread.
"""

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Any

from prometheus_client import Counter

from service.cache.breaker import Breaker
from service.cache.value import DamagedValueError, Layout
from service.metrics import Metrics
from service.process import background
from service.process.logs import LOG
from service.redis_url import client_of

if TYPE_CHECKING:
    from redis.asyncio import Redis

RETRY_SECONDS = 1.0  # between two tries to reach a Redis that does not answer
MEASURE_SECONDS = 10.0  # between two measurements of the round round_trip
SAMPLES = 3
PROBE = Layout("<f4", (256,))
PROBE_VALUES = 32
MOST_ASKING = 64  # requests that wait for Redis at the same time; more do without
BATCH_VALUES = 256  # written at once
MOST_UNWRITTEN_BYTES = 32 << 20  # more is not written at all
WEIGHT = 0.1  # of the latest round round_trip in the average

Entry = tuple[str, bytes, Layout]


@dataclass(frozen=True)
class RoundTrip:
    """How long asking takes: `fixed` seconds and `per_byte` for what comes back, times how busy it is (`factor`)."""

    fixed: float
    per_byte: float
    factor: float = 1.0

    def seconds(self, size_bytes: int) -> float:
        """Return how long asking for so much will take."""
        return self.factor * self.plain_seconds(size_bytes)

    def plain_seconds(self, size_bytes: int) -> float:
        """Return how long that takes without other requests."""
        return self.fixed + self.per_byte * size_bytes

    def after(self, size_bytes: int, seconds: float) -> "RoundTrip":
        """Return what is to be expected after one that took so long."""
        ratio = seconds / self.plain_seconds(size_bytes)
        return RoundTrip(self.fixed, self.per_byte, (1 - WEIGHT) * self.factor + WEIGHT * ratio)


class RedisTier:
    """A Redis behind a timeout and a breaker.

    Attributes:
        round_trip: the measured round round_trip, None while there is none.
    """

    def __init__(self, url: str, timeout_seconds: float, ttl_seconds: int, metrics: Metrics) -> None:
        """Do not connect yet.

        Raises:
            ValueError: if `url` is illegal.
        """
        self.round_trip: RoundTrip | None = None
        self._client = client_of(url, timeout_seconds)
        self._timeout_seconds = timeout_seconds
        self._ttl_seconds = ttl_seconds
        self._metrics = metrics
        self._breaker = Breaker(self._tell)
        self._why = ""
        self._asking = 0
        self._unwritten: deque[Entry] = deque()
        self._unwritten_bytes = 0
        self._tasks: list[asyncio.Task[None]] = []
        self._news = asyncio.Event()
        self._measured = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def available(self) -> bool:
        """Whether asking is worth while."""
        return self._loop is not None and not self._breaker.open and self._asking < MOST_ASKING

    def open(self) -> None:
        """Begin; for the event loop. Does nothing if it has begun."""
        if self._loop is not None:
            return
        self._loop = asyncio.get_running_loop()
        self._tasks = [background.task("redis watch", self._watch), background.task("redis write", self._write)]

    async def close(self) -> None:
        """Write nothing more, and leave."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(Exception):
            async with asyncio.timeout(self._timeout_seconds):
                await self._client.aclose()

    async def measured(self) -> RoundTrip | None:
        """Wait until the round round_trip has been measured for the first time, or could not be; return it."""
        await self._measured.wait()
        return self.round_trip

    async def get_many(
        self, keys: Sequence[str], layout: Layout, results: Counter, op: str = "get"
    ) -> list[bytes | None] | None:
        """Return the payload of every key, None where there is none or a damaged one; None if Redis did not answer.

        Every key counts in `results`, by tier and result.
        """
        if not self.available:
            results.labels("redis", "bypass").inc(len(keys))
            return None
        self._asking += 1
        began = time.perf_counter()
        try:
            async with self._within(op) as client:
                found = _checked(await client.mget(keys), len(keys))
        except _NoAnswerError:
            results.labels("redis", "error").inc(len(keys))
            return None
        finally:
            self._asking -= 1
        payloads = [_opened(key, value, layout, results) for key, value in zip(keys, found, strict=True)]
        if self.round_trip is not None:
            self.round_trip = self.round_trip.after(sum(map(len, filter(None, payloads))), time.perf_counter() - began)
        return payloads

    def offer(self, entries: Sequence[Entry]) -> None:
        """Have keys, payloads and layouts written some time; from any thread. What does not fit is dropped."""
        size_bytes = sum(len(payload) for _, payload, _ in entries)
        if self._loop is None or self._breaker.open or self._unwritten_bytes + size_bytes > MOST_UNWRITTEN_BYTES:
            return
        self._unwritten_bytes += size_bytes
        self._unwritten.extend(entries)
        try:
            self._loop.call_soon_threadsafe(self._news.set)
        except RuntimeError:  # the loop is closed
            self._unwritten.clear()

    def _tell(self, is_open: bool) -> None:
        self._metrics.core_cache_breaker_open.set(is_open)
        if is_open:
            LOG.warning("redis does not answer", extra={"reason": self._why})
        else:
            LOG.info("redis answers again")

    @asynccontextmanager
    async def _within(self, op: str) -> AsyncIterator["Redis"]:
        """Give the client for one operation, which is timed; every way to fail becomes _NoAnswerError.

        Redis may answer anything and its client stumble over it in any way, so every exception is one.
        """
        with self._metrics.core_cache_operation.labels("redis", op).time():
            try:
                async with asyncio.timeout(self._timeout_seconds):
                    yield self._client
            except Exception as error:
                self._why = f"{type(error).__name__}: {error}"
                self._breaker.failed()
                raise _NoAnswerError from error
        self._breaker.succeeded()

    async def _watch(self) -> None:
        """Measure the round round_trip now and then; while Redis does not answer, try again and again."""
        due = time.monotonic()
        while True:
            if self._breaker.open or time.monotonic() >= due:
                try:
                    self.round_trip = await self._measure()
                except _NoAnswerError:
                    self.round_trip = None
                finally:
                    self._measured.set()
                due = time.monotonic() + (RETRY_SECONDS if self.round_trip is None else MEASURE_SECONDS)
            await asyncio.sleep(RETRY_SECONDS)

    async def _write(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._unwritten:
                batch = [self._unwritten.popleft() for _ in range(min(BATCH_VALUES, len(self._unwritten)))]
                self._unwritten_bytes -= sum(len(payload) for _, payload, _ in batch)
                if not self._breaker.open:
                    await self._write_batch(batch)

    async def _write_batch(self, batch: Sequence[Entry]) -> None:
        try:
            await self._set_many(batch, "set")
        except _NoAnswerError:
            return

    async def _set_many(self, batch: Sequence[Entry], op: str) -> None:
        async with self._within(op) as client:
            pipeline: Any = client.pipeline(transaction=False)
            for key, payload, layout in batch:
                pipeline.set(key, layout.encode(key, payload), ex=self._ttl_seconds)
            await pipeline.execute()

    async def _measure(self) -> RoundTrip:
        """Return the round round_trip for one small value and for many."""
        keys = [f"ttgpt:probe:{i}" for i in range(PROBE_VALUES)]
        await self._set_many([(key, bytes(PROBE.size_bytes), PROBE) for key in keys], "probe")
        one = median([await self._time(keys[:1]) for _ in range(SAMPLES)])
        many = median([await self._time(keys) for _ in range(SAMPLES)])
        return RoundTrip(one, max(many - one, 0) / ((len(keys) - 1) * PROBE.size_bytes))

    async def _time(self, keys: Sequence[str]) -> float:
        began = time.perf_counter()
        async with self._within("probe") as client:
            found = _checked(await client.mget(keys), len(keys))
        for key, value in zip(keys, found, strict=True):
            with suppress(DamagedValueError):
                PROBE.decode(key, value or b"")
        return time.perf_counter() - began


class _NoAnswerError(Exception):
    """Redis did not answer, in time or at all."""


def _checked(found: Any, count: int) -> list[bytes | None]:
    """Return what came for `count` keys; raises ValueError unless that is so many values, whatever is in them."""
    if not isinstance(found, list) or len(found) != count:
        raise ValueError(f"the answer for {count} keys is not a list of {count} values")
    return [value if value is None or isinstance(value, bytes) else b"" for value in found]


def _opened(key: str, value: bytes | None, layout: Layout, results: Counter) -> bytes | None:
    """Return the payload, if there is a sound one; counts what was found."""
    result, payload = "miss", None
    if value is not None:
        try:
            result, payload = "hit", layout.decode(key, value)
        except DamagedValueError:
            result = "error"
    results.labels("redis", result).inc()
    return payload
