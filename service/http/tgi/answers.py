"""From what the engine delivers to what goes over the wire."""

import json
from collections.abc import AsyncIterator

from starlette.requests import Request

from service.engine.generation import Generation, Prompt, Token
from service.errors import RequestFailedError
from service.http.failures import as_service_error
from service.http.streams import watched
from service.http.tgi.schemas import Details, GenerateResponse, StreamDetails, StreamEvent, TokenInfo


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
    about = Details(
        finish_reason=end.reason,
        generated_tokens=len(tokens),
        seed=job.prompt.sampling.seed,
        prefill=[],
        tokens=[_token_info(token) for token in tokens],
    )
    return GenerateResponse(generated_text=text, details=about)


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
