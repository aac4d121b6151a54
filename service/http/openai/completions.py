"""OpenAI's completions: from the tokens of jobs to choices.

Law: the whole answer is its stream, joined. Both are made of the same pieces.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Literal, TypeVar

from starlette.requests import Request

from service.engine.generation import FINISHED_REASON, Token, Top
from service.engine.prompt_scores import PromptScores, Scores
from service.http.failures import as_service_error
from service.http.openai.prompts import CompletionJobs
from service.http.openai.schemas import Choice, Completion, Logprobs, StreamOptions, Usage
from service.http.streams import watched
from service.http.words import released, spelt

Event = TypeVar("Event")
NO_CHOICES = '"choices":[]'
Scored = tuple[str, int, float | None, Top]  # released text, id, log-probability, likeliest tokens


@dataclass(frozen=True)
class _Piece:
    """The next piece of a text.

    Attributes:
        choice: the piece, whose index is that of its text.
        generated: how many tokens the text has by now.
        logprob: of the token, None for the prompt.
    """

    choice: Choice
    generated: int
    logprob: float | None


async def whole_completion(wanted: CompletionJobs, request: Request) -> bytes:
    """Wait for all texts; return a Completion as JSON.

    Every choice is worded as soon as it is known: as JSON it takes a fraction of the memory.
    """
    ranked, told = wanted.texts, wanted.choices  # of so many texts so many
    if ranked == told:
        ranked = told = 1
    pieces: list[list[_Piece]] = [[] for _ in range(len(wanted.prompts) * wanted.texts)]
    worded = [""] * (len(wanted.prompts) * wanted.choices)
    async with watched(request, *wanted.mailboxes):
        async for piece in _pieces(wanted):
            pieces[piece.choice.index].append(piece)
            group = piece.choice.index // ranked
            texts = pieces[group * ranked : (group + 1) * ranked]
            if piece.choice.finish_reason and all(text and text[-1].choice.finish_reason for text in texts):
                for index, text in enumerate(_likeliest(texts, told), group * told):
                    worded[index] = _joined(text, index).model_dump_json()
                for text in texts:
                    text.clear()
    head, tail = _completion(wanted, [], _usage(wanted)).model_dump_json().split(NO_CHOICES)
    return f'{head}"choices":[{",".join(worded)}]{tail}'.encode()


async def openai_events(wanted: CompletionJobs) -> AsyncIterator[str]:
    """Yield server-sent events, as OpenAI writes them; an error is an event, too."""
    options = wanted.body.stream_options or StreamOptions()
    try:
        async for piece in _pieces(wanted):
            choice, usage = piece.choice, None
            if options.include_usage and options.continuous_usage_stats:
                usage = _usage_of(len(wanted.prompts[choice.index // wanted.texts]), piece.generated)
            if choice.text or choice.logprobs or choice.finish_reason:  # not for half a character
                yield _event(_completion(wanted, [choice], usage).model_dump_json())
        if options.include_usage:
            yield _event(_completion(wanted, [], _usage(wanted)).model_dump_json())
        yield _event("[DONE]")
    except Exception as error:
        yield _event(json.dumps(as_service_error(error).openai_body))


def _likeliest(texts: list[list[_Piece]], count: int) -> list[list[_Piece]]:
    """Return the texts that are likeliest per token, the best first; all as they are, if there are no more."""

    def mean_logprob(pieces: list[_Piece]) -> float:
        return fmean(piece.logprob for piece in pieces if piece.logprob is not None)

    return texts if len(texts) <= count else sorted(texts, key=mean_logprob, reverse=True)[:count]


def _event(data: str) -> str:
    return f"data: {data}\n\n"


def _completion(wanted: CompletionJobs, choices: list[Choice], usage: Usage | None) -> Completion:
    model = wanted.model
    return Completion(
        id=wanted.name,
        created=wanted.created,
        model=model.name,
        system_fingerprint=model.manifest.digest,
        choices=choices,
        usage=usage,
    )


def _usage(wanted: CompletionJobs) -> Usage:
    return _usage_of(sum(map(len, wanted.prompts)), sum(job.generated for job in wanted.jobs))


def _usage_of(read: int, written: int) -> Usage:
    return Usage(prompt_tokens=read, completion_tokens=written, total_tokens=read + written)


def _joined(pieces: Sequence[_Piece], index: int) -> Choice:
    choices = [piece.choice for piece in pieces]
    logprobs = [choice.logprobs for choice in choices if choice.logprobs is not None]
    tops = [top for part in logprobs for top in part.top_logprobs or ()]
    joined = Logprobs(
        tokens=[token for part in logprobs for token in part.tokens],
        token_logprobs=[value for part in logprobs for value in part.token_logprobs],
        top_logprobs=tops or None,
        text_offset=[offset for part in logprobs for offset in part.text_offset],
    )
    return Choice(
        index=index,
        text="".join(choice.text for choice in choices),
        logprobs=joined if logprobs else None,
        finish_reason=choices[-1].finish_reason,
    )


async def _pieces(wanted: CompletionJobs) -> AsyncIterator[_Piece]:
    """Yield the pieces of all texts as they come: the echoed prompt first, then one per token."""
    async for _, news in _merged([_news(wanted, at) for at in range(len(wanted.prompts))]):
        for telling, token in news:  # worded here, when they are wanted: a client may be slow, and words are large
            if token is not None:
                yield telling.token(token)
                continue
            yield telling.echo()
            await asyncio.sleep(0)  # it takes milliseconds to word a thousand tokens


async def _news(wanted: CompletionJobs, at: int) -> AsyncIterator[list[tuple["_Telling", Token | None]]]:
    """Yield what is to be said about one prompt's texts: a token or, with None, the prompt, once it is scored."""
    n, jobs = wanted.texts, len(wanted.jobs) // len(wanted.prompts)
    mine = wanted.jobs[at * jobs : (at + 1) * jobs]
    scores = mine[0].scores if mine else None
    told = [_Telling(wanted, index, scores) for index in range(at * n, (at + 1) * n)]
    streams = [job.mailbox.batches() for job in mine]
    if wanted.body.echo:
        first = [] if scores is None else await anext(streams[0], [])
        yield [(telling, None) for telling in told]
        yield [(told[0], token) for token in first]
    async for index, tokens in _merged(streams):
        yield [(told[index], token) for token in tokens]


def _scored(ids: Sequence[int], released: Sequence[str], scores: Scores) -> list[Scored]:
    """Return the tokens of one prompt, which released these texts, with their log-probabilities; the first has none."""
    tops = zip(scores.top_ids.tolist(), scores.top_logprobs.tolist(), strict=True)
    told: list[Top] = [(), *(tuple(zip(*top, strict=True)) for top in tops)]
    logprobs = [None, *scores.logprobs.tolist()]
    return list(zip(released, ids, logprobs, told, strict=True))


class _Telling:
    """Words one text, piece by piece."""

    def __init__(self, wanted: CompletionJobs, index: int, scores: PromptScores | None) -> None:
        self._wanted = wanted
        self._logprobs = _LogprobFormatter(wanted)
        self._index = index
        self._scores = scores
        self._offset = self._generated = 0

    def echo(self) -> _Piece:
        """Return the prompt as a piece."""
        wanted, at = self._wanted, self._index // self._wanted.texts
        ids, echo, logprobs = wanted.prompts[at], wanted.echoes[at], None
        pieces = released(ids, wanted.model)
        if self._scores is not None:
            logprobs = self._logprobs.logprobs(_scored(ids, pieces, self._scores.found), 0)
        text = "".join(pieces) if echo is None else echo
        self._offset = len(text)
        reason: Literal["length"] | None = "length" if wanted.body.max_tokens == 0 else None
        return _Piece(Choice(index=self._index, text=text, logprobs=logprobs, finish_reason=reason), 0, None)

    def token(self, token: Token) -> _Piece:
        """Return a token as a piece."""
        scored = [(token.text, token.id, token.logprob, token.top)]
        logprobs = None if self._wanted.body.logprobs is None else self._logprobs.logprobs(scored, self._offset)
        reason = FINISHED_REASON[token.end.reason] if token.end else None
        self._offset += len(token.text)
        self._generated += 1
        choice = Choice(index=self._index, text=token.text, logprobs=logprobs, finish_reason=reason)
        return _Piece(choice, self._generated, token.logprob)


class _LogprobFormatter:
    """Writes log-probabilities for one request."""

    def __init__(self, wanted: CompletionJobs) -> None:
        self._model = wanted.model
        self._told = bool(wanted.body.logprobs)

    def logprobs(self, tokens: Sequence[Scored], offset: int) -> Logprobs:
        """Return what is said about tokens whose text begins at `offset`."""
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
        return {spelt(i, self._model): value for i, value in (*top, (token_id, logprob))}


async def _merged(streams: Sequence[AsyncIterator[Event]]) -> AsyncIterator[tuple[int, Event]]:
    """Yield what comes out of any of the streams, with its index; raises the first error that ends one."""
    came: asyncio.Queue[tuple[int, Event] | Exception | None] = asyncio.Queue()

    async def read(index: int, stream: AsyncIterator[Event]) -> None:
        try:
            async for event in stream:
                came.put_nowait((index, event))
        except Exception as error:
            came.put_nowait(error)
        else:
            came.put_nowait(None)

    readers = [asyncio.create_task(read(index, stream)) for index, stream in enumerate(streams)]
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
