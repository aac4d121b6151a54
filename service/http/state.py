"""What every route works with, and which failures it may answer."""

import asyncio
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from fastapi import Depends, Request
from pydantic import BaseModel

from service.cache.answers import AnswerCache
from service.cache.contractions import ContractionCache
from service.engine.engine import Engine
from service.engine.jobs import Request as EngineRequest
from service.engine.models import LoadedModel
from service.http.lifecycle import Lifecycle
from service.http.openai.schemas import OpenAIErrorBody
from service.http.tgi.schemas import ErrorBody
from service.settings import Settings

MEANINGS = {
    400: "a field is outside its legal range",
    401: "no valid key",
    404: "no such model",
    408: "the body did not come in time",
    413: "the body is too long",
    415: "the body is compressed",
    422: "a field is outside its legal range",
    429: "overloaded; retry-after says when to come back",
    500: "the request failed inside the server",
    503: "not ready, stopping, or too many bytes of bodies in flight",
    504: "the request took too long",
}


def _failures(model: type[BaseModel], without: int) -> dict[int | str, dict[str, Any]]:
    return {status: {"model": model, "description": text} for status, text in MEANINGS.items() if status != without}


FAILURES = _failures(ErrorBody, without=400)
OPENAI_FAILURES = _failures(OpenAIErrorBody, without=422)
STREAM_DOCS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "server-sent events, one per token"}
}


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

        Whoever would be refused anyway asks for nothing. Generations whose answer is remembered are answered from
        that. Raises like `Engine.submit_all`.
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
