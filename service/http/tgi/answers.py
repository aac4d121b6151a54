"""From what the engine delivers to what goes over the wire."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.engine.generation import Generation, Prompt, Token
from service.engine.jobs import Mailbox
from service.errors import RequestFailedError, as_service_error
from service.http.tgi.schemas import Details, GenerateResponse, StreamDetails, StreamEvent, TokenInfo


@asynccontextmanager
async def watched(request: Request, *mailboxes: Mailbox[Any]) -> AsyncIterator[None]:
    """Cancel the work behind `mailboxes` as soon as the client goes away, or when the block is left."""

    def cancel() -> None:
        for mailbox in mailboxes:
            mailbox.cancel()

    async def watch() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    finally:
        watcher.cancel()
        cancel()


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
    """Server-sent events; the work behind them ends with the connection."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], mailboxes: Sequence[Mailbox[Any]]) -> None:
        """Send `events`; nobody reads the mailboxes any more when that has ended, well or not."""
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no", "x-compute-type": "cpu"}
        super().__init__(events, headers=headers)
        self._mailboxes = mailboxes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for mailbox in self._mailboxes:
                mailbox.cancel()


async def tgi_events(job: Generation, prefix: str) -> AsyncIterator[str]:
    """Yield one event per token, as TGI writes them; an error is an event, too."""
    index = 0
    try:
        async for tokens in job.mailbox.batches():  # more than one if the client is slow: sent together
            events = [_stream_event(index + i, token, job.prompt, prefix) for i, token in enumerate(tokens, 1)]
            index += len(events)
            yield "".join(_event(event.model_dump_json()) for event in events)
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
