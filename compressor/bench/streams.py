"""Clients that read streams, and what they wait for.

Plain asyncio connections, because a client shares the cores with the service that it measures.
"""

import asyncio
import math
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from compressor.bench.endpoint import Endpoint, refused

PERCENT = {"p50": 50, "p95": 95}
REQUEST_SECONDS = 600  # after which a request is given up
REFUSAL_BYTES = 4096  # of a refusal's body that are read
Stream = list[float]  # when the request was sent, and when each token came, in seconds


async def arrivals(endpoint: Endpoint, body: bytes) -> Stream:
    """Send one request; return when it was sent and when each token came, in seconds.

    Raises:
        RuntimeError: if the answer is not a whole stream.
        OSError: if there is none.
    """
    host, port = endpoint.address
    try:
        async with asyncio.timeout(REQUEST_SECONDS):
            reader, writer = await asyncio.open_connection(host, port, ssl=endpoint.tls)
            try:
                return await _read(reader, writer, _request(endpoint, body))
            finally:
                writer.close()
                await writer.wait_closed()
    except TimeoutError as error:
        raise RuntimeError(f"a request took longer than {REQUEST_SECONDS} seconds") from error


def _request(endpoint: Endpoint, body: bytes) -> bytes:
    headers = {**endpoint.headers, "Content-Type": "application/json", "Content-Length": len(body)}
    lines = [f"POST {endpoint.path('/generate_stream')} HTTP/1.1", *(f"{name}: {headers[name]}" for name in headers)]
    return "\r\n".join([*lines, "", ""]).encode() + body


async def _read(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> Stream:
    times = [time.perf_counter()]
    writer.write(request)
    status = await reader.readline()
    if b" 200 " not in status:
        while (await reader.readline()).strip():  # the headers
            pass
        code = status.decode(errors="replace").split()[1:2]
        raise refused("".join(code) or "nothing", await reader.read(REFUSAL_BYTES))
    while line := await reader.readline():
        if line.startswith(b"data:"):
            if line.startswith(b'data:{"error"'):
                raise RuntimeError(f"a stream broke off: {line.decode(errors='replace').strip()}")
            times.append(time.perf_counter())
    return times


async def client(endpoint: Endpoint, bodies: Sequence[bytes]) -> list[Stream]:
    """Send requests one after the other."""
    return [await arrivals(endpoint, body) for body in bodies]


async def measure(endpoint: Endpoint, clients: Sequence[Sequence[bytes]], new_tokens: int) -> dict[str, Any]:
    """Return tokens per second and the percentiles of the latencies.

    Args:
        endpoint: of the service.
        clients: the requests of each, which it sends one after the other.
        new_tokens: that every stream must have.

    Raises:
        RuntimeError: if one has fewer or more, or is refused.
        OSError: if nothing answers.
    """
    answers = await asyncio.gather(*(client(endpoint, bodies) for bodies in clients))
    streams = [stream for answered in answers for stream in answered]
    if wrong := {len(stream) - 1 for stream in streams} - {new_tokens}:
        raise RuntimeError(f"{new_tokens} tokens were asked for, {wrong} came")
    seconds = max(stream[-1] for stream in streams) - min(stream[0] for stream in streams)
    return {
        "tokens_per_s": len(streams) * new_tokens / seconds,
        "first_token_ms": percentiles([stream[1] - stream[0] for stream in streams]),
        "inter_token_ms": percentiles(gaps(streams, -math.inf, math.inf)),
    }


def gaps(streams: list[Stream], begin: float, end: float) -> list[float]:
    """Return the seconds between two tokens of a stream, wherever the later one came after `begin` and until `end`."""
    pairs = (pair for stream in streams for pair in pairwise(stream[1:]))
    return [later - earlier for earlier, later in pairs if begin < later <= end]


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return the percentiles of PERCENT in milliseconds."""
    if len(seconds) == 1:
        return dict.fromkeys(PERCENT, 1e3 * seconds[0])
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {name: 1e3 * cuts[percent - 1] for name, percent in PERCENT.items()}
