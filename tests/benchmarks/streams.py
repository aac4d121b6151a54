"""Clients that read streams: `python -m tests.benchmarks.streams URL`, one line of JSON on stdout."""

import argparse
import asyncio
import json
from typing import Any

from compressor.bench.endpoint import Endpoint
from compressor.bench.streams import arrivals, gaps, measure, percentiles


async def measure_arrival(
    endpoint: Endpoint, body: bytes, clients: int, arriving: bytes, after: float
) -> dict[str, Any]:
    """Return the latencies of streams before and while another prompt is read, see `beside`.

    Args:
        endpoint: of the service.
        body: of every stream's request.
        clients: so many streams.
        arriving: the request with the prompt, for one token.
        after: seconds from the streams' beginning until it is sent.
    """
    running = [asyncio.create_task(arrivals(endpoint, body)) for _ in range(clients)]
    await asyncio.sleep(after)
    sent, answered = await arrivals(endpoint, arriving)
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
    endpoint, body = Endpoint(given.url), given.body.encode()
    if given.arriving:
        measured = measure_arrival(endpoint, body, given.clients, given.arriving.encode(), given.after)
    else:
        measured = measure(endpoint, [[body] * given.requests] * given.clients, given.new_tokens)
    print(json.dumps(asyncio.run(measured)))


if __name__ == "__main__":
    main()
