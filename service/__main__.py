"""`python -m service DIR... --host --port`: serve artefacts until SIGTERM.

Exit code 0 after a clean stop, 2 with one line on stderr if an argument, a setting or an artefact is wrong.
"""

import argparse
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from types import FrameType

import structlog
import uvicorn
from pydantic import ValidationError
from starlette.applications import Starlette

from service.allocator import share_arenas
from service.bounded_head import BoundedHead
from service.front import Front
from service.lean_torch import skip_meta_kernels
from service.logs import configure_logs
from service.settings import Settings
from service.threads import keep_libraries_to

BACKLOG = 2048


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until told to stop; return the exit code."""
    try:
        settings = read_settings(arguments)
        listener = _listen(settings.host, settings.port)
    except (ValueError, OSError) as error:
        return _refuse(error)
    configure_logs(settings.log_level)
    share_arenas()
    keep_libraries_to(settings.threads)
    skip_meta_kernels()
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
    parser.add_argument("--default-model", help="serves requests that name none (TTGPT_DEFAULT_MODEL)")
    given = {name: value for name, value in vars(parser.parse_args(arguments)).items() if value not in (None, [])}
    try:
        return Settings(**given)
    except ValidationError as error:
        problem = error.errors()[0]
        name = str(problem["loc"][0])
        message = f"{name}: {problem['msg']}; set TTGPT_{name.upper()} or see python -m service --help"
        raise ValueError(message) from error


def serve(settings: Settings, listener: socket.socket) -> int:
    """Serve on `listener`; accepted requests are finished before it returns the exit code."""
    host, port = listener.getsockname()[:2]
    structlog.get_logger().info("listening", url=f"http://{host}:{port}")
    front = Front(partial(_make, settings, lambda: stop()), lambda: stop())
    config = uvicorn.Config(
        front,
        http=BoundedHead,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        timeout_graceful_shutdown=settings.drain_seconds,
    )
    server = _Server(config, front)

    def stop(*_: object) -> None:
        server.should_exit = True

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)  # uvicorn raises the signal again when it is done
    server.run(sockets=[listener])
    failure = front.failure
    if failure is None and front.app is not None:
        failure = front.app.state.service.lifecycle.failure
    if failure is None:
        return 0
    if isinstance(failure, ValueError | OSError):
        return _refuse(failure)
    raise failure


def _make(settings: Settings, on_failure: Callable[[], None]) -> Starlette:
    from service.app import create_app  # brings torch: probes are answered meanwhile, and its threads are bounded

    return create_app(settings, on_failure=on_failure)


class _Server(uvicorn.Server):
    """Refuses new requests from the first signal on, while those it has accepted are finished."""

    def __init__(self, config: uvicorn.Config, front: Front) -> None:
        super().__init__(config)
        self._front = front

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        if self._front.app is not None:
            self._front.app.state.service.lifecycle.drain()
        super().handle_exit(sig, frame)


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise OSError(f"port: cannot listen on {host}:{port}: {error.strerror}; choose another --port") from error


def _refuse(error: Exception) -> int:
    print("ttgpt serve:", *str(error).splitlines(), file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
