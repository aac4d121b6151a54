"""The errors that clients get.

ServiceError                 status, kind (TGI's `error_type`) and a text that is safe to show
├── UnauthorizedError         401 no key that the service knows
├── InvalidRequestError       422 a field is outside its legal range
├── UnknownModelError         404 no such model is loaded
├── NoChatError               404 a base model is asked to chat
├── UnknownRouteError         404, 405 and whatever else the router refuses
├── BodyTooLargeError         413
├── MalformedRequestError     400 what came is not HTTP
├── SlowRequestError          408 the head or the body did not come in time
├── UnsupportedEncodingError  415 the body is compressed
├── BodiesOverloadedError     503 the bodies of all requests have as many bytes as are allowed
├── OverloadedError           429 every slot and every place in the queue is taken
│   └── TokensOverloadedError 429 the accepted requests have as many tokens as are allowed
├── NotReadyError             503 the models are still loading
├── DrainingError             503 the server is stopping
├── DeadlineError             504 the request took too long
├── ClientGoneError           499 the client has gone; only seen in the metrics
└── RequestFailedError        500 the engine or the server failed

Every one is answered as {"error": text, "error_type": kind}, inside a stream as an event. Under /v1 the shape is
OpenAI's, {"error": {"message", "type", "param", "code"}}, and 400 takes the place of 422.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

SHOWN_PROBLEMS = 3
SHOWN_CHARACTERS = 64
UNION_TAGS = frozenset({"text", "texts", "ids", "ids_list"})  # of schemas.EmbeddingRequest.inputs


FIELD = re.compile(r"(\w[\w.]*): ")
OPENAI_TYPES = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class ServiceError(Exception):
    """A request that is not served.

    Attributes:
        status: HTTP status.
        kind: TGI's error kind.
        reason: label of ttgpt_requests_rejected_total; None where nothing was rejected.
        headers: to send along.
    """

    status: int = 500
    kind: ClassVar[str] = "internal"
    reason: ClassVar[str | None] = None
    headers: Mapping[str, str] | None = None

    @property
    def body(self) -> dict[str, str]:
        """What the client reads."""
        return {"error": str(self), "error_type": self.kind}

    @property
    def openai_status(self) -> int:
        """The status under /v1."""
        return 400 if self.status == 422 else self.status

    @property
    def openai_body(self) -> dict[str, dict[str, str | None]]:
        """What the client of a route under /v1 reads."""
        text = str(self)
        field = FIELD.match(text) if isinstance(self, InvalidRequestError) else None
        kind = OPENAI_TYPES.get(self.status, "invalid_request_error" if self.status < 500 else "server_error")
        return {"error": {"message": text, "type": kind, "param": field and field[1], "code": self.kind}}


class InvalidRequestError(ServiceError):
    """A field is outside its legal range."""

    status = 422
    kind = "validation"
    reason = "invalid"


class UnauthorizedError(ServiceError):
    """The request has no key that the service knows."""

    status = 401
    kind = "unauthorized"
    reason = "unauthorized"

    def __init__(self) -> None:
        super().__init__("send a valid key as the header authorization: Bearer KEY")
        self.headers = {"www-authenticate": "Bearer"}


class UnknownModelError(ServiceError):
    """No model of that name is loaded."""

    status = 404
    kind = "model_not_found"
    reason = "invalid"

    def __init__(self, loaded: Sequence[str]) -> None:
        super().__init__(f"model must be one of {', '.join(loaded)}")


class NoChatError(ServiceError):
    """A base model is asked to chat."""

    status = 404
    kind = "no_chat_template"
    reason = "invalid"

    def __init__(self) -> None:
        super().__init__("these are base models without a chat template, which continue text: use /v1/completions")


class UnknownRouteError(ServiceError):
    """The router refused the request."""

    kind = "not_found"

    def __init__(self, detail: str, status: int, headers: Mapping[str, str] | None) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = headers


class BodyTooLargeError(ServiceError):
    """The body is longer than the setting allows."""

    status = 413
    kind = "validation"
    reason = "too_large"

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the body must be at most {limit_bytes} bytes long")


class MalformedRequestError(ServiceError):
    """What came is not HTTP, or more of it than is read."""

    status = 400
    kind = "validation"


class SlowRequestError(ServiceError):
    """The head or the body did not come in time."""

    status = 408
    kind = "timeout"

    def __init__(self, part: str, seconds: float) -> None:
        super().__init__(f"the {part} of the request did not come within {seconds:g} seconds")
        self.headers = {"connection": "close"}


class UnsupportedEncodingError(ServiceError):
    """The body is compressed."""

    status = 415
    kind = "validation"
    reason = "invalid"

    def __init__(self) -> None:
        super().__init__("the body must not be compressed; send it without content-encoding")
        self.headers = {"accept-encoding": "identity"}


class BodiesOverloadedError(ServiceError):
    """The bodies of all requests have as many bytes as are allowed."""

    status = 503
    kind = "overloaded"
    reason = "queue_bytes"

    def __init__(self) -> None:
        super().__init__("too many bytes of request bodies are in flight; try again in 1 second")
        self.headers = {"retry-after": "1"}


class OverloadedError(ServiceError):
    """Every slot and every place in the queue is taken."""

    status = 429
    kind = "overloaded"
    reason = "queue_full"

    def __init__(self, retry_seconds: int) -> None:
        super().__init__(f"the service is overloaded; try again in {retry_seconds} seconds")
        self.headers = {"retry-after": str(retry_seconds)}


class TokensOverloadedError(OverloadedError):
    """The accepted requests have as many tokens as are allowed."""

    reason = "queue_tokens"


class NotReadyError(ServiceError):
    """The models are still loading."""

    status = 503
    kind = "healthcheck"

    def __init__(self) -> None:
        super().__init__("the models are not loaded yet; wait until GET /readyz answers 200")
        self.headers = {"retry-after": "1"}


class DrainingError(ServiceError):
    """The server is stopping."""

    status = 503
    kind = "healthcheck"
    reason = "draining"

    def __init__(self) -> None:
        super().__init__("the server is stopping; try another one")
        self.headers = {"retry-after": "1", "connection": "close"}


class DeadlineError(ServiceError):
    """The request took too long."""

    status = 504
    kind = "timeout"

    def __init__(self) -> None:
        super().__init__("the request took longer than this server allows; ask for less, or when it is less busy")


class ClientGoneError(ServiceError):
    """The client has gone before its answer was there."""

    status = 499
    kind = "cancelled"

    def __init__(self) -> None:
        super().__init__("the client went away")


class RequestFailedError(ServiceError):
    """The engine or the server failed."""

    status = 500
    kind = "incomplete_generation"

    def __init__(self) -> None:
        super().__init__("the request failed inside the server; its log says why")


def wire_of(error: ServiceError, path: str) -> tuple[int, Mapping[str, Any]]:
    """Return status and body of an error in the shape that belongs to a path."""
    if path == "/v1" or path.startswith("/v1/"):
        return error.openai_status, error.openai_body
    return error.status, error.body


def problems(errors: Sequence[Mapping[str, Any]]) -> str:
    """Return what a client gets for the first of pydantic's errors in a body."""
    return "; ".join(map(_problem, errors[:SHOWN_PROBLEMS]))


def shown(value: object) -> str:
    """Return what a client has sent so that it fits into one line: cut, and without what cannot be printed."""
    text = str(value)
    cut = text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
    return "".join(letter if letter.isprintable() else "?" for letter in cut)


def _problem(error: Mapping[str, Any]) -> str:
    """Name the field and its legal range, and the value if it is a number: texts stay private."""
    field = ".".join(shown(part) for part in error["loc"] if part not in UNION_TAGS) or "body"
    if error["type"] in ("model_type", "model_attributes_type"):
        return f"{field}: must be a JSON object"
    if error["type"] == "extra_forbidden":
        return f"{field}: is not a known field"
    value = error.get("input")
    given = f", not {shown(value)}" if isinstance(value, bool | int | float) else ""
    return f"{field}: {error['msg'].removeprefix('Value error, ')}{given}"
