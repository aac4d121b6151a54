"""What every route works with."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request

from service.cache.answers import AnswerCache
from service.cache.contractions import ContractionCache
from service.engine.engine import Engine
from service.engine.jobs import Request as EngineRequest
from service.engine.models import LoadedModel
from service.http.lifecycle import Lifecycle
from service.settings import Settings


@dataclass(frozen=True)
class Service:
    """What the routes work with; `create_app` puts it into `app.state.service`.

    Attributes:
        reading: held while a long body is read in a thread.
        lookups: requests for vectors that are being answered, and their tokens.
    """

    lifecycle: Lifecycle
    engine: Engine
    settings: Settings
    cache: ContractionCache
    answers: AnswerCache | None
    reading: asyncio.Lock = field(default_factory=asyncio.Lock)
    lookups: Counter[str] = field(default_factory=Counter)

    async def submit(self, model: LoadedModel, ids: Iterable[int], requests: Sequence[EngineRequest[Any]]) -> None:
        """Have the engine accept requests, after the cache was asked for the rows `ids` of the model's table.

        A request that would be refused anyway asks for nothing. Generations whose answer is remembered are answered
        from that. Raises like `Engine.submit_all`.
        """
        self.engine.check(requests)
        if self.answers is not None:
            requests = await self.answers.answer(requests)
        if requests:
            await self.cache.prefetch(model.name, ids)
            self.engine.submit_all(requests)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]
