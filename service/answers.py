"""From what the engine delivers to what goes over the wire."""

import asyncio
import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import torch
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from torch import Tensor

from service.errors import RequestFailedError, as_service_error
from service.generation import Generation, Prompt, Token
from service.jobs import Mailbox
from service.models import LoadedModel
from service.schemas import Details, GenerateResponse, StreamDetails, StreamEvent, TokenInfo


@asynccontextmanager
async def watched(request: Request, mailbox: Mailbox[Any]) -> AsyncIterator[None]:
    """Cancel the work behind `mailbox` as soon as the client goes away, or when the block is left."""

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        mailbox.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        mailbox.cancel()


async def whole(request: Request, job: Generation, prefix: str, *, details: bool) -> GenerateResponse:
    """Wait for the whole text and return it behind `prefix`."""
    async with watched(request, job.mailbox):
        tokens = [token async for token in job.mailbox.events()]
    end = tokens[-1].end
    if end is None:
        raise RequestFailedError
    text = prefix + end.text
    if not details:
        return GenerateResponse(generated_text=text)
    told = Details(
        finish_reason=end.reason,
        generated_tokens=len(tokens),
        seed=job.prompt.sampling.seed,
        prefill=[],
        tokens=[_token_info(token) for token in tokens],
    )
    return GenerateResponse(generated_text=text, details=told)


class EventStream(StreamingResponse):
    """Server-sent events, one per token, as TGI writes them; an error is an event, too."""

    media_type = "text/event-stream"

    def __init__(self, job: Generation, prefix: str) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(_events(job, prefix), headers=headers)
        self._mailbox = job.mailbox

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._mailbox.cancel()


async def _events(job: Generation, prefix: str) -> AsyncIterator[str]:
    index = 0
    try:
        async for token in job.mailbox.events():
            index += 1
            yield _event(_stream_event(index, token, job.prompt, prefix).model_dump_json())
    except Exception as error:
        yield _event(json.dumps(as_service_error(error).body))


def _event(data: str) -> str:
    return f"data:{data}\n\n"


def _stream_event(index: int, token: Token, prompt: Prompt, prefix: str) -> StreamEvent:
    info, end = _token_info(token), token.end
    if end is None:
        return StreamEvent(index=index, token=info, generated_text=None, details=None)
    details = StreamDetails(
        finish_reason=end.reason,
        generated_tokens=index,
        seed=prompt.sampling.seed,
        input_length=len(prompt.ids),
    )
    return StreamEvent(index=index, token=info, generated_text=prefix + end.text, details=details)


def _token_info(token: Token) -> TokenInfo:
    return TokenInfo(id=token.id, text=token.text, logprob=token.logprob, special=token.special)


async def embedding_json(
    model: LoadedModel, rows: list[list[int]], vectors: Tensor, *, encode: bool
) -> AsyncIterator[str]:
    """Yield an EmbeddingResponse for `vectors` [sum of the rows' lengths, D] in pieces.

    A thousand vectors are megabytes of JSON: written at once they would hold up everybody else.
    """
    head = json.dumps({"model": model.name, "dim": vectors.shape[1]})
    yield f'{head[:-1]}, "data": ['
    for index, (ids, block) in enumerate(zip(rows, torch.split(vectors, [len(row) for row in rows]), strict=True)):
        tokens = [model.tokenizer.id_to_token(token_id) or "" for token_id in ids]
        head = json.dumps({"index": index, "ids": ids, "tokens": tokens})
        yield f'{", " if index else ""}{head[:-1]}, "vectors": '
        if encode:
            yield json.dumps(base64.b64encode(block.numpy().astype("<f4").tobytes()).decode())
        else:
            yield "["
            for row, vector in enumerate(block):
                yield f"{', ' if row else ''}{json.dumps(vector.tolist())}"
                await asyncio.sleep(0)
            yield "]"
        yield "}"
    yield "]}"
