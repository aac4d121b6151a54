"""Assembly, and nothing else: settings in, application out."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version

import torch
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service import routes
from service.engine import Engine
from service.errors import ServiceError, as_service_error
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.middleware import BodyLimit, CountRequests, error_response
from service.models import Models, load_all
from service.settings import Settings


def create_app(
    settings: Settings, engine: Engine | None = None, on_failure: Callable[[], None] = lambda: None
) -> FastAPI:
    """Return the application; its lifespan starts the engine and loads the models in the background.

    Args:
        settings: all of them.
        engine: to compute with, a new one by default; the app reports to its metrics.
        on_failure: called from another thread if the models cannot be loaded; `app.state.service.lifecycle`
            then has the reason.
    """
    engine = engine or Engine(settings, Metrics())
    service = routes.Service(Lifecycle(partial(_load, settings, engine.metrics), on_failure), engine)
    app = FastAPI(title="ttgpt", version=version("ttgpt"), lifespan=_lifespan)
    app.state.service = service
    app.add_middleware(BodyLimit, limit_bytes=settings.max_body_bytes, metrics=engine.metrics)
    app.add_middleware(CountRequests, metrics=engine.metrics)
    for kind in (ServiceError, RequestValidationError, HTTPException, Exception):
        app.add_exception_handler(kind, _answer_error)
    for router in (routes.text, routes.models, routes.probes):
        app.include_router(router)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    service: routes.Service = app.state.service
    service.engine.start()
    service.lifecycle.start()
    try:
        yield
    finally:
        await asyncio.to_thread(service.engine.close)
        await asyncio.to_thread(service.lifecycle.join)


def _load(settings: Settings, metrics: Metrics) -> Models:
    torch.set_num_threads(settings.threads)
    return load_all(settings.models, settings.default_model, metrics.add_model)


async def _answer_error(request: Request, error: Exception) -> Response:
    service: routes.Service = request.app.state.service
    return error_response(as_service_error(error), service.engine.metrics)
