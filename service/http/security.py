"""Who may ask: clients with one of the keys, if there are any."""

import hashlib
import hmac
from collections.abc import Sequence

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from service.errors import UnauthorizedError
from service.http.middleware import error_response
from service.http.page import asks_for_page
from service.metrics import Metrics

OPEN_PATHS = frozenset({"/livez", "/startupz", "/readyz", "/health"})


class RequireKey:
    """Answers 401 to requests without a known key, on every path but those of the probes and the page.

    Only hashes are known. All of them are compared, each in constant time, so that neither the time nor the
    settings tell a key. Keys must be long and random, since their hashes have no salt.
    """

    def __init__(self, app: ASGIApp, hashes: Sequence[str], metrics: Metrics) -> None:
        self._app = app
        self._hashes = hashes
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or self._open(scope) or self._knows(Headers(scope=scope)):
            await self._app(scope, receive, send)
        else:
            await error_response(UnauthorizedError(), self._metrics, scope["path"])(scope, receive, send)

    @staticmethod
    def _open(scope: Scope) -> bool:
        return scope["path"] in OPEN_PATHS or asks_for_page(scope)

    def _knows(self, headers: Headers) -> bool:
        scheme, _, key = headers.get("authorization", "").partition(" ")
        found = hashlib.sha256(key.strip().encode("latin-1")).hexdigest()
        matches = [hmac.compare_digest(found, known) for known in self._hashes]
        return scheme.lower() == "bearer" and any(matches)
