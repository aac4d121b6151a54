"""From wire bodies to work for the engine: what a body means for one model, and whether it fits."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import inf
from typing import TypeVar

from service.engine.models import LoadedModel
from service.errors import InvalidRequestError
from service.http.schemas import MAX_IDS, EmbeddingInputs

Result = TypeVar("Result")
DEFAULT_NEW_TOKENS = 100
BATCH_BYTES = 1 << 16  # what the tokeniser makes of them occupies up to 13 MB
SHORT_BYTES = 1024  # encoded in less time than another thread takes to begin


async def encode(text: str, model: LoadedModel, limit: int, field: str = "inputs") -> list[int]:
    """Return the ids of `text`, at most `limit`, without holding up the event loop.

    Raises:
        InvalidRequestError: if there are more; for hopelessly long texts without counting them.
    """
    (ids,) = await encode_all([text], model, limit, field)
    return ids


async def encode_end(text: str, model: LoadedModel, count: int, field: str) -> list[int]:
    """Return the last `count` ids of `text`, without holding up the event loop.

    Raises:
        InvalidRequestError: naming the field that asks for the end only, if all of the text is too long to look for it.
    """
    if (size := _size_bytes(text)) > BATCH_BYTES:
        raise InvalidRequestError(f"{field}: the text that is cut must be at most {BATCH_BYTES} bytes long, not {size}")
    (ids,) = await encode_all([text], model, size, field)
    return ids[-count:]


async def encode_all(
    texts: Sequence[str], model: LoadedModel, limit: int, field: str, most: float = inf
) -> list[list[int]]:
    """Return the ids of every text, at most `limit` of each and `most` of all; raises like `encode`."""
    rows: list[list[int]] = []
    for some in _batches(texts, model, limit, field):
        rows += await _tokenized(some, partial(_ids, some, model, limit, field), model)
        _check_total(sum(map(len, rows)), most, field)
    return rows


async def encode_with_offsets(text: str, model: LoadedModel, limit: int) -> list[tuple[int, tuple[int, int]]]:
    """Return the ids of `text`, at most `limit`, each with the characters it stands for; raises like `encode`."""

    def encoded() -> list[tuple[int, tuple[int, int]]]:
        (encoding,) = model.tokenizer.encode_batch([text])
        _check_count(len(encoding), limit, "inputs")
        return list(zip(encoding.ids, encoding.offsets, strict=True))

    _check_length(text, model, limit, "inputs")
    return await _tokenized([text], encoded, model)


async def _tokenized(texts: Sequence[str], work: Callable[[], Result], model: LoadedModel) -> Result:
    """Return what `work` makes of some texts: here if they are short, else in a thread, one at a time."""
    if sum(map(_size_bytes, texts)) <= SHORT_BYTES:
        return work()
    async with model.encoding:
        return await asyncio.to_thread(work)


def _ids(texts: Sequence[str], model: LoadedModel, limit: int, field: str) -> list[list[int]]:
    encodings = model.tokenizer.encode_batch_fast(texts)  # lets other threads run, which `encode` does not
    for encoding in encodings:
        _check_count(len(encoding), limit, field)
    return [encoding.ids for encoding in encodings]


def _batches(texts: Sequence[str], model: LoadedModel, limit: int, field: str) -> Iterator[list[str]]:
    """Yield as many texts at a time as are encoded together."""
    some: list[str] = []
    size_bytes = 0
    for text in texts:
        _check_length(text, model, limit, field)
        if some and size_bytes + _size_bytes(text) > BATCH_BYTES:
            yield some
            some, size_bytes = [], 0
        some.append(text)
        size_bytes += _size_bytes(text)
    if some:
        yield some


def _size_bytes(text: str) -> int:
    """Return the most tokens that a text can have: one for each of its bytes."""
    return len(text.encode())


def _check_length(text: str, model: LoadedModel, limit: int, field: str) -> None:
    at_least = _size_bytes(text) // model.vocabulary.longest_bytes
    if at_least > limit:
        raise InvalidRequestError(f"{field}: at least {at_least} tokens are more than the {limit} that fit")


def _check_total(total: int, most: float, field: str) -> None:
    if total > most:
        raise InvalidRequestError(f"{field}: a request must have at most {most} tokens (TTGPT_MAX_TOKENS)")


def _check_count(count: int, limit: int, field: str) -> None:
    if count > limit:
        raise InvalidRequestError(f"{field}: {count} tokens are more than the {limit} that fit")


def new_tokens(prompt_tokens: int, asked: int | None, context: int, field: str = "parameters.max_new_tokens") -> int:
    """Return how many tokens may be written: as many as were asked for, or a default, but no more than there is room.

    Some clients ask by default for as many as some contexts have, whatever the prompt.

    Raises:
        InvalidRequestError: naming the field, if there is no room, or more were asked for than ever have any.
    """
    left = context - prompt_tokens
    if asked is not None and asked > context:
        raise InvalidRequestError(f"{field}: must be at most {context}, the context of this model, not {asked}")
    if left < 1:
        raise InvalidRequestError(
            f"{field}: {prompt_tokens} prompt tokens leave no room in the context of {context}; shorten the prompt"
        )
    return min(DEFAULT_NEW_TOKENS if asked is None else asked, left)


async def ids_of(inputs: EmbeddingInputs, model: LoadedModel, most: int, field: str = "inputs") -> list[list[int]]:
    """Return the ids of every input of an embedding request, up to MAX_IDS of each and `most` of all.

    Raises:
        InvalidRequestError: if an id is not in the vocabulary, or there are none or too many.
    """
    given = as_inputs(inputs)
    texts = [text for text in given if isinstance(text, str)]  # all of them or none
    rows = [row for row in given if isinstance(row, list)]
    rows = await encode_all(texts, model, MAX_IDS, field, most) if texts else rows
    _check_total(sum(map(len, rows)), most, field)
    if not any(rows):
        raise InvalidRequestError(f"{field}: a request must have at least 1 token")
    for row in rows:
        check_ids(row, model, field)
    return rows


def check_ids(ids: Sequence[int], model: LoadedModel, field: str) -> None:
    """Refuse ids that no token has; raises InvalidRequestError, naming the field."""
    size, highest = model.decoder.config.vocab_size, max(ids, default=0)
    if highest >= size:
        raise InvalidRequestError(f"{field}: ids must be below the vocabulary of {size}, not {highest}")


def as_inputs(inputs: EmbeddingInputs) -> Sequence[str | list[int]]:
    """Return one text, or the ids of one, per input."""
    if isinstance(inputs, str):
        return [inputs]
    if isinstance(inputs[0], int):
        return [[i for i in inputs if isinstance(i, int)]]
    return [i for i in inputs if not isinstance(i, int)]
