"""Clients that ask again and again, and what they were told."""

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from types import TracebackType
from typing import Any

import httpx

Body = tuple[str, dict[str, Any]]  # a route and what is posted there
Task = Callable[["Load", httpx.AsyncClient, int], Awaitable[None]]
PATIENCE_SECONDS = 120.0


@dataclass
class Load:
    """Some clients at work.

    Attributes:
        statuses: how often each came; 0 is a connection that failed.
        wrong: answers that were not the expected ones.
        seconds: of every answer, by status.
    """

    url: str
    task: Task
    clients: int
    statuses: Counter[int] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    seconds: dict[int, list[float]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    stopping: bool = False

    @property
    def sent(self) -> int:
        """Requests that were answered, well or not."""
        return self.statuses.total()

    @property
    def failed(self) -> int:
        """Requests that were neither answered nor refused for good reason."""
        return sum(number for status, number in self.statuses.items() if status not in (200, 429))

    async def post(self, client: httpx.AsyncClient, route: str, body: dict[str, Any]) -> httpx.Response | None:
        """Ask once; None if the connection failed."""
        began = time.monotonic()
        try:
            answer = await client.post(route, json=body)
        except httpx.TransportError:
            self.statuses[0] += 1
            return None
        self.statuses[answer.status_code] += 1
        self.seconds.setdefault(answer.status_code, []).append(time.monotonic() - began)
        return answer

    def run(self) -> None:
        """Work until `stopping`, and until every client has its last answer."""
        asyncio.run(self._run())

    async def _run(self) -> None:
        await asyncio.gather(*(self._client(number) for number in range(self.clients)))

    async def _client(self, number: int) -> None:
        """Ask over connections of its own: httpx looks through all of a shared pool at every request.

        Nothing is encrypted; `verify` only keeps every client from reading the certificates.
        """
        async with httpx.AsyncClient(base_url=self.url, timeout=PATIENCE_SECONDS, verify=False) as client:  # noqa: S501
            while not self.stopping:
                await self.task(self, client, number)


@contextmanager
def loaded(url: str, task: Task, clients: int) -> Iterator[Load]:
    """Keep clients at work during the block; when it has been left, all have their answers."""
    load = Load(url, task, clients)
    thread = threading.Thread(target=load.run)
    thread.start()
    try:
        yield load
    finally:
        load.stopping = True
        thread.join()


class Questions:
    """Bodies that are asked in turns, each with the only right answer."""

    def __init__(self, bodies: Sequence[Body]) -> None:
        """Know no answers yet."""
        self._bodies = list(bodies)
        self._answers: list[Any] = []
        self._turn = count()

    def learn(self, url: str) -> None:
        """Ask somebody who is well for the answers."""
        with httpx.Client(base_url=url, timeout=PATIENCE_SECONDS) as client:
            for route, body in self._bodies:
                answer = client.post(route, json=body)
                assert answer.status_code == 200, answer.text
                self._answers.append(_told(answer))

    async def ask(self, load: Load, client: httpx.AsyncClient, _number: int) -> None:
        """Ask the next question."""
        place = next(self._turn) % len(self._bodies)
        route, body = self._bodies[place]
        answer = await load.post(client, route, body)
        if answer is not None and answer.status_code == 200 and _told(answer) != self._answers[place]:
            load.wrong.append(f"{route} {body}")


def _told(answer: httpx.Response) -> dict[str, Any]:
    """Return the body without what belongs to the request rather than to its answer."""
    return {key: value for key, value in answer.json().items() if key not in ("id", "created")}


class Watch:
    """Samples something once in a while during a block.

    Attributes:
        times: in seconds since the block began.
        values: what was found then.
    """

    def __init__(self, look: Callable[[], float], every_seconds: float = 0.25) -> None:
        self.times: list[float] = []
        self.values: list[float] = []
        self._look = look
        self._every_seconds = every_seconds
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self._ended.set()
        self._thread.join()

    def slope_per_minute(self, after_seconds: float = 0.0) -> float:
        """Return the slope of the straight line nearest to the values, per minute."""
        points = [(t, v) for t, v in zip(self.times, self.values, strict=True) if t >= after_seconds]
        mean_t, mean_v = (sum(column) / len(points) for column in zip(*points, strict=True))
        spread = sum((t - mean_t) ** 2 for t, _ in points)
        return 60 * sum((t - mean_t) * (v - mean_v) for t, v in points) / spread if spread else 0.0

    def _run(self) -> None:
        began = time.monotonic()
        while not self._ended.is_set():
            self.times.append(time.monotonic() - began)
            self.values.append(self._look())
            self._ended.wait(self._every_seconds)


def percentile_ms(seconds: Sequence[float], share: float) -> float:
    """Return a percentile of some times in milliseconds, 0 of none."""
    ordered = sorted(seconds)
    return round(1000 * ordered[min(int(share * len(ordered)), len(ordered) - 1)], 1) if ordered else 0.0
