"""Bodies of requests: read whole, in time, one by one and all together bounded, before the app sees the request."""

import asyncio

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.errors import (
    BodiesOverloadedError,
    BodyTooLargeError,
    ClientGoneError,
    ServiceError,
    SlowRequestError,
    UnsupportedEncodingError,
)
from service.http.middleware import error_response
from service.metrics import Metrics
from service.settings import Settings

FREE_BYTES = 8 << 10  # of each body, so that large ones keep no small one out; connections are bounded


class WholeBodies:
    """Reads every body before the app sees the request, and answers instead of the app where that fails.

    A body counts from the end of the head, with the length that was declared, to the end of the answer.
    """

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics) -> None:
        self._app = app
        self._settings = settings
        self._metrics = metrics
        self._held_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        share = _Share(self)
        try:
            body = await self._read(Headers(scope=scope), receive, share)
        except ServiceError as error:
            share.end()
            await error_response(error, self._metrics, scope["path"])(scope, receive, send)
            return
        try:
            await self._app(scope, _Replay(body, receive), send)
        finally:
            share.end()

    async def _read(self, headers: Headers, receive: Receive, share: "_Share") -> bytes:
        if headers.get("content-encoding", "").strip().lower() not in ("", "identity"):
            raise UnsupportedEncodingError
        declared = headers.get("content-length", "")
        share.grow_to(int(declared) if declared.isdecimal() else 0)
        body = bytearray()
        try:
            async with asyncio.timeout(self._settings.body_seconds):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGoneError
                    body += message.get("body", b"")
                    share.grow_to(len(body))
                    more = message.get("more_body", False)
        except TimeoutError as error:
            raise SlowRequestError("body", self._settings.body_seconds) from error
        return bytes(body)

    def exchange(self, old_bytes: int, new_bytes: int) -> None:
        """Count a body that has grown, `old_bytes` of which were counted before.

        Raises:
            BodyTooLargeError: if it is longer than one body may be.
            BodiesOverloadedError: if all together would be longer than they may be.
        """
        if new_bytes > self._settings.max_body_bytes:
            raise BodyTooLargeError(self._settings.max_body_bytes)
        old, new = (max(0, size - FREE_BYTES) for size in (old_bytes, new_bytes))
        others = self._held_bytes - old
        if new > old and others and others + new > self._settings.bodies_bytes:
            raise BodiesOverloadedError
        self._held_bytes = others + new


class _Share:
    """What one body counts."""

    def __init__(self, bodies: WholeBodies) -> None:
        self._bodies = bodies
        self._size_bytes = 0

    def grow_to(self, size_bytes: int) -> None:
        if size_bytes > self._size_bytes:
            self._bodies.exchange(self._size_bytes, size_bytes)
            self._size_bytes = size_bytes

    def end(self) -> None:
        self._bodies.exchange(self._size_bytes, 0)
        self._size_bytes = 0


class _Replay:
    """Hands out the body, then whatever comes after it."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def __call__(self) -> Message:
        if self._body is None:
            return await self._receive()
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}
