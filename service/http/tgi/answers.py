"""From what the engine delivers to what goes over the wire."""

import json
from collections.abc import AsyncIterator, Sequence
from statistics import fmean
from typing import Any

from starlette.requests import Request

from service.engine.generation import End, Generation, Token
from service.engine.models import LoadedModel
from service.errors import RequestFailedError
from service.http.failures import as_service_error
from service.http.streams import watched
from service.http.tgi.schemas import (
    Details,
    GenerateResponse,
    OtherSequence,
    PrefillToken,
    StreamDetails,
    StreamEvent,
    TokenInfo,
)
from service.http.words import own_text, released

Text = tuple[Generation, list[Token]]


async def whole(request: Request, jobs: Sequence[Generation], prefix: str, *, details: bool) -> GenerateResponse:
    """Wait for all texts and return the one that is likeliest per token, behind `prefix`."""
    async with watched(request, *(job.mailbox for job in jobs)):
        texts = [(job, [token async for token in job.mailbox.events()]) for job in jobs]
    best = texts[0] if len(texts) == 1 else max(texts, key=_mean_logprob)
    text = prefix + _end(best).text
    if not details:
        return GenerateResponse(generated_text=text)
    prefill = _prefill(jobs[0])  # all have the same prompt
    about = _about(best, prefill)
    if len(texts) > 1:
        others = [other for other in texts if other is not best]
        about["best_of_sequences"] = [
            OtherSequence(generated_text=prefix + _end(other).text, **_about(other, prefill)) for other in others
        ]
    return GenerateResponse(generated_text=text, details=Details(**about))


def _mean_logprob(text: Text) -> float:
    return fmean(token.logprob for token in text[1])


def _end(text: Text) -> End:
    end = text[1][-1].end
    if end is None:
        raise RequestFailedError
    return end


def _about(text: Text, prefill: list[PrefillToken]) -> dict[str, Any]:
    """Return the fields of `SequenceDetails`."""
    job, tokens = text
    fields: dict[str, Any] = {
        "finish_reason": _end(text).reason,
        "generated_tokens": len(tokens),
        "seed": job.prompt.sampling.seed,
        "prefill": prefill,
        "tokens": [_token_info(token) for token in tokens],
    }
    return fields | ({"top_tokens": [_top(token, job.prompt.model) for token in tokens]} if job.top else {})


def _prefill(job: Generation) -> list[PrefillToken]:
    if job.scores is None:
        return []
    ids, logprobs = job.prompt.ids, [None, *job.scores.found.logprobs.tolist()]
    pieces = zip(ids, released(ids, job.prompt.model), logprobs, strict=True)
    return [PrefillToken(id=token_id, text=text, logprob=logprob) for token_id, text, logprob in pieces]


async def tgi_events(job: Generation, prefix: str) -> AsyncIterator[str]:
    """Yield one event per token, as TGI writes them; an error is an event, too."""
    index = 0
    try:
        async for tokens in job.mailbox.batches():  # more than one if the client is slow: sent together
            events = [_stream_event(index + i, token, job, prefix) for i, token in enumerate(tokens, 1)]
            index += len(events)
            yield "".join(_event(event.model_dump_json(exclude_unset=True)) for event in events)
    except Exception as error:
        yield _event(json.dumps(as_service_error(error).body))


def _event(data: str) -> str:
    return f"data:{data}\n\n"


def _stream_event(index: int, token: Token, job: Generation, prefix: str) -> StreamEvent:
    end, text, details = token.end, None, None
    if end is not None:
        text = prefix + end.text
        details = StreamDetails(
            finish_reason=end.reason,
            generated_tokens=index,
            seed=job.prompt.sampling.seed,
            input_length=len(job.prompt.ids),
        )
    top: dict[str, Any] = {"top_tokens": _top(token, job.prompt.model)} if job.top else {}
    return StreamEvent(index=index, token=_token_info(token), generated_text=text, details=details, **top)


def _token_info(token: Token) -> TokenInfo:
    return TokenInfo(id=token.id, text=token.text, logprob=token.logprob, special=token.special)


def _top(token: Token, model: LoadedModel) -> list[TokenInfo]:
    special = model.vocabulary.special
    return [TokenInfo(id=i, text=own_text(i, model), logprob=value, special=i in special) for i, value in token.top]
