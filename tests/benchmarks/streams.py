"""Clients that read streams: `python -m tests.benchmarks.streams URL`, one line of JSON on stdout.

Plain asyncio connections, because a client shares the cores with the service that it measures.
"""

import argparse
import asyncio
import json
import math
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
    each = [client(*_address(url), body, requests) for _ in range(clients)]
    streams = [stream for answers in await asyncio.gather(*each) for stream in answers]
    if wrong := {len(stream) - 1 for stream in streams} - {new_tokens}:
        raise RuntimeError(f"{new_tokens} tokens were asked for, {wrong} came")
    seconds = max(stream[-1] for stream in streams) - min(stream[0] for stream in streams)
    return {
        "tokens_per_s": len(streams) * new_tokens / seconds,
        "first_token_ms": percentiles([stream[1] - stream[0] for stream in streams]),
        "inter_token_ms": percentiles(gaps(streams, -math.inf, math.inf)),
    }


async def measure_arrival(url: str, body: bytes, clients: int, arriving: bytes, after: float) -> dict[str, Any]:
    """Return the latencies of streams before and while another prompt is read, see `beside`.

    Args:
        url: of the service.
        body: of every stream's request.
        clients: so many streams.
        arriving: the request with the prompt, for one token.
        after: seconds from the streams' beginning until it is sent.
    """
    running = [asyncio.create_task(arrivals(*_address(url), body)) for _ in range(clients)]
    await asyncio.sleep(after)
    sent, answered = await arrivals(*_address(url), arriving)
    return beside(await asyncio.gather(*running), sent, answered)


def beside(streams: list[list[float]], sent: float, answered: float) -> dict[str, Any]:
    """Return how long the prompt took and the time between tokens of the streams, in milliseconds.

    Args:
        streams: when each was asked for, and when its tokens came.
        sent, answered: when the prompt was sent, and when its first token came.

    Returns:
        "prompt_ms"; "before", from when all streams had begun; "while", to the next token of every stream.

    Raises:
        RuntimeError: if not all streams ran throughout.
    """
    begun, ended = max(stream[1] for stream in streams), min(stream[-1] for stream in streams)
    if not begun < sent < answered < ended:
        raise RuntimeError("a stream began after the prompt was sent, or ended before it was answered")
    last = max(next(time for time in stream if time > answered) for stream in streams)
    windows = {"before": gaps(streams, begun, sent), "while": gaps(streams, sent, last)}
    found = {name: percentiles(seconds) | {"max": 1e3 * max(seconds)} for name, seconds in windows.items()}
    return {"prompt_ms": 1e3 * (answered - sent)} | found


def gaps(streams: list[list[float]], begin: float, end: float) -> list[float]:
    """Return the seconds between two tokens of a stream, wherever the later one came after `begin` and until `end`."""
    pairs = (pair for stream in streams for pair in pairwise(stream[1:]))
    return [later - earlier for earlier, later in pairs if begin < later <= end]


def _address(url: str) -> tuple[str, int]:
    where = urlsplit(url)
    return str(where.hostname), int(where.port or 80)


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
    parser.add_argument("--arriving", help="a request that is sent beside one stream per client")
    parser.add_argument("--after", type=float, default=1.0, help="seconds after the streams")
    given = parser.parse_args()
    body = given.body.encode()
    if given.arriving:
        measured = measure_arrival(given.url, body, given.clients, given.arriving.encode(), given.after)
    else:
        measured = measure(given.url, body, given.clients, given.requests, given.new_tokens)
    print(json.dumps(asyncio.run(measured)))


if __name__ == "__main__":
    main()
