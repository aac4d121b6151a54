"""Reading a request's body: its shape is bounded before anything is made of it.

Law: a body is passed over once, in small steps, and only one that has no more values than a legal request can have is
parsed and validated; so refusing it costs no more than its size. What takes longer than a moment is done in a thread,
one body at a time, and no step of it keeps the interpreter's lock for long: the event loop keeps answering.
"""

import asyncio
import json
import re
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from typing import Any, NoReturn, cast

from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.errors import ClientGoneError, InvalidRequestError, problems, shown
from service.http.schemas import MAX_IDS, MAX_PROMPTS

SHORT_BYTES = 1 << 14  # read in a millisecond or two, whatever is in it
MAX_DEPTH = 32
MAX_FIELDS = 512
MAX_PIECES = 4 * MAX_IDS  # strings, brackets, colons and commas; a list of MAX_IDS texts has twice as many
PIECE = re.compile(
    r'"[^"\\]*+(?:\\.[^"\\]*+)*+"|\[[^][{}"]*+\]|[][{}:,"]', re.DOTALL
)  # strings, lists of numbers, marks

Handler = Callable[[Request], Coroutine[Any, Any, Response]]


class BodyRoute(APIRoute):
    """A route whose body is read here rather than by FastAPI, which then finds it valid."""

    def get_route_handler(self) -> Handler:
        """Return what answers a request."""
        answer = super().get_route_handler()
        if self.body_field is None:
            return answer
        model: type[BaseModel] = cast(Any, self.body_field.field_info.annotation)

        async def read_and_answer(request: Request) -> Response:
            return await answer(_Read(request, await _read(request, model)))

        return read_and_answer


class _Read(Request):
    """A request whose body has been read and validated."""

    def __init__(self, request: Request, value: BaseModel) -> None:
        super().__init__(request.scope, request.receive)
        self._value = value

    async def body(self) -> bytes:
        return b"read"

    async def json(self) -> BaseModel:
        return self._value


async def _read(request: Request, model: type[BaseModel]) -> BaseModel:
    """Return the body; raises InvalidRequestError, naming the field and its legal range."""
    service = request.app.state.service
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if not (kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))):
        raise InvalidRequestError("body: must be JSON with content-type: application/json")
    try:
        data = b"".join([chunk async for chunk in request.stream()])
    except ClientDisconnect as error:
        raise ClientGoneError from error
    read = partial(validated, data, model, max(service.settings.max_tokens, MAX_PROMPTS * MAX_IDS))
    if len(data) <= SHORT_BYTES:
        return read()
    async with service.reading:
        return await asyncio.to_thread(read)


def validated(data: bytes, model: type[BaseModel], most_numbers: int) -> BaseModel:
    """Return the body that `data` is.

    Raises:
        InvalidRequestError: naming the field and its legal range.
    """
    value = parsed(data, most_numbers)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise InvalidRequestError(problems(error.errors(include_url=False))) from error


def parsed(data: bytes, most_numbers: int) -> object:
    """Return the JSON value that `data` is, with at most `most_numbers` in all lists of numbers.

    Raises:
        InvalidRequestError: if it is not JSON in UTF-8, is larger, or names a field twice.
    """
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidRequestError("body: is not UTF-8") from error
    _check_shape(text, most_numbers)
    try:
        return DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise InvalidRequestError(f"body: is not JSON: {error.msg} at character {error.pos}") from error
    except ValueError as error:  # of int(), which reads 4,300 digits
        raise InvalidRequestError("body: a number has too many digits") from error


def _check_shape(text: str, most_numbers: int) -> None:
    """Refuse what has more values, or is nested deeper, than any legal body; what is not JSON may pass."""
    depth = fields = numbers = 0
    for count, match in enumerate(PIECE.finditer(text)):
        start, end = match.span()
        mark = text[start]
        if end - start == 1:
            depth += (mark in "[{") - (mark in "]}")
            fields += mark == ":"
        elif mark == "[":
            numbers += text.count(",", start, end) + (end - start > 2)
        if mark == '"' and end - start == 1:
            raise InvalidRequestError("body: is not JSON: a string does not end")
        if depth > MAX_DEPTH or fields > MAX_FIELDS or count >= MAX_PIECES:
            limits = f"{MAX_FIELDS} fields, {MAX_IDS} texts or lists, nested {MAX_DEPTH} deep"
            raise InvalidRequestError(f"body: must have at most {limits}")
        if numbers > most_numbers:
            raise InvalidRequestError(f"body: must have at most {most_numbers} token ids (TTGPT_MAX_TOKENS)")


def _fields(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object, each of whose fields must stand there once."""
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise InvalidRequestError(f"{shown(next(n for n in names if names.count(n) > 1))}: stands there twice")
    return found


def _no_number(name: str) -> NoReturn:
    raise InvalidRequestError(f"body: {name} is not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_fields, parse_constant=_no_number)
