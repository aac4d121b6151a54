"""The routes under /v1: OpenAI's bodies and answers."""

from itertools import chain
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from service.errors import InvalidRequestError
from service.http.body_route import BodyRoute
from service.http.failures import STREAM_DOCS, failures
from service.http.intake import ids_of
from service.http.middleware import request_id
from service.http.openai.completions import openai_events, whole_completion
from service.http.openai.prompts import completion_jobs
from service.http.openai.schemas import (
    Completion,
    CompletionRequest,
    EmbeddingList,
    ModelCard,
    ModelList,
    OpenAIEmbeddingRequest,
    OpenAIErrorBody,
)
from service.http.state import ServiceOf
from service.http.streams import EventStream
from service.http.timing import tell_times
from service.http.vectors import Vectors, begun, mean_json

v1 = APIRouter(tags=["OpenAI"], prefix="/v1", responses=failures(OpenAIErrorBody, without=422), route_class=BodyRoute)
COMPLETION_DOCS: dict[int | str, dict[str, Any]] = {
    200: {**STREAM_DOCS[200], "description": "the texts, or server-sent events, one per token"}
}


@v1.get("/models")
async def list_models(service: ServiceOf) -> ModelList:
    """List the loaded models, the default one first."""
    return ModelList(data=[ModelCard(id=m.name, created=m.modified_seconds) for m in service.lifecycle.models])


@v1.get("/models/{name}")
async def one_model(name: str, service: ServiceOf) -> ModelCard:
    """Describe one loaded model."""
    model = service.lifecycle.models.named(name)
    return ModelCard(id=model.name, created=model.modified_seconds)


@v1.post("/completions", response_model=Completion, responses=COMPLETION_DOCS)
async def completions(body: CompletionRequest, request: Request, service: ServiceOf) -> Response:
    """Continue texts, as a stream if `stream` is set."""
    model, engine = service.lifecycle.models.named(body.model), service.engine
    name = f"cmpl-{request_id(request.scope)}"
    wanted = await completion_jobs(body, name, model, engine.metrics)
    await service.submit(model, chain.from_iterable(wanted.prompts), wanted.jobs)
    if body.stream:
        return EventStream(openai_events(wanted), wanted.mailboxes)
    answer = Response(await whole_completion(wanted, request), media_type="application/json")
    tell_times(answer, request, wanted.jobs)
    return answer


@v1.post("/embeddings", response_model=EmbeddingList)
async def embeddings(body: OpenAIEmbeddingRequest, request: Request, service: ServiceOf) -> Response:
    """Return the mean of the token vectors of every input, at length 1."""
    model = service.lifecycle.models.named(body.model)
    rows = await ids_of(body.input, model, service.settings.max_tokens, "input")
    if not all(rows):
        raise InvalidRequestError("input: every input must have at least 1 token")
    vectors = Vectors(service, model, rows, request)
    return await begun(vectors, service, mean_json(vectors, encode=body.encoding_format == "base64"))
