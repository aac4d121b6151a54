"""From the command line and the environment to a server that runs until SIGTERM."""

import argparse
import asyncio
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import uvicorn
from fastapi import FastAPI
from pydantic import ValidationError

from service.http.app import create_app
from service.http.connection import connections_with
from service.http.lifecycle import Lifecycle
from service.http.listener import address_of, listen, unlink
from service.http.waiting_room import raise_descriptor_limit
from service.process import background
from service.process.logs import LOG, configure_logs
from service.settings import Settings, check_names

HANG_SECONDS = 10  # after the drain, in which everything else has to end


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    try:
        settings = read_settings(arguments)
        listener = listen(settings)
    except (ValueError, OSError) as error:
        return _refuse(error)
    configure_logs(settings.log_level)
    raise_descriptor_limit()
    sys.set_int_max_str_digits(sys.int_info.str_digits_check_threshold)  # reading n digits takes n * n steps
    return serve(settings, listener)


def read_settings(arguments: Sequence[str] | None) -> Settings:
    """Return the environment's settings, overridden by the command line's.

    Raises:
        ValueError: naming the setting that is wrong, and how to set it.
    """
    parser = argparse.ArgumentParser(prog="python -m service", description="Serve compressed GPT-2 artefacts.")
    parser.add_argument("models", metavar="DIR", nargs="*", type=Path, help="artefact folders (TTGPT_MODELS)")
    parser.add_argument("--host", help="where to listen (TTGPT_HOST)")
    parser.add_argument("--port", type=int, help="0 takes any free one (TTGPT_PORT)")
    parser.add_argument("--uds", metavar="PATH", type=Path, help="unix socket to listen on instead (TTGPT_UDS)")
    parser.add_argument("--root-path", metavar="PATH", help="prefix that a proxy puts before routes (TTGPT_ROOT_PATH)")
    parser.add_argument("--default-model", help="serves requests that name none (TTGPT_DEFAULT_MODEL)")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value not in (None, [])}
    check_names(os.environ)
    try:
        return Settings(**given)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        message = f"{name}: {problem['msg']}; set TTGPT_{name.upper()} or see python -m service --help"
        raise ValueError(message) from error


def serve(settings: Settings, listener: socket.socket) -> int:
    """Serve on `listener`; accepted requests are finished before it returns the exit code."""
    LOG.info("listening", extra={"url": address_of(listener)})
    app = create_app(settings, on_failure=lambda: stop())
    config = uvicorn.Config(
        app,
        http=connections_with(settings),
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    server = _Server(config, app, settings)

    def stop(*_: object) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)  # uvicorn raises the signal again when it is done
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGHUP, server.handle_exit)
    server.run(sockets=[listener])
    unlink(settings)
    failure = app.state.service.lifecycle.failure
    if failure is None:
        return 0
    if isinstance(failure, ValueError | OSError):
        return _refuse(failure)
    raise failure


class _Server(uvicorn.Server):
    """Refuses new requests from the first signal on, while those it has accepted are finished."""

    def __init__(self, config: uvicorn.Config, app: FastAPI, settings: Settings) -> None:
        super().__init__(config)
        self._lifecycle: Lifecycle = app.state.service.lifecycle
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


def _refuse(error: Exception) -> int:
    print("ttgpt serve:", *str(error).splitlines(), file=sys.stderr)
    return 2
