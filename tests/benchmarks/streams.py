"""Clients that read streams: `python -m tests.benchmarks.streams URL`, one line of JSON on stdout.

Plain asyncio connections, because a client shares the cores with the service that it measures.
"""

import argparse
import asyncio
import json
import statistics
import time
from itertools import pairwise
from typing import Any
from urllib.parse import urlsplit

PERCENT = {"p50": 50, "p95": 95}


async def arrivals(host: str, port: int, body: bytes) -> list[float]:
    """Send one request; return when it was sent and when each token came, in seconds.

    Raises:
        RuntimeError: if the answer is not a stream.
    """
    reader, writer = await asyncio.open_connection(host, port)
    head = f"POST /generate_stream HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n"
    times = [time.perf_counter()]
    writer.write(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
    status = await reader.readline()
    if b" 200 " not in status:
        raise RuntimeError(f"the service answered {status!r}")
    while line := await reader.readline():
        if line.startswith(b"data:"):
            times.append(time.perf_counter())
    writer.close()
    await writer.wait_closed()
    return times


async def client(host: str, port: int, body: bytes, requests: int) -> list[list[float]]:
    """Send requests one after the other."""
    return [await arrivals(host, port, body) for _ in range(requests)]


async def measure(url: str, body: bytes, clients: int, requests: int, new_tokens: int) -> dict[str, Any]:
    """Return tokens per second and the percentiles of the latencies.

    Raises:
        RuntimeError: if a stream has fewer or more than `new_tokens` tokens.
    """
    where = urlsplit(url)
    each = [client(str(where.hostname), int(where.port or 80), body, requests) for _ in range(clients)]
    streams = [stream for answers in await asyncio.gather(*each) for stream in answers]
    if wrong := {len(stream) - 1 for stream in streams} - {new_tokens}:
        raise RuntimeError(f"{new_tokens} tokens were asked for, {wrong} came")
    gaps = [later - earlier for stream in streams for earlier, later in pairwise(stream[1:])]
    seconds = max(stream[-1] for stream in streams) - min(stream[0] for stream in streams)
    return {
        "tokens_per_s": len(streams) * new_tokens / seconds,
        "first_token_ms": percentiles([stream[1] - stream[0] for stream in streams]),
        "inter_token_ms": percentiles(gaps),
    }


def percentiles(seconds: list[float]) -> dict[str, float]:
    """Return the percentiles of PERCENT in milliseconds."""
    if len(seconds) == 1:
        return dict.fromkeys(PERCENT, 1e3 * seconds[0])
    cuts = statistics.quantiles(seconds, n=100, method="inclusive")
    return {name: 1e3 * cuts[percent - 1] for name, percent in PERCENT.items()}


def main() -> None:
    """Measure once."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.streams", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--body", required=True)
    parser.add_argument("--clients", type=int, required=True)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--new-tokens", type=int, required=True)
    given = parser.parse_args()
    body = given.body.encode()
    print(json.dumps(asyncio.run(measure(given.url, body, given.clients, given.requests, given.new_tokens))))


if __name__ == "__main__":
    main()
