"""Pure ASGI middleware: bodies are bounded, requests are counted."""

from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import BodyTooLargeError, ServiceError
from service.metrics import Metrics

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
UNMATCHED = "unmatched"


def error_response(error: ServiceError, metrics: Metrics) -> JSONResponse:
    """Return what the client gets, and count it if it is a rejection."""
    if error.reason is not None:
        metrics.requests_rejected.labels(error.reason).inc()
    return JSONResponse(error.body, error.status, error.headers)


class BodyLimit:
    """Reads the body, up to the limit, before the app sees the request; answers 413 beyond it."""

    def __init__(self, app: ASGIApp, limit_bytes: int, metrics: Metrics) -> None:
        self._app = app
        self._limit_bytes = limit_bytes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = await self._read(scope, receive)
        if body is None:
            response = error_response(BodyTooLargeError(self._limit_bytes), self._metrics)
            await response(scope, receive, send)
        else:
            await self._app(scope, _Replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> list[Message] | None:
        """Return the messages that make up the body, or None if it is too long."""
        declared = Request(scope).headers.get("content-length", "")
        if declared.isdecimal() and int(declared) > self._limit_bytes:
            return None
        messages: list[Message] = []
        size_bytes = 0
        more = True
        while more:
            messages.append(message := await receive())
            size_bytes += len(message.get("body", b""))
            if size_bytes > self._limit_bytes:
                return None
            more = message.get("more_body", False)
        return messages


class _Replay:
    """Hands out `messages` again, then whatever comes after them."""

    def __init__(self, messages: list[Message], receive: Receive) -> None:
        self._messages = messages[::-1]
        self._receive = receive

    async def __call__(self) -> Message:
        return self._messages.pop() if self._messages else await self._receive()


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
