"""The page for people: a fixed set of files, which hold no secret and need no key."""

import hashlib
from collections.abc import Callable, Coroutine
from importlib.resources import files
from typing import Any

from fastapi import APIRouter
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Scope

FIRST = "index.html"
FOLDER = "/page/"
MEDIA_TYPES = {"css": "text/css", "html": "text/html", "js": "text/javascript", "svg": "image/svg+xml"}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "referrer-policy": "no-referrer",
    "vary": "accept",
    "x-content-type-options": "nosniff",
}

Endpoint = Callable[[Request], Coroutine[Any, Any, Response]]


def asks_for_page(scope: Scope) -> bool:
    """Return whether a request is for the page or one of its files; for `/` only browsers ask in this way."""
    if scope["method"] not in ("GET", "HEAD"):
        return False
    path: str = scope["path"]
    return path.startswith(FOLDER) or (path == "/" and _takes_html(Headers(scope=scope)))


def page_router() -> APIRouter:
    """Return a route per file; clients at `/` that do not ask for HTML get what they would without the page."""
    router = APIRouter(include_in_schema=False)
    shipped = [(file.name, file.read_bytes()) for file in (files("service") / "page").iterdir()]
    for name, content in shipped:
        router.add_api_route(f"{FOLDER}{name}", _file(name, content))
    first = _file(FIRST, dict(shipped)[FIRST])

    async def root(request: Request) -> Response:
        if not _takes_html(request.headers):
            raise HTTPException(405, headers={"allow": "POST", "vary": "accept"})
        return await first(request)

    router.add_api_route("/", root)
    return router


def _takes_html(headers: Headers) -> bool:
    kinds = headers.get("accept", "").split(",")
    return any(kind.partition(";")[0].strip().lower() == "text/html" for kind in kinds)


def _file(name: str, content: bytes) -> Endpoint:
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    headers, media_type = {**HEADERS, "etag": etag}, MEDIA_TYPES[name.rpartition(".")[2]]

    async def answer(request: Request) -> Response:
        known = {tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(",")}
        if {etag, "*"} & known:
            return Response(status_code=304, headers=headers)
        return Response(content, headers=headers, media_type=media_type)

    return answer
