"""The routes under /v1: OpenAI's bodies and answers."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from itertools import chain
from typing import Any

import torch
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse
from torch import Tensor

from service.answers import EventStream, vectors_of
from service.completions import openai_events, order_of, whole_completion
from service.errors import InvalidRequestError
from service.intake import ids_of
from service.middleware import request_id
from service.openai_schemas import Completion, CompletionRequest, EmbeddingList, OpenAIEmbeddingRequest
from service.schemas import ModelCard, ModelList
from service.state import OPENAI_FAILURES, STREAM_DOCS, ServiceOf
from service.timing import tell_times

v1 = APIRouter(tags=["OpenAI"], prefix="/v1", responses=OPENAI_FAILURES)
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
    order = await order_of(body, name, model, engine.metrics)
    await service.submit(model, chain.from_iterable(order.prompts), order.jobs)
    if body.stream:
        return EventStream(openai_events(order), order.mailboxes)
    answer = Response(await whole_completion(order, request), media_type="application/json")
    tell_times(answer, request, order.jobs)
    return answer


@v1.post("/embeddings", response_model=EmbeddingList)
async def embeddings(body: OpenAIEmbeddingRequest, request: Request, service: ServiceOf) -> Response:
    """Return the mean of the token vectors of every input."""
    model = service.lifecycle.models.named(body.model)
    rows = await ids_of(body.input, model, "input")
    if not all(rows):
        raise InvalidRequestError("input: every input must have at least 1 token")
    vectors = await vectors_of(request, service, model, rows)
    means = torch.stack([block.mean(0) for block in vectors.split([len(row) for row in rows])])  # [inputs, D]
    pieces = _embedding_json(means, model.name, len(vectors), encode=body.encoding_format == "base64")
    return StreamingResponse(pieces, media_type="application/json")


async def _embedding_json(means: Tensor, model: str, tokens: int, *, encode: bool) -> AsyncIterator[str]:
    """Yield an EmbeddingList for `means` [inputs, D] in pieces, so that others get their turn."""
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    head = json.dumps({"object": "list", "model": model, "usage": usage})
    yield f'{head[:-1]}, "data": ['
    for index, mean in enumerate(means):
        vector = base64.b64encode(mean.numpy().astype("<f4").tobytes()).decode() if encode else mean.tolist()
        item = json.dumps({"object": "embedding", "index": index, "embedding": vector})
        yield f"{', ' if index else ''}{item}"
        await asyncio.sleep(0)
    yield "]}"
