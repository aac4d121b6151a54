"""The cache of core contractions: rows of compressed token tables, and products of a head's cores.

Values are kept in this process, up to a number of bytes, and in Redis, if there is one, for all replicas. Their keys
are `ttgpt:{schema}:{artefact digest}:{matrix}:{block}`, so that values of other artefacts or versions never meet.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

import numpy as np

from compressor.artifact.folder import Arrays, Owner
from compressor.artifact.manifest import Spec
from compressor.runtime import trains
from compressor.runtime._decoder import Matrix
from compressor.runtime.model import Model
from compressor.runtime.trains import Product, Span
from service.cache.local_tier import LocalTier
from service.cache.redis_tier import RedisTier
from service.cache.rows import CachedRows
from service.cache.value import Layout
from service.metrics import Metrics
from service.settings import Settings

SCHEMA = 2  # rises when the same artefact's values get other bits
BLOCK_BYTES = 1 << 20  # of a product that is asked for at once, so that each piece comes within the timeout
Result = TypeVar("Result")


class ContractionCache:
    """What all models of one process remember.

    Attributes:
        local: the first tier.
        redis: the second one, if there is any.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        """Remember nothing yet, and talk to nobody."""
        self.local = LocalTier(settings.cache_bytes)
        self.redis: RedisTier | None = None
        if settings.redis_url is not None and settings.cache != "off":
            timeout = settings.cache_timeout_ms / 1000
            self.redis = RedisTier(settings.redis_url, timeout, settings.cache_ttl_seconds, metrics)
        self._settings = settings
        self._metrics = metrics
        self._tables: dict[str, CachedRows] = {}
        self._products_bytes = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        metrics.core_cache_bytes.set_function(lambda: self.local.size_bytes + self._products_bytes)

    def open(self) -> None:
        """Belong to the running event loop. Redis is connected to when there is something to ask it for."""
        self._loop = asyncio.get_running_loop()
        if self.redis is not None and self._settings.cache_answers:
            self.redis.open()

    async def close(self) -> None:
        """Leave Redis."""
        if self.redis is not None:
            await self.redis.close()

    async def prefetch(self, model_name: str, ids: Iterable[int]) -> None:
        """Bring what a request will need from Redis into this process; never fails."""
        table = self._tables.get(model_name)
        if table is not None:
            await table.prefetch(ids)

    def make(self, owner: Owner, tensors: Arrays, spec: Spec) -> Matrix:
        """Return a matrix as it is served; for the thread that loads it.

        A head has the product of its cores that makes one row of its results cheaper. This it has without a cache,
        too, so that all replicas round alike.
        """

        def find(span: Span, shape: tuple[int, ...], compute: Callable[[], Product]) -> Product:
            self._connect()
            layout = Layout("<f4", shape)
            self._products_bytes += layout.size_bytes
            prefix = f"{_prefix(owner.digest, owner.name)}:cores-{span.start}-{span.stop}"
            return self._product(prefix, layout, compute)

        return trains.matrix_of(tensors, spec, is_head=owner.is_head, activations=owner.activations, find=find)

    def attach(self, name: str, digest: str, decoder: Model) -> None:
        """Have the table of a model remember what it contracts."""
        table = decoder.matrices["wte"]
        if self._settings.cache == "off" or not table.is_contracted:
            return
        self._connect()
        rows = CachedRows(table, name, _prefix(digest, "wte"), self.local, self.redis, self._metrics)
        rows.auto = self._settings.cache == "auto"
        self._tables[name] = rows
        decoder.row_lookup = rows

    def _connect(self) -> None:
        """Have the event loop open the second tier, and wait for its first measurement."""
        if self.redis is not None and self._loop is not None:
            self._wait(_opened(self.redis))

    def _wait(self, work: Coroutine[Any, Any, Result]) -> Result:
        assert self._loop is not None  # noqa: S101 - callers have looked
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def _product(self, prefix: str, layout: Layout, compute: Callable[[], Product]) -> Product:
        """Return a product from Redis, or else contract it, and have it written if reading it would be faster."""
        blocks = _blocks(prefix, layout)
        found = self._asked_for(blocks)
        if found is not None:
            return np.frombuffer(bytearray().join(found), np.float32).reshape(layout.shape)
        began = time.perf_counter()
        product = compute()
        seconds = time.perf_counter() - began
        if self.redis is not None and self._pays(blocks, seconds):
            data = product.astype("<f4", copy=False).tobytes()
            entries, at = [], 0
            for key, block in blocks:
                entries.append((key, data[at : at + block.size_bytes], block))
                at += block.size_bytes
            self.redis.offer(entries)
        return product

    def _asked_for(self, blocks: list[tuple[str, Layout]]) -> list[bytes] | None:
        """Return all blocks, if Redis has all of them."""
        if self.redis is None or self._loop is None:
            return None
        found: list[bytes] = []
        for key, layout in blocks:
            answer = self._wait(self.redis.get_many([key], layout, self._metrics.core_cache_requests))
            if answer is None or answer[0] is None:
                return None
            found.append(answer[0])
        return found

    def _pays(self, blocks: list[tuple[str, Layout]], seconds: float) -> bool:
        """Return whether reading these blocks takes less than so many seconds; counts if not."""
        if self._settings.cache == "always":
            return True
        round_trip = self.redis.round_trip if self.redis is not None else None
        if round_trip is not None and sum(round_trip.seconds(layout.size_bytes) for _, layout in blocks) < seconds:
            return True
        self._metrics.core_cache_requests.labels("redis", "bypass").inc(len(blocks))
        return False


async def _opened(redis: RedisTier) -> None:
    redis.open()
    await redis.measured()


def _prefix(digest: str, matrix: str) -> str:
    return f"ttgpt:{SCHEMA}:{digest}:{matrix}"


def _blocks(prefix: str, layout: Layout) -> list[tuple[str, Layout]]:
    """Return the keys and layouts of the blocks that a value is cut into."""
    count, most = layout.size_bytes // 4, BLOCK_BYTES // 4
    return [
        (f"{prefix}-{k}", Layout("<f4", (min(most, count - start),))) for k, start in enumerate(range(0, count, most))
    ]
