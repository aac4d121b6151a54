"""`python -m tests.benchmarks.cache`: what the cache of contractions saves, and what it does not; refreshes its page.

Rows of GPT-2-sized and gpt2-mini-sized tables are looked up in three ways: contracted, from this process, and from a
Redis on the same machine, which is the best case for Redis. Then replicas with a TT-matrix of either size are started
with an empty and with a warm Redis. The fastest of several turns counts, because the machine may be busy.
"""

import argparse
import asyncio
import json
import os
import tempfile
import time
from collections.abc import Callable
from math import prod
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch

from compressor.artifact.folder import Arrays, Owner
from compressor.artifact.manifest import Spec
from compressor.artifact.shapes import balanced_modes, padded_binary_modes, train_size, tt_ranks
from compressor.formats import Format, TokenMPS, TTMatrix
from compressor.pages import refresh
from compressor.runtime import matrices
from compressor.runtime._decoder import Matrix
from compressor.runtime.trains import Product, Shape, Span, merged
from compressor.runtime.version import versions
from compressor.tensors import array
from service.cache.contractions import ContractionCache
from service.cache.local_tier import LocalTier
from service.cache.redis_tier import RedisTier
from service.cache.rows import CachedRows
from service.metrics import Metrics
from service.settings import Settings
from tests.benchmarks import cache_report
from tests.benchmarks.machine import describe
from tests.redis_server import RedisServer, redis_server

ROOT = Path(__file__).parents[2]
SIZES = {"gpt2-mini": (16384, 256), "GPT-2": (50257, 768)}
BATCHES = (1, 32, 2048)
RANKS = {"token_mps": 2, "tt_matrix": 32}
REPEATS = 25
TURNS = 5  # of look-ups in Redis, each by a cache of its own
STARTS = 4
PATIENCE_SECONDS = 60.0
ROOM_BYTES = 1 << 30


def main() -> None:
    """Measure and write."""
    argparse.ArgumentParser(prog="python -m tests.benchmarks.cache", description=__doc__).parse_args()
    torch.set_num_threads(2)
    with redis_server() as redis, torch.inference_mode():
        begin = os.getloadavg()[0]
        results: dict[str, Any] = {
            "made_with": versions(),
            "machine": describe(threads=2),
            "ranks": RANKS,
            "rows": _rows(redis),
            "starts": _starts(redis),
        }
    results["load_average"] = [round(load, 1) for load in (begin, os.getloadavg()[0])]
    cache_report.CACHE.parent.mkdir(exist_ok=True)
    cache_report.CACHE.write_text(json.dumps(results, indent=2) + "\n")
    refresh(cache_report.BLOCKS)


def table(kind: str, size: str) -> Format:
    """Return a table of random numbers that is contracted; what it holds does not matter for the time."""
    vocabulary, width = SIZES[size]
    random = torch.Generator().manual_seed(0)
    if kind == "token_mps":
        modes = padded_binary_modes(width)
        ranks = tt_ranks(modes, RANKS[kind])
        packed = torch.randn(vocabulary, train_size(modes, ranks), generator=random)
        return TokenMPS.of(packed, in_features=width, modes=modes, ranks=ranks, codec="fp32")
    in_modes, out_modes = balanced_modes(width, 3), balanced_modes(vocabulary, 3)
    ranks = tt_ranks([i * o for i, o in zip(in_modes, out_modes, strict=True)], RANKS[kind])
    shapes = zip(ranks, in_modes, out_modes, ranks[1:], strict=False)
    cores = [torch.randn(shape, generator=random) / shape[0] ** 0.5 for shape in shapes]
    return TTMatrix.of(cores, (vocabulary, width), "fp32")


def _rows(redis: RedisServer) -> list[dict[str, Any]]:
    """Return microseconds per look-up of so many different rows."""
    found = []
    for size in SIZES:
        for kind in RANKS:
            matrix = table(kind, size).as_stored()
            for batch in BATCHES:
                redis.client.flushall()
                ids = Random(batch).sample(range(matrix.shape[0]), batch)
                found.append({"table": size, "format": kind, "rows": batch} | asyncio.run(_ways(matrix, ids, redis)))
                print(found[-1], flush=True)
    return found


async def _ways(matrix: Matrix, ids: list[int], redis: RedisServer) -> dict[str, float]:
    metrics = Metrics()
    tier = RedisTier(redis.url, PATIENCE_SECONDS, 3600, metrics)
    # Each turn has a cache of its own, as a replica has that just started; they measure for themselves, too, which
    # would hold up the event loop later.
    first, *others = [_cache(matrix, tier, metrics) for _ in range(1 + TURNS)]
    tier.open()
    await tier.measured()
    wanted, times = np.array(ids), []
    await first.prefetch(ids)
    expected = first(wanted)
    while len(redis.stored("ttgpt:bench:*")) < len(ids):
        await asyncio.sleep(0.1)
    for other in others:
        began = time.perf_counter()
        await other.prefetch(ids)
        times.append(time.perf_counter() - began)
        assert np.array_equal(other(wanted), expected)
    await tier.close()
    return {
        "contraction_us": _micro(lambda: matrices.rows(matrix, wanted)),
        "local_us": _micro(lambda: first(wanted)),
        "redis_us": round(1e6 * min(times), 1),
    }


def _cache(matrix: Matrix, tier: RedisTier, metrics: Metrics) -> CachedRows:
    made = CachedRows(matrix, "bench", "ttgpt:bench:wte", LocalTier(ROOM_BYTES), tier, metrics)
    made.auto = False
    return made


def _micro(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return round(1e6 * min(times), 1)


def _starts(redis: RedisServer) -> list[dict[str, Any]]:
    """Return what a replica's head with TT-matrix cores costs at start, without Redis, with an empty and a warm one."""
    found = []
    for size in SIZES:
        form = table("tt_matrix", size)
        shapes: list[Shape] = []
        tensors, spec = {name: array(tensor) for name, tensor in form.tensors().items()}, form.spec()

        def head(cache: ContractionCache, tensors: Arrays = tensors, spec: Spec = spec) -> Matrix:
            return cache.make(Owner("0" * 64, "lm_head", True), tensors, spec)

        def noted(span: Span, shape: Shape, compute: Callable[[], Product], shapes: list[Shape] = shapes) -> Product:
            shapes.append(shape)
            return compute()

        merged(tensors, spec, noted)
        redis.client.flushall()
        alone = [_attach(head, None) for _ in range(STARTS)]
        empty = []
        for _ in range(STARTS):
            redis.client.flushall()
            empty.append(_attach(head, redis))
        blocks = len([key for key in redis.stored() if "cores" in key])
        warm = [_attach(head, redis) for _ in range(STARTS)]
        found.append(
            {
                "table": size,
                "products_mb": round(sum(prod(shape) for shape in shapes) * 4e-6, 2),
                "blocks": blocks,
                "alone_ms": round(1000 * min(alone), 1),
                "empty_redis_ms": round(1000 * min(empty), 1),
                "warm_redis_ms": round(1000 * min(warm), 1),
            }
        )
        print(found[-1], flush=True)
    return found


def _attach(head: Callable[[ContractionCache], Matrix], redis: RedisServer | None) -> float:
    """Return the seconds in which a new replica's cache makes a head ready, as it does when the service starts."""
    with tempfile.TemporaryDirectory() as folder:
        url = None if redis is None else redis.url
        settings = Settings(models=(Path(folder),), cache="always", redis_url=url, cache_timeout_ms=10_000, threads=2)

    async def run() -> float:
        cache = ContractionCache(settings, Metrics())
        cache.open()
        if cache.redis is not None:
            cache.redis.open()
            await cache.redis.measured()
        began = time.perf_counter()
        await asyncio.to_thread(head, cache)
        seconds = time.perf_counter() - began
        while redis is not None and not [key for key in redis.stored() if "cores" in key]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # in which the rest is written
        await cache.close()
        return seconds

    return asyncio.run(run())


if __name__ == "__main__":
    main()
