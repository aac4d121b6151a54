"""The rows of one compressed token table, contracted once and then remembered."""

import time
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from random import Random

import numpy as np
from numpy.typing import NDArray

from compressor.runtime import matrices
from compressor.runtime._decoder import Matrix
from service.cache.local_tier import LocalTier
from service.cache.redis_tier import Entry, RedisTier
from service.cache.value import Layout
from service.metrics import Metrics

Rows = NDArray[np.float32]  # [M, in]
SIZES = (1, 32, 1024)  # rows that are timed at once
REPEATS = 3
ROOM_BYTES = 1 << 30  # of a tier that is only measured


@dataclass(frozen=True)
class Curve:
    """Seconds by number of rows, measured at a few numbers and straight between them."""

    rows: tuple[int, ...]
    seconds: tuple[float, ...]

    def at(self, rows: int) -> float:
        """Return how long so many rows take."""
        k = min(max(bisect_left(self.rows, rows), 1), len(self.rows) - 1)
        slope = (self.seconds[k] - self.seconds[k - 1]) / (self.rows[k] - self.rows[k - 1])
        return self.seconds[k - 1] + slope * (rows - self.rows[k - 1])


@dataclass(frozen=True)
class Measured:
    """What was found out about a table when its model was loaded.

    Attributes:
        contraction: of rows.
        local: looking the same rows up in this process.
    """

    contraction: Curve
    local: Curve


class CachedRows:
    """Looks rows up: in this process, and before that, for a request that is about to need them, in Redis.

    The engine thread calls it; `prefetch` is for the event loop. A row has the same bits wherever it is contracted, in
    whatever company, so that no answer depends on what is remembered.

    In mode "auto" a tier is bypassed whenever contracting so many rows takes less time than asking it.
    """

    def __init__(
        self, table: Matrix, name: str, prefix: str, local: LocalTier, redis: RedisTier | None, metrics: Metrics
    ) -> None:
        """Remember rows of `table` under `prefix` and their number; `name` is the model's."""
        self._table = table
        self._layout = Layout("<f4", (table.shape[1],))
        self._prefix = prefix
        self._local = local
        self._redis = redis
        self._metrics = metrics
        self._contracting = metrics.core_contraction.labels(name, "rows")
        self._results = metrics.core_cache_requests
        self._operation = metrics.core_cache_operation
        self._asked: set[int] = set()  # rows that were looked for in Redis and that the engine has not come to yet
        self.measured = _measured(table, self._layout)
        self.auto = True

    def __call__(self, ids: NDArray[np.integer]) -> NDArray[np.float32]:
        """Return the rows [*ids, in] for integer ids."""
        shape = (*ids.shape, self._table.shape[1])
        flat = ids.ravel().tolist()
        distinct = list(dict.fromkeys(flat))
        if not flat:
            return np.empty(shape, np.float32)
        if self._local_loses(len(distinct)):
            self._results.labels("local", "bypass").inc(len(distinct))
            return self._contract(flat).reshape(shape)
        rows = self._looked_up(distinct)
        if len(distinct) < len(flat):
            place = {row: k for k, row in enumerate(distinct)}
            rows = rows[[place[row] for row in flat]]
        return rows.reshape(shape)

    async def prefetch(self, ids: Iterable[int]) -> None:
        """Bring rows from Redis into this process, if they are not there; asks at most once."""
        distinct = dict.fromkeys(ids)
        missing = self._local.absent(map(self._key, distinct))
        if self._redis is None or not missing:
            return
        if self._local_loses(len(distinct)) or self._redis_loses(len(missing)):
            self._results.labels("redis", "bypass").inc(len(missing))
            return
        found = await self._redis.get_many(missing, self._layout, self._results)
        if found is not None:
            self._results.labels("local", "miss").inc(len(missing))
            self._asked.update(int(key.rpartition(":")[2]) for key in missing)
            self._local.put_many((key, row) for key, row in zip(missing, found, strict=True) if row is not None)

    def _key(self, row: int) -> str:
        return f"{self._prefix}:{row}"

    def _local_loses(self, count: int) -> bool:
        return self.auto and self.measured.local.at(count) > self.measured.contraction.at(count)

    def _redis_loses(self, count: int) -> bool:
        if not self.auto or self._redis is None:
            return False
        round_trip = self._redis.round_trip
        return round_trip is None or round_trip.seconds(count * self._layout.size_bytes) > self.measured.contraction.at(
            count
        )

    def _looked_up(self, distinct: Sequence[int]) -> Rows:
        """Return different rows [M, in], contracting those that no tier has."""
        keys = list(map(self._key, distinct))
        with self._operation.labels("local", "get").time():
            found = self._local.get_many(keys)
        missing = [k for k, value in enumerate(found) if value is None]
        if missing:
            made = self._contract([distinct[k] for k in missing])
            for k, row in zip(missing, _payloads(made), strict=True):
                found[k] = row
            with self._operation.labels("local", "set").time():
                self._local.put_many((keys[k], value) for k in missing if (value := found[k]) is not None)
        self._settle(distinct, keys, found, missing)
        return _joined(found, self._layout)

    def _settle(
        self, distinct: Sequence[int], keys: Sequence[str], values: Sequence[bytes | None], missing: Sequence[int]
    ) -> None:
        """Count what `prefetch` has not, and offer Redis what it was asked for in vain."""
        asked = self._asked.intersection(distinct)
        self._asked -= asked
        absent = {distinct[k] for k in missing} - asked
        self._results.labels("local", "miss").inc(len(absent))
        self._results.labels("local", "hit").inc(len(distinct) - len(absent) - len(asked))
        if self._redis is not None and asked:
            entries: list[Entry] = [
                (keys[k], value, self._layout) for k in missing if distinct[k] in asked and (value := values[k])
            ]
            self._redis.offer(entries)

    def _contract(self, rows: Sequence[int]) -> Rows:
        with self._contracting.time():
            return _contracted(self._table, rows)


def _contracted(table: Matrix, rows: Sequence[int]) -> Rows:
    return matrices.rows(table, np.array(rows, np.int64))


def _payloads(rows: Rows) -> list[bytes]:
    data, size = rows.astype("<f4", copy=False).tobytes(), rows.shape[1] * 4
    return [data[start : start + size] for start in range(0, len(data), size)]


def _joined(values: Sequence[bytes | None], layout: Layout) -> Rows:
    """Return payloads of one layout as an array [M, in]."""
    data = bytearray().join(value for value in values if value is not None)
    return np.frombuffer(data, np.float32).reshape(-1, *layout.shape)


def _remembered(tier: LocalTier, keys: Sequence[str], layout: Layout) -> Rows:
    return _joined(tier.get_many(keys), layout)


def _measured(table: Matrix, layout: Layout) -> Measured:
    """Time contracting and looking up rows all over the table."""
    vocabulary = range(table.shape[0])
    sizes = tuple(sorted({min(size, len(vocabulary)) for size in SIZES})) if len(vocabulary) > 1 else (1, 2)
    tier = LocalTier(ROOM_BYTES)
    rows = Random(0).sample(vocabulary, min(sizes[-1], len(vocabulary)))  # noqa: S311
    together = _contracted(table, rows)
    keys = list(map(str, rows))
    tier.put_many(zip(keys, _payloads(together), strict=True))
    contraction = [_fastest(partial(_contracted, table, rows[:n])) for n in sizes]
    local = [_fastest(partial(_remembered, tier, keys[:n], layout)) for n in sizes]
    return Measured(Curve(sizes, tuple(contraction)), Curve(sizes, tuple(local)))


def _fastest(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times)
