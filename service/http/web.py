"""The web server: the application on a listening socket, until a signal."""

import asyncio
import os
import signal
import socket
from types import FrameType

import uvicorn

from service.cache.contractions import ContractionCache
from service.engine.engine import Engine
from service.http.app import create_app
from service.http.connection import connections_with
from service.http.lifecycle import Lifecycle
from service.http.listener import unlink
from service.process import background
from service.settings import Settings

HANG_SECONDS = 10  # after the drain, in which everything else has to end


def run(
    settings: Settings, listener: socket.socket, engine: Engine, cache: ContractionCache, lifecycle: Lifecycle
) -> None:
    """Serve until a signal, or until the models cannot be loaded; accepted requests are finished."""
    config = uvicorn.Config(
        create_app(settings, engine, cache, lifecycle),
        http=connections_with(settings),
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    server = _Server(config, lifecycle, settings)

    def stop(*_: object) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)  # uvicorn raises the signal again when it is done
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, server.handle_exit)
    lifecycle.on_failure(stop)
    server.run(sockets=[listener])


class _Server(uvicorn.Server):
    """Refuses new requests from the first signal on, while those it has accepted are finished."""

    def __init__(self, config: uvicorn.Config, lifecycle: Lifecycle, settings: Settings) -> None:
        super().__init__(config)
        self._lifecycle = lifecycle
        self._settings = settings

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._lifecycle.phase == "loading":
            unlink(self._settings)
            os._exit(0)  # nothing has been accepted, and what is loaded may hang
        self._lifecycle.drain()
        background.exit_after(self._settings.drain_seconds + HANG_SECONDS)
        super().handle_exit(sig, frame)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        await asyncio.sleep(0)  # connections that were just accepted become known, and are closed with the others
        await super().shutdown(sockets)
