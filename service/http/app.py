"""Assembly, and nothing else: settings in, application out."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from service.cache.answers import AnswerCache
from service.cache.contractions import ContractionCache
from service.chat_template import ChatTemplate
from service.engine.engine import Engine
from service.errors import ServiceError
from service.http.bodies import WholeBodies
from service.http.failures import as_service_error
from service.http.lifecycle import Lifecycle
from service.http.middleware import CountRequests, EndInTime, Identify, error_response, request_id
from service.http.openai import routes as openai_routes
from service.http.openai.chat import chat_routes
from service.http.openapi import described
from service.http.page import page_router
from service.http.paths import HeadAsGet, Paths
from service.http.security import RequireKey
from service.http.state import Service
from service.http.tgi import routes
from service.metrics import Metrics
from service.settings import Settings


def create_app(
    settings: Settings,
    engine: Engine | None = None,
    cache: ContractionCache | None = None,
    lifecycle: Lifecycle | None = None,
) -> FastAPI:
    """Return the application; its lifespan starts the engine, and loads the models in the background.

    Args:
        settings: all of them.
        engine: to compute with, a new one by default; the app reports to its metrics.
        cache: what the models remember with, a new one by default.
        lifecycle: of the models of this engine and cache, which may be loading already; a new one by default.
    """
    engine = engine or Engine(settings, Metrics())
    engine.metrics.compute_threads.set(settings.threads)
    cache = cache or ContractionCache(settings, engine.metrics)
    answers = AnswerCache(cache, engine.metrics, settings) if settings.cache_answers else None
    lifecycle = lifecycle or Lifecycle(settings, engine, cache)
    service = Service(lifecycle, engine, settings, cache, answers)
    app = FastAPI(title="ttgpt", version=version("ttgpt"), lifespan=_lifespan, redirect_slashes=False)
    app.state.service = service
    app.openapi = partial(described, app)  # type: ignore[method-assign]
    app.add_middleware(HeadAsGet)
    app.add_middleware(WholeBodies, settings=settings, metrics=engine.metrics)
    if settings.api_key_hashes:
        app.add_middleware(RequireKey, hashes=settings.api_key_hashes, metrics=engine.metrics)
    if settings.cors_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "HEAD", "POST"],
            allow_headers=["*"],  # clients send headers of their own, such as x-stainless-lang; none does harm
            expose_headers=["retry-after", "x-request-id"],
        )
    app.add_middleware(CountRequests, metrics=engine.metrics)
    app.add_middleware(Identify)
    app.add_middleware(Paths, root_path=settings.root_path)
    app.add_middleware(EndInTime)
    for kind in (ServiceError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)
    template = None if settings.chat_template is None else ChatTemplate.read(settings.chat_template)
    for router in (routes.text, openai_routes.v1, chat_routes(template), routes.probes, page_router()):
        app.include_router(router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: Service = app.state.service
    service.cache.open()
    service.engine.start()
    service.lifecycle.start()
    try:
        yield
    finally:
        await asyncio.to_thread(service.engine.close)
        await asyncio.to_thread(service.lifecycle.join)
        await service.cache.close()


async def _answer_error(request: Request, error: Exception) -> Response:
    service: Service = request.app.state.service
    response = error_response(as_service_error(error), service.engine.metrics, request.scope["path"])
    response.headers["x-request-id"] = request_id(request.scope)  # a 500 bypasses the middleware that does it
    return response
