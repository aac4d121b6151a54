"""What ties the work behind an answer to the connection that waits for it."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from starlette.requests import Request
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.engine.jobs import Mailbox


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


class EventStream(StreamingResponse):
    """Server-sent events; the work behind them ends with the connection."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[str], mailboxes: Sequence[Mailbox[Any]]) -> None:
        """Send `events`; the mailboxes are not read any more when that has ended, well or not."""
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no", "x-compute-type": "cpu"}
        super().__init__(events, headers=headers)
        self._mailboxes = mailboxes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            for mailbox in self._mailboxes:
                mailbox.cancel()
