"""Where the service listens: an address, both families of addresses, or a unix socket."""

import os
import socket
import stat
from pathlib import Path

from service.settings import Settings

BACKLOG = 2048
ALL_USERS = 0o666  # may connect to a unix socket; which of them reach it is up to its folder


def listen(settings: Settings) -> socket.socket:
    """Return the socket that the settings name.

    Raises:
        OSError: naming the option that is wrong, if it cannot listen there.
    """
    if settings.uds is not None:
        return _listen_locally(settings.uds)
    host, port = settings.host, settings.port
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    both = host == "::" and socket.has_dualstack_ipv6()
    try:
        return socket.create_server((host, port), family=family, backlog=BACKLOG, dualstack_ipv6=both)
    except OSError as error:
        place = _with_port(host, port)
        raise OSError(f"port: cannot listen on {place}: {error.strerror}; choose another --port") from error


def address_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    name = listener.getsockname()
    return f"unix://{name}" if isinstance(name, str) else f"http://{_with_port(*name[:2])}"


def unlink(settings: Settings) -> None:
    """Remove the unix socket, if that is what the service listened on."""
    if settings.uds is not None:
        settings.uds.unlink(missing_ok=True)


def _listen_locally(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        if path.exists() and stat.S_ISSOCK(path.stat().st_mode) and not _answers(path):
            path.unlink()  # a process that was killed has left it
        listener.bind(str(path.absolute()))
        os.chmod(path, ALL_USERS)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        reason = error.strerror or error  # a path that is too long has no number
        raise OSError(f"uds: cannot listen on {path}: {reason}; choose another --uds") from error
    return listener


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


def _with_port(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
