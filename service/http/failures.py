"""What a client gets for an exception, and what the documentation of the routes says about such answers."""

from typing import Any

from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from service.errors import InvalidRequestError, RequestFailedError, ServiceError, UnknownRouteError, problems

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


def as_service_error(error: Exception) -> ServiceError:
    """Return what a client gets for any exception."""
    if isinstance(error, ServiceError):
        return error
    if isinstance(error, RequestValidationError):
        return InvalidRequestError(problems([{**e, "loc": e["loc"][1:]} for e in error.errors()]))
    if isinstance(error, HTTPException) and error.status_code == 400:
        return InvalidRequestError(str(error.detail))
    if isinstance(error, HTTPException):
        return UnknownRouteError(str(error.detail), error.status_code, error.headers)
    return RequestFailedError()


def failures(model: type[BaseModel], without: int) -> dict[int | str, dict[str, Any]]:
    """Return what the statuses of failed requests mean, all but `without`, whose bodies are `model`."""
    return {status: {"model": model, "description": text} for status, text in MEANINGS.items() if status != without}


STREAM_DOCS: dict[int | str, dict[str, Any]] = {
    200: {"content": {"text/event-stream": {}}, "description": "server-sent events, one per token"}
}
