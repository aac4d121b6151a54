"""What becomes of a service that is asked for too much, that is left in the middle, or that is killed."""

import asyncio
import hashlib
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from tests.e2e.load import Load, Questions, Watch, loaded, percentile_ms
from tests.e2e.replica import Replica, replica
from tests.service.conftest import wait_until

BATCH, WAITING = 4, 8
CAPACITY = BATCH + WAITING
IMPATIENCE_SECONDS = 0.5  # until a client that was refused comes back
SLOTS = {"max_batch": str(BATCH), "max_waiting": str(WAITING)}
TEXT = "The old man looked at the sea"
LONG = 400  # tokens of a text that is not written to its end before its client has left


def overload(model: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """Send ten times as many requests as fit; return the figures.

    Asserted are: who is admitted is answered, whole; everybody else gets 429 and is told when to come back.
    """
    new = 24
    body = {"inputs": TEXT, "parameters": {"max_new_tokens": new, "details": True}}
    late: list[str] = []

    async def ask(load: Load, client: httpx.AsyncClient, _number: int) -> None:
        answer = await load.post(client, "/generate", body)
        if answer is not None and answer.status_code == 429:
            late.append(answer.headers["retry-after"])
            await asyncio.sleep(IMPATIENCE_SECONDS)
        elif answer is not None and answer.json()["details"]["generated_tokens"] != new:
            load.wrong.append(answer.text)

    with replica([model], folder / "overload.log", **SLOTS) as service:
        with Watch(service.rss_mb) as memory, loaded(service.url, ask, 10 * CAPACITY) as load:
            time.sleep(seconds)
        found = service.metrics()
        assert set(load.statuses) == {200, 429}, load.statuses
        assert (load.wrong, service.tracebacks()) == ([], 0)
        assert found.sum("requests_rejected_total", reason="queue_full") == load.statuses[429] == len(late)
        assert found.sum("request_success_total", finished_reason="length") == load.statuses[200]
        assert all(1 <= int(value) <= 120 for value in late)
        assert found.sum("num_requests_running") == found.sum("num_requests_waiting") == 0
        return {
            "clients": 10 * CAPACITY,
            "capacity": CAPACITY,
            "answered": load.statuses[200],
            "refused": load.statuses[429],
            "refusal_p50_ms": percentile_ms(load.seconds[429], 0.5),
            "refusal_p99_ms": percentile_ms(load.seconds[429], 0.99),
            "rss_mb_begin": round(memory.values[0], 1),
            "rss_mb_end": round(memory.values[-1], 1),
            "rss_mb_per_minute": round(memory.slope_per_minute(seconds / 2), 2),
        }


def hang_ups(model: Path, folder: Path, seconds: float) -> dict[str, Any]:
    """Let half of the clients go away for good in mid-stream; return the figures.

    Asserted are: who stays is told the same as without them, and every slot of who has left is free in the end.
    """
    with replica([model], folder / "hang-ups.log", max_batch=str(2 * BATCH)) as service:
        expected = httpx.post(f"{service.url}/generate", json=_stream_body(), timeout=60).json()["generated_text"]
        staying = _streaming(service, expected, seconds, leave=False)
        leaving = _streaming(service, expected, seconds, leave=True)
        wait_until(lambda: service.metrics().sum("num_requests_running") == 0)
        found = service.metrics()
        assert service.tracebacks() == 0
        assert found.sum("request_success_total", finished_reason="abort") == leaving["left"] == BATCH
        assert found.sum("kv_cache_usage_ratio") == 0
        faster = leaving["tokens_per_second"] / staying["tokens_per_second"]
        return {"clients": 2 * BATCH, "all_stay": staying, "half_leave": leaving, "ratio": round(faster, 2)}


def _stream_body(new_tokens: int = 32) -> dict[str, Any]:
    return {"inputs": TEXT, "parameters": {"max_new_tokens": new_tokens}}


def _streaming(service: Replica, expected: str, seconds: float, *, leave: bool) -> dict[str, float]:
    """Return how fast those streams were whose clients stay: the first half."""
    tokens = left = 0
    away: set[int] = set()

    async def read(load: Load, client: httpx.AsyncClient, number: int) -> None:
        nonlocal tokens, left
        if number in away:
            await asyncio.sleep(0.1)
            return
        goes = leave and number >= BATCH
        async with client.stream("POST", "/generate_stream", json=_stream_body(LONG if goes else 32)) as answer:
            load.statuses[answer.status_code] += 1
            events = [event async for event in _events(answer, 2 if goes else None)]
        if goes:
            left += 1
            away.add(number)
        else:
            tokens += len(events) if number < BATCH else 0
            if '"generated_text":"' not in events[-1] or expected not in httpx.Response(
                200, text=events[-1].removeprefix("data:")
            ).json().get("generated_text", ""):
                load.wrong.append(events[-1])

    began = time.monotonic()
    with loaded(service.url, read, 2 * BATCH) as load:
        time.sleep(seconds)
        wait_until(lambda: left == (BATCH if leave else 0))  # on a busy machine they are late
    assert set(load.statuses) == {200}, load.statuses
    assert load.wrong == []
    return {"tokens_per_second": round(tokens / (time.monotonic() - began), 1), "left": left}


async def _events(answer: httpx.Response, most: int | None) -> Any:
    """Yield the events of a stream, at most so many."""
    number = 0
    async for line in answer.aiter_lines():
        if line.startswith("data:"):
            yield line
            number += 1
            if number == most:
                return


def kill_and_restart(model: Path, folder: Path) -> dict[str, Any]:
    """Kill a loaded service with SIGKILL and start it again; return the figures.

    Asserted are: it becomes ready again on the same port, the artefact's files are untouched, answers are the same.
    """
    questions = Questions([("/generate", _stream_body()), ("/embeddings", {"inputs": TEXT})])
    files = _checksums(model)
    with replica([model], folder / "killed.log", **SLOTS) as service:
        first = service.start_seconds
        questions.learn(service.url)
        with loaded(service.url, _ask_patiently(questions), CAPACITY) as load:
            wait_until(lambda: load.statuses[200] > CAPACITY)
            service.kill()
            wait_until(lambda: load.statuses[0] > 0)
            service.start()
            answered = load.statuses[200]
            wait_until(lambda: load.statuses[200] > answered + CAPACITY)
        assert load.wrong == []
        assert set(load.statuses) <= {0, 200, 503}, load.statuses
        assert _checksums(model) == files
        return {"ready_seconds": round(first, 2), "ready_again_seconds": round(service.start_seconds, 2)}


def _ask_patiently(questions: Questions) -> Any:
    async def ask(load: Load, client: httpx.AsyncClient, number: int) -> None:
        failed = load.failed
        await questions.ask(load, client, number)
        if load.failed > failed:
            await asyncio.sleep(0.1)

    return ask


def _checksums(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def drain(model: Path, folder: Path) -> dict[str, Any]:
    """Stop a service whose slots and queue are full; return the figures.

    Asserted are: every accepted request is answered, whole, and the process ends with 0.
    """
    new = 48
    body = {"inputs": TEXT, "parameters": {"max_new_tokens": new, "details": True}}
    answers: list[httpx.Response] = []
    late = 0

    def ask(url: str) -> None:
        nonlocal late
        try:
            answer = httpx.post(f"{url}/generate", json=body, timeout=120)
        except httpx.ConnectError:  # came after the end, so it was never accepted
            late += 1
            return
        if answer.status_code == 503:  # refused because the service is stopping
            late += 1
        else:
            answers.append(answer)

    with replica([model], folder / "drain.log", **SLOTS) as service:
        threads = [threading.Thread(target=ask, args=[service.url]) for _ in range(CAPACITY)]
        for thread in threads:
            thread.start()
        wait_until(lambda: _inside(service) >= BATCH + 1 or len(answers) == CAPACITY)
        found = service.metrics()
        inside, waiting = found.sum("num_requests_running"), found.sum("num_requests_waiting")
        began = time.monotonic()
        service.terminate()
        for thread in threads:
            thread.join()
        code = service.process.wait(timeout=120)
        seconds = time.monotonic() - began
        assert code == 0
        assert service.tracebacks() == 0
        assert {answer.status_code for answer in answers} == {200}
        assert len(answers) + late == CAPACITY
        assert len(answers) >= inside + waiting
        assert all(answer.json()["details"]["generated_tokens"] == new for answer in answers)
        return {"accepted": len(answers), "queued": waiting, "lost": 0, "seconds": round(seconds, 2)}


def _inside(service: Replica) -> float:
    """Return how many requests run and wait; one that just ends counts."""
    found = service.metrics()
    return found.sum("num_requests_running") + found.sum("num_requests_waiting")
