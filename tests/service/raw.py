"""HTTP byte by byte, for what no client library sends."""

import re
import socket
from contextlib import suppress

TOKENIZE = b'{"inputs":"x"}'


class Raw:
    """A connection that sends what it is told and reads until the server closes or a time has passed."""

    def __init__(self, url: str) -> None:
        """Connect to `url`, http://host:port or unix:///path."""
        scheme, _, place = url.partition("://")
        host, _, port = place.rpartition(":")
        self.socket = socket.socket(socket.AF_UNIX if scheme == "unix" else socket.AF_INET)
        self.socket.settimeout(60)
        self.socket.connect(place if scheme == "unix" else (host, int(port)))

    def __enter__(self) -> "Raw":
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        """Send as much of it as the server takes."""
        with suppress(ConnectionError):
            self.socket.sendall(data)

    def rest(self) -> bytes:
        """Return everything that comes until the server closes."""
        found = b""
        with suppress(ConnectionError):
            while piece := self.socket.recv(1 << 16):
                found += piece
        return found

    def answer(self) -> bytes:
        """Return what has come as soon as it holds a whole answer with content-length, or when the server closes."""
        found = b""
        with suppress(ConnectionError):
            while piece := self.socket.recv(1 << 16):
                found += piece
                head, gap, body = found.partition(b"\r\n\r\n")
                length = re.search(rb"content-length: (\d+)", head)
                if gap and length and len(body) >= int(length[1]):
                    break
        return found


def statuses(answers: bytes) -> list[int]:
    """Return the status of every answer."""
    return [int(status) for status in re.findall(rb"HTTP/1\.1 (\d{3}) ", answers)]


def request(path: str, *headers: str, body: bytes = b"", method: str = "POST", version: str = "1.1") -> bytes:
    """Return the bytes of a request whose headers are exactly these, and JSON."""
    lines = (f"{method} {path} HTTP/{version}", "host: x", "content-type: application/json", *headers)
    return "\r\n".join((*lines, "", "")).encode() + body


def chunked(body: bytes) -> bytes:
    """Return a body in one chunk."""
    return b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


LAST = request("/livez", "connection: close", method="GET")
