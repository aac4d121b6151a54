"""A service at full load for a while: nothing fails, and memory does not grow."""

import time
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.load import Body, Load, Watch, loaded, percentile_ms
from tests.e2e.replica import replica

TEXTS = ("The old man looked at the sea", "In the morning", "She said that", "A ship came in, and")
HANGING_UP = 7  # every so manieth request of a client is left in the middle


def bodies() -> list[Body]:
    """Return a mix of all that the service does."""
    return [
        ("/generate", {"inputs": TEXTS[0], "parameters": {"max_new_tokens": 24}}),
        ("/generate", {"inputs": 6 * TEXTS[3], "parameters": {"max_new_tokens": 16, "do_sample": True, "seed": 3}}),
        ("/v1/completions", {"prompt": list(TEXTS[1:3]), "max_tokens": 12, "n": 2, "temperature": 0.9}),
        ("/embeddings", {"inputs": list(TEXTS), "encoding_format": "base64"}),
        ("/v1/embeddings", {"input": list(TEXTS)}),
        ("/tokenize", {"inputs": 20 * TEXTS[0]}),
    ]


def soak(model: Path, folder: Path, seconds: float, settle_seconds: float, clients: int = 12) -> dict[str, Any]:
    """Load a service for so many seconds; return the figures.

    Asserted is that nothing fails. The slope of the resident memory counts from `settle_seconds` on.
    """
    asked = bodies()
    turns = [0] * clients

    async def ask(load: Load, client: httpx.AsyncClient, number: int) -> None:
        turns[number] += 1
        route, body = asked[(turns[number] + number) % len(asked)]
        if turns[number] % HANGING_UP == 0:
            await _leave(client)
        else:
            await load.post(client, route, body)

    with replica([model], folder / "soak.log") as service:
        with Watch(service.rss_mb, every_seconds=1.0) as memory, loaded(service.url, ask, clients) as load:
            time.sleep(seconds)
        found = service.metrics()
        assert (load.failed, service.tracebacks()) == (0, 0), load.statuses
        assert set(load.statuses) == {200}, load.statuses
        assert found.sum("num_requests_running") == found.sum("num_requests_waiting") == 0
        return {
            "minutes": round(seconds / 60, 2),
            "requests": load.sent,
            "hung_up": sum(turn // HANGING_UP for turn in turns),
            "failed": load.failed,
            "tokens": found.sum("generation_tokens_total"),
            "latency_p50_ms": percentile_ms(load.seconds[200], 0.5),
            "latency_p99_ms": percentile_ms(load.seconds[200], 0.99),
            "rss_mb_begin": round(memory.values[0], 1),
            "rss_mb_settled": round(_at(memory, settle_seconds), 1),
            "rss_mb_end": round(memory.values[-1], 1),
            "rss_mb_per_minute": round(memory.slope_per_minute(settle_seconds), 3),
        }


async def _leave(client: httpx.AsyncClient) -> None:
    """Begin a stream and go away after its first event."""
    body = {"inputs": TEXTS[0], "parameters": {}}
    async with client.stream("POST", "/generate_stream", json=body) as answer:
        async for _ in answer.aiter_lines():
            break


def _at(watch: Watch, seconds: float) -> float:
    """Return the first value after so many seconds, or the last one."""
    later = [value for t, value in zip(watch.times, watch.values, strict=True) if t >= seconds]
    return later[0] if later else watch.values[-1]
