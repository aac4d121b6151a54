"""What the routes are shown of a request, so that neither a proxy's prefix, nor a slash, nor HEAD needs one more."""

from starlette.types import ASGIApp, Receive, Scope, Send


def inner_path(path: str, root_path: str) -> str:
    """Return the path of a route: without the prefix, if no proxy has cut it off, and without a slash at its end."""
    if path == root_path or path.startswith(f"{root_path}/"):
        path = path[len(root_path) :]
    return path.rstrip("/") or "/"


class Paths:
    """Shows the app the paths that its routes have, so that nothing has to be redirected."""

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope["path"], scope["root_path"] = inner_path(scope["path"], self._root_path), self._root_path
        await self._app(scope, receive, send)


class HeadAsGet:
    """Routes HEAD like GET; the server leaves out the body of the answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        as_get = {**scope, "method": "GET"}
        try:
            await self._app(as_get, receive, send)
        finally:
            scope["route"] = as_get.get("route")
