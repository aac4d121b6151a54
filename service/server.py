"""From the command line and the environment to a server that runs until SIGTERM."""

import argparse
import os
import signal
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from pydantic import ValidationError

from compressor.process.interrupt import leave
from service.cache.contractions import ContractionCache
from service.engine.engine import Engine
from service.http.lifecycle import Lifecycle
from service.http.listener import address_of, listen, unlink
from service.http.waiting_room import raise_descriptor_limit
from service.metrics import Metrics
from service.process.logs import LOG, configure_logs
from service.settings import Settings, check_names


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
    parser.add_argument(
        "--draft",
        metavar="DIR",
        dest="draft_model",
        type=Path,
        help="artefact, or name of a served model, that proposes tokens to the others (TTGPT_DRAFT_MODEL)",
    )
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
    engine = Engine(settings, Metrics())
    cache = ContractionCache(settings, engine.metrics)
    lifecycle = Lifecycle(settings, engine, cache)

    def stop(number: int, frame: FrameType | None) -> None:
        unlink(settings)
        leave(number, frame)

    for number in (signal.SIGINT, signal.SIGTERM):  # until the web server is there, which has its own
        signal.signal(number, stop)
    if cache.redis is None:  # which is asked while models load, by the event loop
        lifecycle.start()
    from service.http.web import run  # takes as long as loading a model does

    run(settings, listener, engine, cache, lifecycle)
    unlink(settings)
    failure = lifecycle.failure
    if failure is None:
        return 0
    if isinstance(failure, ValueError | OSError):
        return _refuse(failure)
    raise failure


def _refuse(error: Exception) -> int:
    print("ttgpt serve:", *str(error).splitlines(), file=sys.stderr)
    return 2
