"""OpenAI's completions: from a body to jobs, and from their tokens to choices.

Law: the whole answer is its stream, joined. Both are made of the same pieces.
"""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from starlette.requests import Request

from service.answers import watched
from service.errors import InvalidRequestError, as_service_error
from service.generation import FINISHED_REASON, Generation, Prompt, Token, Top, draw_seed
from service.intake import as_inputs, check_ids, encode, new_tokens
from service.jobs import Mailbox
from service.metrics import Metrics
from service.models import LoadedModel
from service.openai_schemas import DEFAULT_MAX_TOKENS, Choice, Completion, CompletionRequest, Logprobs, Usage
from service.sampling import Sampling
from service.schemas import MAX_SEED
from service.scoring import Scoring
from service.streaming import TextStream

Event = TypeVar("Event")
Scored = tuple[str, int, float | None, Top]  # released text, id, log-probability, likeliest tokens


@dataclass(frozen=True, kw_only=True)
class Order:
    """What one request wants.

    Attributes:
        name: the completion's id.
        body: the request.
        model: that writes.
        prompts: ids of each prompt; the choices of a prompt follow each other.
        echoes: text of each prompt.
        writing: a job per choice, none if only the prompts are wanted.
        scoring: a job per prompt whose log-probabilities are wanted.
        created: seconds since 1970.
    """

    name: str
    body: CompletionRequest
    model: LoadedModel
    prompts: list[tuple[int, ...]]
    echoes: list[str]
    writing: list[Generation]
    scoring: list[Scoring]
    created: int

    @property
    def jobs(self) -> list[Generation | Scoring]:
        """Everything that the engine has to do."""
        return [*self.scoring, *self.writing]

    @property
    def mailboxes(self) -> list[Mailbox[Token] | Mailbox[list[tuple[float, Top]]]]:
        """Where the results come."""
        return [job.mailbox for job in self.jobs]


async def order_of(body: CompletionRequest, name: str, model: LoadedModel, metrics: Metrics, chunk: int) -> Order:
    """Return the jobs of a request; those that score prompts read `chunk` tokens at a time.

    Raises:
        InvalidRequestError: naming the field that is out of range.
    """
    if body.stream_options is not None and not body.stream:
        raise InvalidRequestError("stream_options: needs stream")
    if body.max_tokens == 0 and not body.echo:
        raise InvalidRequestError("max_tokens: must be at least 1, or 0 with echo")
    inputs = as_inputs(body.prompt)
    prompts = [await _ids(i, model) for i in inputs]
    scored = body.logprobs is not None
    top = body.logprobs or 0
    writing = [
        Generation(prompt, metrics, streamed=bool(body.stream), scored=scored, top=top)
        for ids in prompts
        for prompt in _prompts(ids, body, model)
    ]
    return Order(
        name=name,
        body=body,
        model=model,
        prompts=prompts,
        echoes=[
            text if isinstance(text, str) else "".join(_released(ids, model))
            for text, ids in zip(inputs, prompts, strict=True)
        ],
        writing=writing,
        scoring=[Scoring(model, ids, top=top, chunk=chunk) for ids in prompts if scored and body.echo],
        created=int(time.time()),
    )


async def _ids(prompt: str | list[int], model: LoadedModel) -> tuple[int, ...]:
    if isinstance(prompt, str):
        prompt = await encode(prompt, model, model.context, "prompt") or [model.eos_id]
    check_ids(prompt, model, "prompt")
    if len(prompt) > model.context:
        raise InvalidRequestError(f"prompt: {len(prompt)} tokens are more than the {model.context} that fit")
    return tuple(prompt)


def _prompts(ids: tuple[int, ...], body: CompletionRequest, model: LoadedModel) -> list[Prompt]:
    """Return what each of the n generations has to do; as if every prompt were asked for alone."""
    if body.max_tokens == 0:
        return []
    asked = min(DEFAULT_MAX_TOKENS, max(model.context - len(ids), 1)) if body.max_tokens is None else body.max_tokens
    length = new_tokens(len(ids), asked, model.context, "max_tokens")
    seed = draw_seed() if body.seed is None else body.seed
    return [
        Prompt(
            model=model,
            ids=ids,
            max_new_tokens=length,
            sampling=_sampling(body, seed + i),
            stops=tuple(body.stop or ()),
        )
        for i in range(body.n or 1)
    ]


def _sampling(body: CompletionRequest, seed: int) -> Sampling:
    penalty = 1.0 if body.repetition_penalty is None else body.repetition_penalty
    if body.temperature == 0:
        return Sampling(repetition_penalty=penalty)
    return Sampling(
        seed=seed % (MAX_SEED + 1),
        temperature=1.0 if body.temperature is None else body.temperature,
        top_k=body.top_k,
        top_p=1.0 if body.top_p is None else body.top_p,
        repetition_penalty=penalty,
        repeatable=body.seed is not None,
    )


async def whole_completion(order: Order, request: Request) -> Completion:
    """Wait for all texts."""
    n = order.body.n or 1
    pieces: list[list[Choice]] = [[] for _ in range(len(order.prompts) * n)]
    async with watched(request, *order.mailboxes):
        async for piece in _pieces(order):
            pieces[piece.index].append(piece)
    return _completion(order, [_joined(parts) for parts in pieces], _usage(order))


async def openai_events(order: Order) -> AsyncIterator[str]:
    """Yield server-sent events, as OpenAI writes them; an error is an event, too."""
    options = order.body.stream_options
    try:
        async for piece in _pieces(order):
            if piece.text or piece.logprobs or piece.finish_reason:  # not for half a character
                yield _event(_completion(order, [piece], None).model_dump_json())
        if options is not None and options.include_usage:
            yield _event(_completion(order, [], _usage(order)).model_dump_json())
        yield _event("[DONE]")
    except Exception as error:
        yield _event(json.dumps(as_service_error(error).openai_body))


def _event(data: str) -> str:
    return f"data: {data}\n\n"


def _completion(order: Order, choices: list[Choice], usage: Usage | None) -> Completion:
    model = order.model
    return Completion(
        id=order.name,
        created=order.created,
        model=model.name,
        system_fingerprint=model.manifest.digest,
        choices=choices,
        usage=usage,
    )


def _usage(order: Order) -> Usage:
    read, written = sum(map(len, order.prompts)), sum(job.generated for job in order.writing)
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def _joined(pieces: Sequence[Choice]) -> Choice:
    logprobs = [piece.logprobs for piece in pieces if piece.logprobs is not None]
    tops = [top for part in logprobs for top in part.top_logprobs or ()]
    joined = Logprobs(
        tokens=[token for part in logprobs for token in part.tokens],
        token_logprobs=[value for part in logprobs for value in part.token_logprobs],
        top_logprobs=tops or None,
        text_offset=[offset for part in logprobs for offset in part.text_offset],
    )
    return Choice(
        index=pieces[0].index,
        text="".join(piece.text for piece in pieces),
        logprobs=joined if logprobs else None,
        finish_reason=pieces[-1].finish_reason,
    )


async def _pieces(order: Order) -> AsyncIterator[Choice]:
    """Yield the pieces of all choices as they come: the echoed prompt first, then one per token."""
    n, words = order.body.n or 1, _Words(order)
    offsets = [0] * (len(order.prompts) * n)
    if order.body.echo:
        for at, echo in enumerate(order.echoes):
            scored = await _scores(order, at) if order.scoring else None
            for index in range(at * n, (at + 1) * n):
                logprobs = words.logprobs(scored, 0) if scored else None
                ended: Literal["length"] | None = None if order.writing else "length"
                yield Choice(index=index, text=echo, logprobs=logprobs, finish_reason=ended)
                offsets[index] = len(echo)
    async for index, tokens in _arriving([job.mailbox for job in order.writing]):
        for token in tokens:
            logprobs = None
            if order.body.logprobs is not None:
                logprobs = words.logprobs([(token.text, token.id, token.logprob, token.top)], offsets[index])
            reason = FINISHED_REASON[token.end.reason] if token.end else None
            yield Choice(index=index, text=token.text, logprobs=logprobs, finish_reason=reason)
            offsets[index] += len(token.text)


async def _scores(order: Order, at: int) -> list[Scored]:
    """Return the tokens of one prompt with their scores; the first has none."""
    scores = [score async for batch in order.scoring[at].mailbox.events() for score in batch]
    ids = order.prompts[at]
    pairs = zip(_released(ids, order.model), ids, [(None, ()), *scores], strict=True)
    return [(text, token_id, logprob, top) for text, token_id, (logprob, top) in pairs]


def _released(ids: Sequence[int], model: LoadedModel) -> list[str]:
    """Return the text that each token of a prompt releases; special ones are called by their names."""
    stream = TextStream(())
    pieces = [stream.push(model.vocabulary.bytes[i] or (model.tokenizer.id_to_token(i) or "").encode()) for i in ids]
    pieces[-1] += stream.finish()
    return pieces


class _Words:
    """Words log-probabilities for one order."""

    def __init__(self, order: Order) -> None:
        self._model = order.model
        self._told = bool(order.body.logprobs)

    def logprobs(self, tokens: Sequence[Scored], offset: int) -> Logprobs:
        """Return what is told of tokens whose text begins at `offset`."""
        offsets = []
        for text, *_ in tokens:
            offsets.append(offset)
            offset += len(text)
        return Logprobs(
            tokens=[text for text, *_ in tokens],
            token_logprobs=[logprob for _, _, logprob, _ in tokens],
            top_logprobs=[self._top(token) for token in tokens] if self._told else None,
            text_offset=offsets,
        )

    def _top(self, token: Scored) -> dict[str, float] | None:
        _, token_id, logprob, top = token
        if logprob is None:
            return None
        return {self._name(i): value for i, value in (*top, (token_id, logprob))}

    def _name(self, token_id: int) -> str:
        data = self._model.vocabulary.bytes[token_id]
        if not data:
            return self._model.tokenizer.id_to_token(token_id) or f"id:{token_id}"
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


async def _arriving(mailboxes: Sequence[Mailbox[Event]]) -> AsyncIterator[tuple[int, list[Event]]]:
    """Yield what comes into any of the mailboxes, with its index; raises the first error that ends one."""
    came: asyncio.Queue[tuple[int, list[Event]] | Exception | None] = asyncio.Queue()

    async def read(index: int, mailbox: Mailbox[Event]) -> None:
        try:
            async for batch in mailbox.batches():
                came.put_nowait((index, batch))
        except Exception as error:
            came.put_nowait(error)
        else:
            came.put_nowait(None)

    readers = [asyncio.create_task(read(index, mailbox)) for index, mailbox in enumerate(mailboxes)]
    try:
        left = len(readers)
        while left:
            item = await came.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                left -= 1
            else:
                yield item
    finally:
        for reader in readers:
            reader.cancel()
