"""The routes: each finds its model, hands a job to the engine and words the answer."""

from importlib.metadata import version
from typing import Any

from fastapi import APIRouter, Request
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.responses import JSONResponse, Response, StreamingResponse

from service.engine.generation import Generation
from service.engine.models import LoadedModel
from service.engine.streaming import TextStream
from service.errors import DrainingError
from service.http.body_route import BodyRoute
from service.http.failures import STREAM_DOCS, failures
from service.http.intake import check_ids, encode_with_offsets, ids_of
from service.http.schemas import MAX_IDS
from service.http.state import Service, ServiceOf
from service.http.streams import EventStream
from service.http.tgi.answers import tgi_events, whole
from service.http.tgi.prompts import generations_of, has_details
from service.http.tgi.schemas import (
    CompatRequest,
    DetokenizeRequest,
    DetokenizeResponse,
    EmbeddingRequest,
    EmbeddingResponse,
    ErrorBody,
    GenerateRequest,
    GenerateResponse,
    GenerateStreamRequest,
    InfoResponse,
    ModelInfo,
    Parameters,
    Status,
    TextToken,
    TokenizeRequest,
)
from service.http.timing import tell_times
from service.http.vectors import Vectors, begun, token_json

FAILURES = failures(ErrorBody, without=400)
COMPAT_DOCS: dict[int | str, dict[str, Any]] = {
    200: {**STREAM_DOCS[200], "description": "the text, or server-sent events, one per token"}
}

probes = APIRouter(tags=["probes"])
text = APIRouter(tags=["text"], responses=FAILURES, route_class=BodyRoute)


@probes.get("/livez", responses={503: {"model": Status, "description": "the engine hangs"}})
async def livez(service: ServiceOf, response: Response) -> Status:
    """Tell that the process answers and that the engine has not been stuck in one round for too long."""
    alive = service.engine.round_seconds <= service.settings.heartbeat_seconds
    response.status_code = 200 if alive else 503
    return Status(status="alive" if alive else "stuck")


@probes.get("/startupz", responses={503: {"model": Status, "description": "which phase the start is in"}})
async def startupz(service: ServiceOf, response: Response) -> Status:
    """Tell whether the start is over; unlike readiness, that stays so."""
    phase = service.lifecycle.phase
    response.status_code = 200 if phase == "started" else 503
    return Status(status=phase)


@probes.get("/health", response_model=Status, responses={503: FAILURES[503]})
@probes.get("/readyz", response_model=Status, responses={503: FAILURES[503]})
async def readyz(service: ServiceOf) -> Response | Status:
    """Tell whether every model is loaded and has reproduced its golden values, and the server is not stopping."""
    if service.lifecycle.draining:
        error = DrainingError()  # a probe that is refused is no rejected request
        return JSONResponse(error.body, error.status, error.headers)
    _ = service.lifecycle.models
    return Status(status="ready")


@probes.get("/metrics", response_class=Response, responses={401: FAILURES[401]})
async def metrics(service: ServiceOf) -> Response:
    """Return all metrics in Prometheus' text format."""
    return Response(generate_latest(service.engine.metrics.registry), media_type=CONTENT_TYPE_LATEST)


@text.post("/generate", response_model_exclude_unset=True)
async def generate(body: GenerateRequest, request: Request, response: Response, service: ServiceOf) -> GenerateResponse:
    """Continue a text."""
    return await _whole(body, request, response, service)


@text.post("/generate_stream", response_class=StreamingResponse, responses=STREAM_DOCS)
async def generate_stream(body: GenerateStreamRequest, service: ServiceOf) -> Response:
    """Continue a text and send every token as it comes."""
    return await _stream(body, service)


@text.post("/", response_model=list[GenerateResponse], response_model_exclude_unset=True, responses=COMPAT_DOCS)
async def compat(
    body: CompatRequest, request: Request, response: Response, service: ServiceOf
) -> list[GenerateResponse] | Response:
    """Continue a text, as a stream if `stream` is set; where huggingface_hub's InferenceClient posts."""
    return await _stream(body, service) if body.stream else [await _whole(body, request, response, service)]


@text.post("/embeddings", response_model=EmbeddingResponse)
async def embeddings(body: EmbeddingRequest, request: Request, service: ServiceOf) -> Response:
    """Look up the vector of every token."""
    model = service.lifecycle.models.named(body.model)
    vectors = Vectors(service, model, await ids_of(body.inputs, model, service.settings.max_tokens), request)
    return await begun(vectors, service, token_json(vectors, encode=body.encoding_format == "base64"))


@text.post("/tokenize")
async def tokenize(body: TokenizeRequest, service: ServiceOf) -> list[TextToken]:
    """Cut a text into tokens."""
    model = service.lifecycle.models.named(body.model)
    return [
        TextToken(id=token_id, text=body.inputs[start:stop], start=start, stop=stop)
        for token_id, (start, stop) in await encode_with_offsets(body.inputs, model, MAX_IDS)
    ]


@text.post("/detokenize")
async def detokenize(body: DetokenizeRequest, service: ServiceOf) -> DetokenizeResponse:
    """Put tokens together to a text."""
    model = service.lifecycle.models.named(body.model)
    check_ids(body.ids, model, "ids")
    stream = TextStream(())
    return DetokenizeResponse(text=stream.push(b"".join(model.vocabulary.bytes[i] for i in body.ids)) + stream.finish())


@text.get("/info")
async def info(service: ServiceOf) -> InfoResponse:
    """Tell what is served, and the limits."""
    models, settings = service.lifecycle.models, service.settings
    default = models.default
    return InfoResponse(
        model_id=default.name,
        model_sha=default.manifest.digest,
        max_concurrent_requests=settings.max_batch + settings.max_waiting,
        max_input_tokens=default.context - 1,
        max_total_tokens=default.context,
        version=version("ttgpt"),
        models=[_model_info(model, models.drafts.get(model.name)) for model in models],
    )


def _model_info(model: LoadedModel, draft: LoadedModel | None) -> ModelInfo:
    manifest, config = model.manifest, model.decoder.config
    return ModelInfo(
        model_id=model.name,
        model_sha=manifest.digest,
        method=manifest.provenance.method,
        source=manifest.provenance.source.id,
        context=model.context,
        vocabulary=config.vocab_size,
        width=config.n_embd,
        layers=config.n_layer,
        bytes_disk=sum(size.disk for size in manifest.bytes.values()),
        bytes_resident=sum(size.resident for size in manifest.bytes.values()),
        bytes_dense_fp32=sum(size.dense_fp32 for size in manifest.bytes.values()),
        perplexity=manifest.quality.perplexity,
        perplexity_ratio=manifest.quality.perplexity_ratio,
        draft=None if draft is None else draft.name,
    )


Body = GenerateRequest | GenerateStreamRequest | CompatRequest


async def _submit(body: Body, service: Service, *, streamed: bool) -> tuple[list[Generation], str]:
    """Return the accepted jobs and what to put before their text."""
    parameters, model = body.parameters or Parameters(), service.lifecycle.models.named(body.model)
    jobs = await generations_of(body.inputs, parameters, model, service.engine.metrics, streamed=streamed)
    await service.submit(model, jobs[0].prompt.ids, jobs)
    return jobs, body.inputs if parameters.return_full_text else ""


async def _whole(body: Body, request: Request, response: Response, service: Service) -> GenerateResponse:
    jobs, prefix = await _submit(body, service, streamed=False)
    answer = await whole(request, jobs, prefix, details=has_details(body.parameters or Parameters()))
    tell_times(response, request, jobs)
    return answer


async def _stream(body: Body, service: Service) -> EventStream:
    (job,), prefix = await _submit(body, service, streamed=True)
    return EventStream(tgi_events(job, prefix), [job.mailbox])
