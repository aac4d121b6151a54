"""Pure ASGI middleware: requests are counted and have ids."""

import asyncio
import re
import time
from contextlib import suppress
from uuid import uuid4

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import DrainingError, ServiceError, wire_of
from service.metrics import Metrics
from service.process.logs import CURRENT_REQUEST, LOG

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def now_seconds() -> float:
    """Return the time on the clock that requests are measured with."""
    return time.monotonic()


def arrived_seconds(scope: Scope) -> float:
    """Return when a request came."""
    return float(scope["state"]["arrived_seconds"])


def request_id(scope: Scope) -> str:
    """Return the id of a request."""
    return str(scope["state"]["request_id"])


def error_response(error: ServiceError, metrics: Metrics, path: str) -> JSONResponse:
    """Return what the client gets, and count it if it is a rejection."""
    if error.reason is not None:
        metrics.requests_rejected.labels(error.reason).inc()
    status, body = wire_of(error, path)
    return JSONResponse(body, status, error.headers)


class EndInTime:
    """Tells a client whose request is cancelled, because the time in which accepted ones are finished is over."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except asyncio.CancelledError:
            if scope["type"] != "http":
                raise
            status, body = wire_of(error := DrainingError(), scope["path"])
            with suppress(RuntimeError):  # the answer has begun, and will be cut
                await JSONResponse(body, status, error.headers)(scope, receive, send)


class CountRequests:
    """Counts requests by route template, method and class of status: labels that no client can invent."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        status = 500

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, watch)
        finally:
            handler = getattr(scope.get("route"), "path", UNMATCHED)
            method = scope["method"] if scope["method"] in METHODS else "OTHER"
            self._metrics.http_requests.labels(handler, method, f"{status // 100}xx").inc()


class Identify:
    """Gives every request an id, the client's if it is a decent one, tells it in the answer, and logs the request."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        name = given if REQUEST_ID.fullmatch(given) else uuid4().hex
        began, status = now_seconds(), 500
        scope["state"] = {**scope.get("state", {}), "request_id": name, "arrived_seconds": began}

        async def tell(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = name
            await send(message)

        bound = CURRENT_REQUEST.set(name)
        try:
            await self._app(scope, receive, tell)
        finally:
            handler = getattr(scope.get("route"), "path", UNMATCHED)
            seconds = round(now_seconds() - began, 6)
            LOG.debug("request", extra={"handler": handler, "status": status, "seconds": seconds})
            CURRENT_REQUEST.reset(bound)
