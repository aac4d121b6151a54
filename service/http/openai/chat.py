"""Chats with base models: a completion of the transcript that an operator's template makes of the messages."""

import json
from collections.abc import AsyncIterator
from itertools import chain
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Request
from pydantic import ConfigDict, Field
from starlette.responses import Response

from service.chat_template import ANSWERS, ChatTemplate
from service.errors import InvalidRequestError, NoChatError
from service.http.body_route import BodyRoute
from service.http.failures import STREAM_DOCS, failures
from service.http.middleware import request_id
from service.http.openai.completions import openai_events, whole_completion
from service.http.openai.prompts import completion_jobs
from service.http.openai.schemas import (
    MAX_LOGPROBS,
    CompletionRequest,
    OpenAIErrorBody,
    Usage,
    WritingFields,
)
from service.http.schemas import MAX_PROMPTS, MAX_TOKENS, Body, Name, Text, several
from service.http.state import ServiceOf
from service.http.streams import EventStream
from service.http.timing import tell_times

MAX_MESSAGES = 8 * MAX_PROMPTS
EVENT, DONE = "data: ", "[DONE]"


class TextPart(Body):
    """A part of a message."""

    type: Literal["text"]
    text: Text


class Message(Body):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[TextPart], several(1, MAX_PROMPTS)]
    name: Name | None = Field(None, description="accepted, changes nothing")

    @property
    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatRequest(WritingFields):
    """POST /v1/chat/completions. Its texts are answers, which also end where the template says."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"messages": [{"role": "user", "content": "Where is the sea?"}], "max_tokens": 20, "seed": 7}]
        }
    )

    messages: Annotated[list[Message], several(1, MAX_MESSAGES)]
    max_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(None, description="up to the context's end")
    max_completion_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] | None = Field(
        None, description="the same, by its new name"
    )
    logprobs: bool | None = Field(None, description="tell the log-probability of every token")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS, description="and of so many likeliest ones")


class Likely(Body):
    """A token that was likely."""

    token: str
    logprob: float
    bytes: None = None


class Written(Likely):
    """A token that was written; `token` is what it released."""

    top_logprobs: list[Likely]


class ChatLogprobs(Body):
    """The tokens of an answer, or of a piece of it."""

    content: list[Written]


class Answer(Body):
    """A turn of the model's."""

    role: Literal["assistant"] = "assistant"
    content: str


class ChatChoice(Body):
    """One answer."""

    index: int
    message: Answer
    logprobs: ChatLogprobs | None
    finish_reason: Literal["length", "stop"] | None


class Chat(Body):
    """The answers; a stream has chunks of them, in which `message` is called `delta`."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice]
    usage: Usage | None


def chat_routes(template: ChatTemplate | None) -> APIRouter:
    """Return the route for chats: without a template it refuses them, whatever the body is."""
    router = APIRouter(tags=["OpenAI"], prefix="/v1", route_class=BodyRoute)
    path, errors = "/chat/completions", failures(OpenAIErrorBody, without=422)

    async def refuse() -> Response:
        """Tell that these are base models; whatever the body is."""
        raise NoChatError

    if template is None:
        router.post(path, status_code=404, response_model=OpenAIErrorBody, responses=errors)(refuse)
        return router

    async def chat_completions(body: ChatRequest, request: Request, service: ServiceOf) -> Response:
        """Continue a conversation, as the operator's template writes it down."""
        model, name = service.lifecycle.models.named(body.model), f"chatcmpl-{request_id(request.scope)}"
        asked = _completion_of(body, template, model.context)
        try:
            wanted = await completion_jobs(asked, name, model, service.engine.metrics)
        except InvalidRequestError as error:
            raise InvalidRequestError(_in_words_of_chats(str(error))) from error
        await service.submit(model, chain.from_iterable(wanted.prompts), wanted.jobs)
        told = _Telling(template)
        if body.stream:
            return EventStream(told.events(openai_events(wanted)), wanted.mailboxes)
        whole = told.whole(json.loads(await whole_completion(wanted, request)))
        answer = Response(json.dumps(whole, ensure_ascii=False), media_type="application/json")
        tell_times(answer, request, wanted.jobs)
        return answer

    docs: dict[int | str, dict[str, Any]] = {
        200: {**STREAM_DOCS[200], "description": "the answers, or server-sent events, one per token"}
    }
    router.post(path, response_model=Chat, responses={**errors, **docs})(chat_completions)
    return router


def _completion_of(body: ChatRequest, template: ChatTemplate, context: int) -> CompletionRequest:
    """Return the completion that a chat is."""
    if body.top_logprobs is not None and not body.logprobs:
        raise InvalidRequestError("top_logprobs: needs logprobs")
    if None not in (body.max_tokens, body.max_completion_tokens) and body.max_tokens != body.max_completion_tokens:
        raise InvalidRequestError("max_tokens: must be max_completion_tokens, or left out")
    completion = CompletionRequest(
        prompt=template.transcript((message.role, message.text) for message in body.messages),
        max_tokens=body.max_completion_tokens or body.max_tokens or context,
        logprobs=(body.top_logprobs or 0) if body.logprobs else None,
        **{name: getattr(body, name) for name in WritingFields.model_fields},
    )
    return completion.model_copy(update={"stop": [*(body.stop or ()), template.closing]})


def _in_words_of_chats(message: str) -> str:
    """Return an error about a completion with the names of a chat's fields."""
    field, colon, rest = message.partition(":")
    return f"messages{colon}{rest}" if field == "prompt" else message


class _Telling:
    """Words completions as chats."""

    def __init__(self, template: ChatTemplate) -> None:
        self._spaced = template.is_spaced
        self._begun: set[int] = set()

    def whole(self, completion: dict[str, Any]) -> dict[str, Any]:
        """Return a completion as a chat."""
        choices = [
            {**self._choice(choice), "message": {"role": ANSWERS, "content": self._content(choice)}}
            for choice in completion["choices"]
        ]
        return {**completion, "object": "chat.completion", "choices": choices}

    async def events(self, completions: AsyncIterator[str]) -> AsyncIterator[str]:
        """Yield the events of a completion as those of a chat."""
        async for event in completions:
            data = event.removeprefix(EVENT).strip()
            if data == DONE or "choices" not in (chunk := json.loads(data)):
                yield event
                continue
            chunk |= {"object": "chat.completion.chunk", "choices": [*map(self._chunk, chunk["choices"])]}
            yield f"{EVENT}{json.dumps(chunk, ensure_ascii=False)}\n\n"

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        role = {} if choice["index"] in self._begun else {"role": ANSWERS}
        return {**self._choice(choice), "delta": {**role, "content": self._content(choice)}}

    def _content(self, choice: dict[str, Any]) -> str:
        """Return a text, or the next piece of it, without the space that belongs to the template."""
        text, index = str(choice["text"]), int(choice["index"])
        if index not in self._begun and text:
            self._begun.add(index)
            return text.removeprefix(" ") if self._spaced else text
        return text

    def _choice(self, choice: dict[str, Any]) -> dict[str, Any]:
        logprobs = choice["logprobs"]
        return {
            "index": choice["index"],
            "logprobs": None if logprobs is None else {"content": _written(logprobs)},
            "finish_reason": choice["finish_reason"],
        }


def _written(logprobs: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the tokens of a completion as those of a chat; the one that was written is the last of its likely ones."""
    tops = logprobs["top_logprobs"] or [{}] * len(logprobs["tokens"])
    return [
        {"token": token, "logprob": logprob, "bytes": None, "top_logprobs": [*map(_likely, top.items())]}
        for token, logprob, top in zip(logprobs["tokens"], logprobs["token_logprobs"], tops, strict=True)
    ]


def _likely(top: tuple[str, float]) -> dict[str, Any]:
    token, logprob = top
    return {"token": token, "logprob": logprob, "bytes": None}
