"""Mailboxes: from the engine thread to the event loop, in order, with few wake-ups."""

import asyncio

import pytest

from service.engine.jobs import Mailbox, deliver
from service.errors import RequestFailedError


def test_what_came_together_is_read_together() -> None:
    async def test() -> list[list[int]]:
        mailbox: Mailbox[int] = Mailbox()
        batches: list[list[int]] = []

        async def read() -> None:
            async for batch in mailbox.batches():
                batches.append(batch)

        reader = asyncio.create_task(read())
        await asyncio.sleep(0)
        for events in ([1], [2, 3], [4, None]):
            for event in events:
                mailbox.put(event)
            await asyncio.to_thread(deliver, [mailbox])
            await asyncio.sleep(0)
        await reader
        return batches

    assert asyncio.run(test()) == [[1], [2, 3], [4]]


def test_an_error_comes_after_what_was_before_it() -> None:
    async def test() -> None:
        mailbox: Mailbox[int] = Mailbox()
        for event in (1, 2, RequestFailedError()):
            mailbox.put(event)
        events = mailbox.events()
        assert [await anext(events), await anext(events)] == [1, 2]
        with pytest.raises(RequestFailedError):
            await anext(events)

    asyncio.run(test())


def test_who_wants_all_at_once_is_woken_at_the_end_only() -> None:
    async def test() -> None:
        mailbox: Mailbox[int] = Mailbox(eager=False)
        mailbox.put(1)
        assert not mailbox.news
        mailbox.put(None)
        assert mailbox.news
        deliver([mailbox])
        assert not mailbox.news
        assert [event async for event in mailbox.events()] == [1]

    asyncio.run(test())


def test_a_closed_loop_cancels() -> None:
    async def make() -> Mailbox[int]:
        return Mailbox()

    mailbox = asyncio.run(make())
    mailbox.put(1)
    deliver([mailbox])
    assert mailbox.cancelled
