"""What the engine works on, and how its results reach the event loop."""

import asyncio
import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import AsyncIterator, Iterable
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.engine.models import LoadedModel
from service.errors import ClientGoneError, DeadlineError
from service.metrics import Metrics
from service.process.logs import CURRENT_REQUEST

Event = TypeVar("Event")
LONGEST_TURN_SECONDS = 0.005


class Mailbox(Generic[Event]):
    """Events on their way from the engine thread to one coroutine of the event loop.

    Attributes:
        cancelled: the client has gone; the engine looks before each step.
        news: whether `deliver` should wake the reader; for the engine thread.
    """

    def __init__(self, *, eager: bool = True) -> None:
        """Belong to the running event loop.

        Args:
            eager: wake the reader for every event, rather than only for the end.
        """
        self.cancelled = False
        self.news = False
        self.loop = asyncio.get_running_loop()
        self._eager = eager
        self._events: deque[Event | Exception | None] = deque()
        self._reader: asyncio.Future[None] | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def put(self, event: Event | Exception | None) -> None:
        """Add an event, an error that ends it all, or None for the end; `deliver` tells the reader."""
        self._events.append(event)
        self.news = self.news or self._eager or event is None or isinstance(event, Exception)

    def cancel(self) -> None:
        """Tell the engine that the client has gone."""
        self.cancelled = True
        if self._deadline is not None:
            self._deadline.cancel()

    def expire_after(self, seconds: float) -> None:
        """Give up with DeadlineError unless `cancel` is called earlier; for the event loop."""
        self._deadline = self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        self.cancelled = True
        self._events.append(DeadlineError())
        self.wake()

    def wake(self) -> None:
        """Let the reader look again; for the event loop."""
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def batches(self) -> AsyncIterator[list[Event]]:
        """Yield what has come so far, again and again until the end; raises the error that ended it."""
        while True:
            batch: list[Event] = []
            while self._events:
                event = self._events.popleft()
                if event is not None and not isinstance(event, Exception):
                    batch.append(event)
                    continue
                if batch:
                    yield batch
                if event is None:
                    return
                raise event
            if batch:
                yield batch
            elif not self._events:
                self._reader = self.loop.create_future()
                await self._reader

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events until the end; raises the error that ended them."""
        async for batch in self.batches():
            for event in batch:
                yield event


def deliver(mailboxes: Iterable[Mailbox[Any]]) -> None:
    """Wake the readers of those that have news, with one call per event loop. For the engine thread.

    It returns when they have had their turn, unless that takes long: beside the next step they would take a core from
    one of the threads that compute it, for which all others wait.
    """
    by_loop: dict[asyncio.AbstractEventLoop, list[Mailbox[Any]]] = {}
    for mailbox in mailboxes:
        if mailbox.news:
            mailbox.news = False
            by_loop.setdefault(mailbox.loop, []).append(mailbox)
    for loop, group in by_loop.items():
        read = threading.Event()
        try:
            loop.call_soon_threadsafe(_wake, loop, group, read)
        except RuntimeError:  # the loop is closed, so the answer is not read any more
            for mailbox in group:
                mailbox.cancel()
        else:
            read.wait(LONGEST_TURN_SECONDS)


def _wake(loop: asyncio.AbstractEventLoop, mailboxes: list[Mailbox[Any]], read: threading.Event) -> None:
    for mailbox in mailboxes:
        mailbox.wake()
    loop.call_soon(loop.call_soon, read.set)  # readers go on in the loop's next turn, and this comes behind them


class Request(ABC, Generic[Event]):
    """Work for the engine thread; made on the event loop, which reads `mailbox`.

    Attributes:
        model_name: label of the metrics.
        mailbox: where the events go.
        tokens: that it may need at most, of the prompt and new ones; what admission counts.
        number: its place in the order of arrival, given by the engine.
        request_id: of the HTTP request, for the log.
    """

    def __init__(self, model_name: str, *, eager: bool = True, tokens: int = 1) -> None:
        self.model_name = model_name
        self.tokens = tokens
        self.number = -1
        self.request_id: str | None = CURRENT_REQUEST.get()
        self.mailbox: Mailbox[Event] = Mailbox(eager=eager)

    @property
    def waits(self) -> bool:
        """Whether it has no slot yet, or none any more."""
        return False

    def abort(self) -> None:
        """Leave the slot or the queue, because the client has gone."""
        self.mailbox.put(ClientGoneError())


class Job(Request[Event]):
    """Work that is done alone, step by step."""

    @abstractmethod
    def step(self) -> bool:
        """Do a bounded piece of the work; return whether it was the last one."""


class Lookup(Job[NDArray[np.float32]]):
    """Looks up the vectors [M, D] of M tokens, contracting them where the table is compressed."""

    def __init__(self, model: LoadedModel, ids: list[int], metrics: Metrics) -> None:
        super().__init__(model.name, tokens=len(ids))
        self._model = model
        self._ids = ids
        self._metrics = metrics

    def step(self) -> bool:
        self.mailbox.put(self._model.decoder.embed(np.array(self._ids, np.int64)))
        self._metrics.prompt_tokens.labels(self.model_name).inc(len(self._ids))
        self.mailbox.put(None)
        return True
