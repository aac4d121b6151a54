"""What the documentation of the routes says about answers that are not the usual ones."""

from typing import Any

from pydantic import BaseModel

MEANINGS = {
    400: "a field is outside its legal range",
    401: "no valid key",
    404: "no such model",
    408: "the body did not come in time",
    413: "the body is too long",
    415: "the body is compressed",
    422: "a field is outside its legal range",
    429: "overloaded; retry-after says when to come back",
    500: "the request failed inside the server",
    503: "not ready, stopping, or too many bytes of bodies in flight",
    504: "the request took too long",
}


def failures(model: type[BaseModel], without: int) -> dict[int | str, dict[str, Any]]:
    """Return what the statuses of failed requests mean, all but `without`, whose bodies are `model`."""
    return {status: {"model": model, "description": text} for status, text in MEANINGS.items() if status != without}


STREAM_DOCS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "server-sent events, one per token"}
}
