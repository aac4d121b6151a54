"""The engine: turns, bounds, cancellation, failures, drain. What generations do to each other is in test_batch."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from service.engine.engine import Engine
from service.engine.generation import Generation
from service.engine.jobs import Job, Request
from service.engine.models import LoadedModel
from service.errors import ClientGoneError, DrainingError, OverloadedError, RequestFailedError
from service.metrics import Metrics
from service.settings import Settings
from tests.service.conftest import generation, sample, serving, wait_until
from tests.service.engine.test_batch import Rounds


class Steps(Job[int]):
    """Takes a number of steps, each of which may have to wait for `gate`."""

    def __init__(self, count: int, gate: threading.Event | None = None, log: list[str] | None = None) -> None:
        super().__init__("tiny-fp32")
        self.taken = 0
        self._count = count
        self._gate = gate
        self._log = log

    def step(self) -> bool:
        if self._gate is not None:
            self._gate.wait()
        self.taken += 1
        if self._log is not None:
            self._log.append(f"{self._count}")
        self.mailbox.put(self.taken)
        if self.taken == self._count:
            self.mailbox.put(None)
        return self.taken == self._count


class Broken(Job[int]):
    def step(self) -> bool:
        raise ZeroDivisionError


def bounded(settings: Settings, max_batch: int, max_waiting: int) -> Engine:
    update = {"max_batch": max_batch, "max_waiting": max_waiting}
    return Engine(settings.model_copy(update=update), Metrics())


@asynccontextmanager
async def running(engine: Engine) -> AsyncIterator[Engine]:
    engine.start()
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.close)


async def events_of(job: Steps) -> list[int]:
    return [event async for event in job.mailbox.events()]


def run(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


def test_jobs_take_turns(settings: Settings) -> None:
    async def test() -> None:
        gate, log = threading.Event(), list[str]()
        async with running(bounded(settings, 4, 4)) as engine:
            engine.submit(Steps(1, gate))  # holds the first turn until all are there
            jobs = [Steps(2, log=log), Steps(3, log=log), Steps(4, log=log)]
            for job in jobs:
                engine.submit(job)
            gate.set()
            assert [await events_of(job) for job in jobs] == [[1, 2], [1, 2, 3], [1, 2, 3, 4]]
        assert "".join(log) == "234" + "234" + "34" + "4"

    run(test)


def test_a_full_engine_refuses(settings: Settings) -> None:
    async def test() -> None:
        gate = threading.Event()
        async with running(bounded(settings, 1, 1)) as engine:
            jobs = [Steps(1, gate), Steps(1, gate)]
            for job in jobs:
                engine.submit(job)
            with pytest.raises(OverloadedError):
                engine.submit(Steps(1))
            gate.set()
            assert [await events_of(job) for job in jobs] == [[1], [1]]

    run(test)


def test_nobody_works_for_who_went_away(settings: Settings) -> None:
    async def test() -> None:
        gate = threading.Event()
        async with running(bounded(settings, 1, 2)) as engine:
            current, queued, neighbour = Steps(100, gate), Steps(100), Steps(3)
            for job in (current, queued, neighbour):
                engine.submit(job)
            current.mailbox.cancel()
            queued.mailbox.cancel()
            gate.set()
            for job in (current, queued):
                with pytest.raises(ClientGoneError):
                    await events_of(job)
            assert await events_of(neighbour) == [1, 2, 3]
        assert current.taken <= 1
        assert queued.taken == 0

    run(test)


def test_a_broken_job_fails_alone(settings: Settings) -> None:
    async def test() -> None:
        async with running(bounded(settings, 2, 2)) as engine:
            broken, sound = Broken("tiny-fp32"), Steps(3)
            engine.submit(broken)
            engine.submit(sound)
            with pytest.raises(RequestFailedError):
                await anext(broken.mailbox.events())
            assert await events_of(sound) == [1, 2, 3]

    run(test)


def test_closing_finishes_what_was_accepted(settings: Settings) -> None:
    async def test() -> None:
        gate = threading.Event()
        engine = bounded(settings, 1, 4)
        engine.start()
        jobs = [Steps(5, gate) for _ in range(4)]
        for job in jobs:
            engine.submit(job)
        closing = asyncio.create_task(asyncio.to_thread(engine.close))
        await asyncio.sleep(0.05)
        with pytest.raises(DrainingError):
            engine.submit(Steps(1))
        gate.set()
        await closing
        assert [len(await events_of(job)) for job in jobs] == [5] * 4

    run(test)


def test_an_overloaded_server_answers_429(settings: Settings, tiny: LoadedModel) -> None:
    small = settings.model_copy(update={"max_batch": 1, "max_waiting": 0})
    engine = Engine(small, Metrics())
    gate = threading.Event()

    async def occupy() -> None:
        engine.submit(Steps(1, gate))  # holds the thread, so that the only slot stays taken
        engine.submit(generation(tiny, engine.metrics))

    with serving(small, engine) as client:
        asyncio.run(occupy())
        answer = client.post("/generate", json={"inputs": "x", "parameters": {"max_new_tokens": 1}})
        streamed = client.post("/generate_stream", json={"inputs": "x", "parameters": {"max_new_tokens": 1}})
        assert (answer.status_code, answer.json()["error_type"]) == (429, "overloaded")
        assert streamed.status_code == 429
        assert 1 <= int(answer.headers["retry-after"]) <= 120
        assert sample(client, "ttgpt_requests_rejected_total", reason="queue_full") == 2
        gate.set()


class Remembering(Engine):
    """Remembers the jobs it was given."""

    def __init__(self, settings: Settings) -> None:
        super().__init__(settings, Metrics())
        self.jobs: list[Request[Any]] = []

    def submit_all(self, requests: Sequence[Request[Any]]) -> None:
        super().submit_all(requests)
        self.jobs.extend(requests)


@pytest.mark.parametrize("route", ["/generate", "/generate_stream", "/embeddings", "/v1/completions"])
def test_a_client_that_hangs_up_frees_its_place(settings: Settings, route: str) -> None:
    """The thread is held by another job when a queued client hangs up; its own is never begun."""
    engine = Remembering(settings.model_copy(update={"max_batch": 1}))
    gate = threading.Event()
    name = {"model_name": "tiny-fp32"}

    async def occupy() -> None:
        engine.submit(Steps(1, gate))

    with serving(settings, engine) as client:
        asyncio.run(occupy())
        with pytest.raises(httpx.TimeoutException), httpx.Client(base_url=client.base_url, timeout=0.5) as impatient:
            impatient.post(route, json={"prompt" if route.startswith("/v1") else "inputs": "x"})
        wait_until(lambda: engine.jobs[-1].mailbox.cancelled)
        gate.set()
        wait_until(lambda: sample(client, "ttgpt_num_requests_waiting", **name) == 0)
        wait_until(lambda: sample(client, "ttgpt_num_requests_running", **name) == 0)
        assert len(engine.jobs) == 2
        assert sample(client, "ttgpt_generation_tokens_total", **name) == 0
        assert sample(client, "ttgpt_prompt_tokens_total", **name) == 0
        aborted = sample(client, "ttgpt_request_success_total", finished_reason="abort", **name)
        assert aborted == (route != "/embeddings")


@pytest.mark.parametrize("route", ["/generate", "/generate_stream", "/v1/completions"])
def test_a_client_that_hangs_up_while_its_text_is_written_gets_no_further_step(settings: Settings, route: str) -> None:
    engine = Remembering(settings)

    async def hold() -> Rounds:
        rounds = Rounds()
        engine.submit(rounds)
        await rounds.begin()
        return rounds

    asked = (
        {"prompt": "x", "max_tokens": 50} if "v1" in route else {"inputs": "x", "parameters": {"max_new_tokens": 50}}
    )
    with serving(settings, engine) as client:
        rounds = asyncio.run(hold())
        with ThreadPoolExecutor(1) as clients, httpx.Client(base_url=client.base_url, timeout=1) as impatient:
            call = clients.submit(impatient.post, route, json=asked)
            wait_until(lambda: len(engine.jobs) == 2)
            asyncio.run(rounds.let(5))
            assert isinstance(call.exception(), httpx.TimeoutException)
        (_, job) = engine.jobs
        assert isinstance(job, Generation)
        written = job.generated
        assert written > 0
        wait_until(lambda: job.mailbox.cancelled)
        asyncio.run(rounds.let(2))
        assert job.generated == written
        assert (
            sample(client, "ttgpt_num_requests_running", model_name="tiny-fp32") == 1
        )  # the one that holds the rounds
        rounds.end()
