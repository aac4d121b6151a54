"""The description of the routes, as they really answer."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

OPEN_TAG = "probes"


def described(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document: FastAPI's, without the 422 that routes under /v1 never answer, and with keys."""
    if app.openapi_schema is None:
        document = get_openapi(title=app.title, version=app.version, routes=app.routes)
        for path, verbs in document["paths"].items():
            for operation in verbs.values():
                if path.startswith("/v1/"):
                    operation["responses"].pop("422", None)
                if OPEN_TAG not in operation.get("tags", ()) or path == "/metrics":
                    operation["security"] = [{}, {"key": []}]
        key = {"type": "http", "scheme": "bearer", "description": "if the service has keys"}
        document["components"]["securitySchemes"] = {"key": key}
        app.openapi_schema = document
    return app.openapi_schema
