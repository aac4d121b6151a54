"""The first application: it answers probes while torch and the real application are still being imported.

Whatever comes earlier than the real application gets 503; afterwards this one only hands on.
"""

import asyncio
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager, suppress

from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from service.errors import DrainingError, NotReadyError, ServiceError, wire_of
from service.http.paths import inner_path


class Front:
    """An ASGI application that becomes another one.

    Attributes:
        app: the real application, None while it is being made.
        failure: why it could not be made, if so.
    """

    def __init__(self, make: Callable[[], Starlette], on_failure: Callable[[], None], root_path: str = "") -> None:
        """Make nothing yet.

        Args:
            make: returns the real application; called in a thread.
            on_failure: called if that or its start fails.
            root_path: prefix of all paths that a proxy may have left there.
        """
        self.app: Starlette | None = None
        self.failure: BaseException | None = None
        self._make = make
        self._on_failure = on_failure
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif self.app is not None:
            await _hand_on(self.app, {**scope, "app": self.app}, receive, send)
        elif scope["type"] == "http":
            await _answer(inner_path(scope["path"], self._root_path))(scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        """Start the real application in the background and end it with the server."""
        await receive()
        making = asyncio.create_task(self._start())
        await send({"type": "lifespan.startup.complete"})
        await receive()
        running = await making
        if running is not None:
            await running.__aexit__(None, None, None)
        await send({"type": "lifespan.shutdown.complete"})

    async def _start(self) -> AbstractAsyncContextManager[object] | None:
        try:
            app = await asyncio.to_thread(self._make)
            running = app.router.lifespan_context(app)
            await running.__aenter__()
        except BaseException as error:
            self.failure = error
            self._on_failure()
            return None
        self.app = app
        return running


async def _hand_on(app: Starlette, scope: Scope, receive: Receive, send: Send) -> None:
    try:
        await app(scope, receive, send)
    except asyncio.CancelledError:  # the time in which accepted requests are finished is over
        with suppress(RuntimeError):  # the answer has begun, and will be cut
            await _refuse(DrainingError(), scope["path"])(scope, receive, send)


def _answer(path: str) -> JSONResponse:
    if path == "/livez":
        return JSONResponse({"status": "alive"})
    if path == "/startupz":
        return JSONResponse({"status": "importing"}, 503)
    return _refuse(NotReadyError(), path)


def _refuse(error: ServiceError, path: str) -> JSONResponse:
    status, body = wire_of(error, path)
    return JSONResponse(body, status, error.headers)
