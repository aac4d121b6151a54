"""Before the real application is there: probes tell the phase, everything else is told to wait."""

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import Message

from service.http.front import Front


async def _ready(request: Request) -> Response:
    return PlainTextResponse("ready")


def test_probes_are_answered_before_the_application_is_there() -> None:
    gate, log = threading.Event(), list[str]()

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        log.append("up")
        yield
        log.append("down")

    def make() -> Starlette:
        gate.wait()
        return Starlette(routes=[Route("/readyz", _ready)], lifespan=lifespan)

    async def test() -> None:
        front = Front(make, lambda: log.append("failed"))
        orders = asyncio.Queue[Message]()

        async def send(message: Message) -> None:
            log.append(message["type"])

        server = asyncio.create_task(front({"type": "lifespan"}, orders.get, send))
        orders.put_nowait({"type": "lifespan.startup"})
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://service") as client:
            assert (await client.get("/livez")).status_code == 200
            starting = await client.get("/startupz")
            assert (starting.status_code, starting.json()) == (503, {"status": "importing"})
            for path in ("/readyz", "/v1/models", "/generate"):
                answer = await client.get(path)
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
            gate.set()
            while (await client.get("/readyz")).status_code != 200:
                await asyncio.sleep(0.01)
        orders.put_nowait({"type": "lifespan.shutdown"})
        await server

    asyncio.run(test())
    assert log == ["lifespan.startup.complete", "up", "down", "lifespan.shutdown.complete"]


def test_what_cannot_be_made_is_remembered() -> None:
    log: list[str] = []

    def make() -> Starlette:
        raise ValueError("models: none")

    async def test() -> None:
        front = Front(make, lambda: log.append("failed"))
        orders = asyncio.Queue[Message]()
        for kind in ("lifespan.startup", "lifespan.shutdown"):
            orders.put_nowait({"type": kind})

        async def send(message: Message) -> None:
            log.append(message["type"])

        await front({"type": "lifespan"}, orders.get, send)
        assert str(front.failure) == "models: none"

    asyncio.run(test())
    assert log == ["lifespan.startup.complete", "failed", "lifespan.shutdown.complete"]
