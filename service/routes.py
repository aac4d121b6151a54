"""The routes: each finds its model, hands a job to the engine and words the answer."""

from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import Response, StreamingResponse

from service.answers import EventStream, embedding_json, watched, whole
from service.engine import Engine
from service.generation import Generation
from service.intake import ids_of, prompt_of
from service.jobs import Lookup
from service.lifecycle import Lifecycle
from service.schemas import (
    CompatRequest,
    EmbeddingRequest,
    EmbeddingResponse,
    ErrorBody,
    GenerateRequest,
    GenerateResponse,
    GenerateStreamRequest,
    ModelCard,
    ModelList,
    Parameters,
    Status,
)

FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": ErrorBody, "description": text}
    for status, text in {
        404: "no such model",
        413: "the body is too long",
        422: "a field is outside its legal range",
        429: "overloaded",
        500: "the request failed inside the server",
        503: "not ready",
    }.items()
}


@dataclass(frozen=True)
class Service:
    """What the routes work with; `create_app` puts it into `app.state.service`."""

    lifecycle: Lifecycle
    engine: Engine


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


ServiceOf = Annotated[Service, Depends(_service)]
probes = APIRouter(tags=["probes"])
text = APIRouter(tags=["text"], responses=FAILURES)
models = APIRouter(tags=["models"], responses={503: FAILURES[503]})


@probes.get("/livez")
async def livez() -> Status:
    """Tell that the process answers."""
    return Status(status="alive")


@probes.get("/readyz", responses={503: FAILURES[503]})
async def readyz(service: ServiceOf) -> Status:
    """Tell whether every model is loaded and has reproduced its golden values."""
    _ = service.lifecycle.models
    return Status(status="ready")


@probes.get("/metrics", response_class=Response)
async def metrics(service: ServiceOf) -> Response:
    """Return all metrics in Prometheus' text format."""
    return Response(generate_latest(service.engine.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@models.get("/v1/models")
async def list_models(service: ServiceOf) -> ModelList:
    """List the loaded models, the default one first."""
    return ModelList(data=[ModelCard(id=m.name, created=m.modified_seconds) for m in service.lifecycle.models])


@text.post("/generate", response_model_exclude_unset=True)
async def generate(body: GenerateRequest, request: Request, service: ServiceOf) -> GenerateResponse:
    """Continue a text."""
    return await _whole(body, request, service)


STREAM_DOCS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "server-sent events, one per token"}
}


@text.post("/generate_stream", response_class=StreamingResponse, responses=STREAM_DOCS)
async def generate_stream(body: GenerateStreamRequest, service: ServiceOf) -> Response:
    """Continue a text and send every token as it comes."""
    return await _stream(body, service)


@text.post("/", response_model=list[GenerateResponse], response_model_exclude_unset=True)
async def compat(body: CompatRequest, request: Request, service: ServiceOf) -> list[GenerateResponse] | Response:
    """Continue a text, as a stream if `stream` is set; where huggingface_hub's InferenceClient posts."""
    return await _stream(body, service) if body.stream else [await _whole(body, request, service)]


@text.post("/embeddings", response_model=EmbeddingResponse)
async def embeddings(body: EmbeddingRequest, request: Request, service: ServiceOf) -> Response:
    """Look up the vector of every token."""
    model = service.lifecycle.models.named(body.model)
    rows = await ids_of(body.inputs, model)
    job = Lookup(model, [token_id for row in rows for token_id in row], service.engine.metrics)
    service.engine.submit(job)
    async with watched(request, job.mailbox):
        vectors = await anext(job.mailbox.events())
    pieces = embedding_json(model, rows, vectors, encode=body.encoding_format == "base64")
    return StreamingResponse(pieces, media_type="application/json")


Body = GenerateRequest | GenerateStreamRequest | CompatRequest


async def _submit(body: Body, service: Service) -> tuple[Generation, str]:
    """Return the accepted job and what to put before its text."""
    parameters = body.parameters or Parameters()
    prompt = await prompt_of(body.inputs, parameters, service.lifecycle.models.named(body.model))
    job = Generation(prompt, service.engine.metrics)
    service.engine.submit(job)
    return job, body.inputs if parameters.return_full_text else ""


async def _whole(body: Body, request: Request, service: Service) -> GenerateResponse:
    job, prefix = await _submit(body, service)
    details = body.parameters is not None and body.parameters.details is True
    return await whole(request, job, prefix, details=details)


async def _stream(body: Body, service: Service) -> EventStream:
    return EventStream(*await _submit(body, service))
