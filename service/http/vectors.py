"""Vectors of as many tokens as a request may have, on their way to the client.

They are looked up piece by piece, as fast as the client reads: whatever it asks for, one piece of it is in memory.
"""

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from itertools import chain

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.engine.jobs import Lookup
from service.engine.models import LoadedModel
from service.errors import DeadlineError, OverloadedError, ServiceError, TokensOverloadedError
from service.http.schemas import MAX_IDS
from service.http.state import Service
from service.http.streams import watched
from service.process.logs import LOG

Piece = NDArray[np.float32]  # vectors [M, D]
PIECE_BYTES = 1 << 19
AGAIN_SECONDS = 0.1


class Vectors:
    """The vectors of a request's tokens, in order.

    Attributes:
        model: whose vectors.
        rows: the ids of every input.
    """

    def __init__(self, service: Service, model: LoadedModel, rows: Sequence[list[int]], request: Request) -> None:
        """Look nothing up yet."""
        self.model = model
        self.rows = rows
        self._service = service
        self._request: Request | None = request  # while nothing has been answered
        self._pieces = self._looked_up()
        self._piece = np.empty((0, self.width), np.float32)
        self._deadline = asyncio.get_running_loop().time() + service.settings.request_seconds

    @property
    def width(self) -> int:
        """Length of a vector."""
        return self.model.decoder.config.n_embd

    async def begin(self) -> None:
        """Look up the first piece; raises like `Engine.submit_all`, which later ones wait for."""
        self._piece = await anext(self._pieces)
        self._request = None

    async def take(self, count: int) -> AsyncIterator[Piece]:
        """Yield the next `count` vectors in pieces [M, D]."""
        while count:
            if not len(self._piece):
                self._piece = await anext(self._pieces)
            part, self._piece = self._piece[:count], self._piece[count:]
            count -= len(part)
            yield part

    async def _looked_up(self) -> AsyncIterator[Piece]:
        """Yield all vectors in pieces; the cache is asked for the rows of MAX_IDS tokens at once."""
        ids, most = list(chain.from_iterable(self.rows)), max(1, PIECE_BYTES // (4 * self.width))
        for start in range(0, len(ids), MAX_IDS):
            group = ids[start : start + MAX_IDS]
            for at in range(0, len(group), most):
                job = Lookup(self.model, group[at : at + most], self._service.engine.metrics)
                yield await self._vectors(job, () if at else group)

    async def _vectors(self, job: Lookup, asked: Sequence[int]) -> Piece:
        await self._submit(job, asked)
        async with nullcontext() if self._request is None else watched(self._request, job.mailbox):
            try:
                return await anext(job.mailbox.events())
            finally:
                job.mailbox.cancel()

    async def _submit(self, job: Lookup, asked: Sequence[int]) -> None:
        """Have the engine accept a piece; an answer that has begun waits for its place instead of being refused."""
        while True:
            if asyncio.get_running_loop().time() > self._deadline:
                raise DeadlineError
            try:
                return await self._service.submit(self.model, asked, [job])
            except OverloadedError:
                if self._request is not None:
                    raise
            await asyncio.sleep(AGAIN_SECONDS)


class VectorResponse(StreamingResponse):
    """Vectors as JSON; an answer that cannot be finished is cut off."""

    media_type = "application/json"

    def __init__(self, pieces: AsyncIterator[str], place: ExitStack) -> None:
        """Send `pieces`, and then give back the place that the request had."""
        super().__init__(pieces)
        self._place = place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._place:
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        try:
            await super().stream_response(send)
        except ServiceError as error:
            LOG.warning("answer cut off", extra={"problem": str(error)})


async def begun(vectors: Vectors, service: Service, pieces: AsyncIterator[str]) -> VectorResponse:
    """Return the answer that `pieces` make of `vectors`, the first of which have been looked up.

    Raises:
        OverloadedError: if there is no place for them.
    """
    with ExitStack() as place:
        place.enter_context(_place(service, sum(map(len, vectors.rows))))
        await vectors.begin()
        return VectorResponse(pieces, place.pop_all())


@contextmanager
def _place(service: Service, tokens: int) -> Iterator[None]:
    """Count a request as open; what all of them keep in memory is bounded like the engine's queue."""
    opened, settings = service.lookups, service.settings
    if opened.total() and opened["tokens"] + tokens > settings.max_tokens:
        raise TokensOverloadedError(1)
    if opened["requests"] >= settings.max_batch + settings.max_waiting:
        raise OverloadedError(1)
    taken = {"requests": 1, "tokens": tokens}
    opened.update(taken)
    try:
        yield
    finally:
        opened.subtract(taken)


async def token_json(vectors: Vectors, *, encode: bool) -> AsyncIterator[str]:
    """Yield an EmbeddingResponse in pieces; `encode` vectors as base64."""
    model = vectors.model
    head = json.dumps({"model": model.name, "dim": vectors.width})
    yield f'{head[:-1]}, "data": ['
    for index, ids in enumerate(vectors.rows):
        tokens = [model.tokenizer.id_to_token(token_id) or "" for token_id in ids]
        head = json.dumps({"index": index, "ids": ids, "tokens": tokens})
        yield f'{", " if index else ""}{head[:-1]}, "vectors": '
        parts = vectors.take(len(ids))
        async for piece in _base64(parts) if encode else _lists(parts):
            yield piece
            await asyncio.sleep(0)
        yield "}"
    yield "]}"


async def _lists(parts: AsyncIterator[Piece]) -> AsyncIterator[str]:
    before = "["
    async for part in parts:
        for vector in part:
            yield f"{before}{json.dumps(vector.tolist())}"
            before = ", "
    yield "]" if before == ", " else "[]"


async def _base64(parts: AsyncIterator[Piece]) -> AsyncIterator[str]:
    yield '"'
    rest = b""
    async for part in parts:
        data = rest + _bytes(part)
        whole = len(data) // 3 * 3  # what base64 codes without padding
        yield base64.b64encode(data[:whole]).decode()
        rest = data[whole:]
    yield f'{base64.b64encode(rest).decode()}"'


async def mean_json(vectors: Vectors, *, encode: bool) -> AsyncIterator[str]:
    """Yield an EmbeddingList in pieces: of every input the mean of its vectors, brought to length 1."""
    tokens = sum(map(len, vectors.rows))
    usage = {"prompt_tokens": tokens, "total_tokens": tokens}
    head = json.dumps({"object": "list", "model": vectors.model.name, "usage": usage})
    yield f'{head[:-1]}, "data": ['
    for index, ids in enumerate(vectors.rows):
        total = np.zeros(vectors.width)
        async for part in vectors.take(len(ids)):
            total += part.sum(0, dtype=np.float64)
        mean = unit(total)
        vector = base64.b64encode(_bytes(mean)).decode() if encode else mean.tolist()
        item = json.dumps({"object": "embedding", "index": index, "embedding": vector})
        yield f"{', ' if index else ''}{item}"
        await asyncio.sleep(0)
    yield "]}"


def unit(vector: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return a vector [D] of float64 at length 1, in float32; zeros stay zeros."""
    length = np.linalg.norm(vector)
    return (vector / length if length > 0 else vector).astype(np.float32)


def _bytes(vectors: Piece) -> bytes:
    return vectors.astype("<f4", copy=False).tobytes()
