"""A running service, as a client sees it. Nothing is asked for but what its address says, and redirects are refused."""

import json
import re
import ssl
from dataclasses import dataclass, field
from functools import cached_property, partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import Any
from urllib.parse import urlsplit

KEY = "TTGPT_API_KEY"  # the variable with the key, where a service wants one
SCHEMES = ("http", "https")
TIMEOUT_SECONDS = 30
RSS = re.compile(r"^ttgpt_memory_rss_bytes (\S+)$", re.MULTILINE)
HINTS = {"401": f"; put it into {KEY}", "429": "; try fewer clients"}
REASON = re.compile(rb'"error":\s*"([^"]*)"')


@dataclass(frozen=True, kw_only=True)
class Model:
    """What a service tells of one of its models.

    Attributes:
        name: by which requests choose it.
        context: longest prompt and continuation together, in tokens.
        disk_bytes, resident_bytes: of all weights, on disk and while serving.
        perplexity: as measured when the artefact was made.
        perplexity_ratio: to that of the dense model; None where it was not measured.
    """

    name: str
    context: int
    disk_bytes: int
    resident_bytes: int
    perplexity: float
    perplexity_ratio: float | None


@dataclass(frozen=True)
class Info:
    """GET /info: the models, and how many requests are accepted at the same time."""

    models: tuple[Model, ...]
    max_requests: int


@dataclass(frozen=True)
class Endpoint:
    """Where a service answers.

    Attributes:
        url: of the service, with a proxy's prefix if there is one.
        key: that it wants, or None.

    Raises:
        ValueError: if the URL is none of HTTP.
    """

    url: str
    key: str | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        where = urlsplit(self.url)
        if where.scheme not in SCHEMES or not where.hostname:
            raise ValueError(f"url must begin with http:// or https:// and name a host, not {self.url!r}")
        _ = where.port  # a ValueError where it is no port

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        where = urlsplit(self.url)
        return str(where.hostname), where.port or (443 if self.tls else 80)

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        """How the connection is secured, or None where it is not."""
        return ssl.create_default_context() if urlsplit(self.url).scheme == "https" else None

    @property
    def headers(self) -> dict[str, str]:
        """What every request is sent with."""
        own = {"Host": urlsplit(self.url).netloc.rpartition("@")[2], "Connection": "close"}
        return own | ({"Authorization": f"Bearer {self.key}"} if self.key else {})

    def path(self, route: str) -> str:
        """Return a route as a client asks for it."""
        return urlsplit(self.url).path.rstrip("/") + route

    def info(self) -> Info:
        """Return what is served.

        Raises:
            RuntimeError: if another kind of service answers, or this one refuses.
            OSError: if nothing answers.
        """
        try:
            told = json.loads(self._get("/info"))
            models = tuple(_model(each) for each in told["models"])
            return Info(models, int(told["max_concurrent_requests"]))
        except (ValueError, KeyError, TypeError) as error:
            raise RuntimeError("what it answers at /info is not a ttgpt service's") from error

    def rss_bytes(self) -> int | None:
        """Return the memory that the service's process says it has now, or None if it does not say."""
        found = RSS.search(self._get("/metrics").decode(errors="replace"))
        return int(float(found[1])) if found else None

    def _get(self, route: str) -> bytes:
        host, port = self.address
        kind = partial(HTTPSConnection, context=self.tls) if self.tls else HTTPConnection
        connection = kind(host, port, timeout=TIMEOUT_SECONDS)
        try:
            connection.request("GET", self.path(route), headers=self.headers)
            answer = connection.getresponse()
            body = answer.read()
        except HTTPException as error:
            raise RuntimeError(f"what answers there does not speak HTTP: {error!r}") from error
        finally:
            connection.close()
        if answer.status != HTTPStatus.OK:
            raise refused(str(answer.status), body)
        return body


def refused(status: str, body: bytes) -> RuntimeError:
    """Return the error for an answer that is none, in the service's own words."""
    reason = REASON.search(body)
    said = f": {reason[1].decode(errors='replace')}" if reason else ""
    return RuntimeError(f"the service answered {status}{said}{HINTS.get(status, '')}")


def _model(told: dict[str, Any]) -> Model:
    return Model(
        name=told["model_id"],
        context=told["context"],
        disk_bytes=told["bytes_disk"],
        resident_bytes=told["bytes_resident"],
        perplexity=told["perplexity"],
        perplexity_ratio=told["perplexity_ratio"],
    )
