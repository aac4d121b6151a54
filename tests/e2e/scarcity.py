"""A KV cache that is too small: texts that begin alike share it, the youngest wait, and clients leave at any time."""

import time
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any

import httpx

from service.engine.models import load as load_model
from tests.e2e.load import Body, Load, Questions, loaded, percentile_ms
from tests.e2e.replica import replica
from tests.service.conftest import wait_until

RUNNING, WAITING = 64, 512
LONG_TEXTS = 2  # that there is room for
TEXTS = ("The old man looked at the sea. ", "In the morning the captain said nothing. ")
LEAVING = 5  # every so manieth request is left, somewhere between its head and its last token
IMPATIENCE_SECONDS = 0.3


def scarcity(model: Path, folder: Path, seconds: float, clients: int = RUNNING + WAITING) -> dict[str, Any]:
    """Let clients ask for what 64 running requests cannot all have; return the figures.

    Asserted are: nobody fails, everybody is told what who is alone is told, and in the end nothing is held.
    """
    loaded_model = load_model(model)
    text_bytes = loaded_model.context * loaded_model.decoder.kv_bytes_per_token("fp16")
    questions, random = Questions(_bodies()), Random(0)
    with replica([model], folder / "alone.log", prefix_cache="false") as service:
        questions.learn(service.url)
    left = 0

    async def ask(load: Load, client: httpx.AsyncClient, number: int) -> None:
        nonlocal left
        if random.randrange(LEAVING):
            await questions.ask(load, client, number)
            return
        left += 1
        route, body = random.choice(_bodies())
        with suppress(httpx.TimeoutException):
            await client.post(route, json=body, timeout=random.uniform(0.005, IMPATIENCE_SECONDS))

    room = {"max_batch": str(RUNNING), "max_waiting": str(WAITING), "kv_bytes": str(LONG_TEXTS * text_bytes)}
    with replica([model], folder / "scarcity.log", **room, max_tokens="1000000000") as service:
        with loaded(service.url, ask, clients) as load:
            time.sleep(seconds)
        wait_until(lambda: service.metrics().sum("num_requests_running") == 0)
        found = service.metrics()
        assert (load.failed, load.wrong, service.tracebacks()) == (0, [], 0), load.statuses
        assert found.sum("num_requests_waiting") == found.sum("kv_cache_usage_ratio") == 0
        assert found.sum("prefix_cache_hits_total") > 0
        assert found.sum("num_preemptions_total") > 0
        return {
            "clients": clients,
            "texts": LONG_TEXTS,
            "answered": load.statuses[200],
            "left": left,
            "sent_back": found.sum("num_preemptions_total"),
            "found": round(found.sum("prefix_cache_hits_total") / found.sum("prefix_cache_queries_total"), 2),
            "latency_p50_ms": percentile_ms(load.seconds[200], 0.5),
            "latency_p99_ms": percentile_ms(load.seconds[200], 0.99),
        }


def _bodies() -> list[Body]:
    """Return short prompts and long ones, of which some begin alike."""
    bodies: list[Body] = []
    for number in range(12):
        text = TEXTS[number % 2] * (1 + number % 7) + f"{number} "
        drawn: dict[str, Any] = {"do_sample": True, "seed": number} if number % 3 else {}
        bodies.append(("/generate", {"inputs": text, "parameters": {"max_new_tokens": 24 + 24 * number, **drawn}}))
    scored = {"prompt": 3 * TEXTS[0], "max_tokens": 9, "echo": True, "logprobs": 1, "temperature": 0}
    return [*bodies, ("/v1/completions", scored)]
