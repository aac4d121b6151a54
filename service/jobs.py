"""What the engine works on: a job is advanced step by step and reports through its mailbox."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

from service.errors import ClientGoneError
from service.metrics import Metrics
from service.models import LoadedModel

Event = TypeVar("Event")


class Mailbox(Generic[Event]):
    """Events on their way from the engine thread to one coroutine of the event loop.

    Attributes:
        cancelled: nobody reads any more; the engine looks before each step.
    """

    def __init__(self) -> None:
        self.cancelled = False
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

    def put(self, event: Event | Exception | None) -> None:
        """Deliver an event, an error that ends it all, or None for the end. For the engine thread."""
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed, so nobody reads any more
            self.cancelled = True

    def cancel(self) -> None:
        """Tell the engine that nobody reads any more."""
        self.cancelled = True

    async def events(self) -> AsyncIterator[Event]:
        """Yield the events until the end; raises the error that ended them."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, Exception):
                raise event
            yield event


class Job(ABC, Generic[Event]):
    """Work for the engine thread; made on the event loop, which reads `mailbox`.

    Attributes:
        model_name: label of the metrics.
        mailbox: where the events go.
    """

    def __init__(self, model_name: str) -> None:
        self.model_name = model_name
        self.mailbox: Mailbox[Event] = Mailbox()

    @abstractmethod
    def step(self) -> bool:
        """Do a bounded piece of the work; return whether it was the last one."""

    def abort(self) -> None:
        """Leave the slot or the queue, because nobody reads any more."""
        self.mailbox.put(ClientGoneError())


class Lookup(Job[Tensor]):
    """Looks up the vectors [M, D] of M tokens, contracting them where the table is compressed."""

    def __init__(self, model: LoadedModel, ids: list[int], metrics: Metrics) -> None:
        super().__init__(model.name)
        self._model = model
        self._ids = ids
        self._metrics = metrics

    def step(self) -> bool:
        self.mailbox.put(self._model.gpt2.wte.rows(torch.tensor(self._ids)).float())
        self._metrics.prompt_tokens.labels(self.model_name).inc(len(self._ids))
        self.mailbox.put(None)
        return True
