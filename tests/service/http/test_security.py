"""Keys, request ids, pages of others, deadlines, tokens, hanging engines: what stands before the routes."""

import asyncio
import hashlib
import threading
from typing import Any

import httpx
import pytest

from service.engine.engine import Engine
from service.engine.models import LoadedModel
from service.engine.throughput import LONGEST_SECONDS, ThroughputEstimate
from service.errors import DeadlineError, TokensOverloadedError
from service.http.app import create_app
from service.metrics import Metrics
from service.settings import Settings
from tests.service.conftest import generation, sample, serving, wait_until
from tests.service.engine.test_engine import Steps, running

KEYS = ("first-key-Zq3v", "second-key-8Kd1")
HASHES = ",".join(hashlib.sha256(key.encode()).hexdigest() for key in KEYS)


def test_every_route_but_the_probes_needs_a_key(settings: Settings) -> None:
    locked = Settings(models=settings.models[:1], threads=1, api_key_hashes=HASHES)
    with serving(locked) as client:
        paths = create_app(locked).openapi()["paths"]
        closed = 0
        for path, verbs in paths.items():
            for verb in verbs:
                answer = client.request(verb, path)
                if path in ("/livez", "/startupz", "/readyz", "/health"):
                    assert answer.status_code == 200
                    continue
                closed += 1
                assert answer.status_code == 401, path
                assert answer.headers["www-authenticate"] == "Bearer"
                assert ("message" in answer.json()["error"]) == path.startswith("/v1")
        for bad in ("", "Bearer", f"Basic {KEYS[0]}", f"Bearer {KEYS[0]}x", f"Bearer {KEYS[0][:-1]}", "Bearer é"):
            raw = {"authorization": bad.encode()}
            assert client.get("/v1/models", headers=raw).status_code == 401  # type: ignore[arg-type]
            closed += 1
        for key in KEYS:
            for scheme in ("Bearer", "bearer"):
                assert client.get("/v1/models", headers={"authorization": f"{scheme} {key}"}).status_code == 200
        assert client.get("/docs").status_code == client.get("/openapi.json").status_code == 401
        client.headers["authorization"] = f"Bearer {KEYS[0]}"
        assert sample(client, "ttgpt_requests_rejected_total", reason="unauthorized") == closed + 2


def test_a_hash_must_be_one() -> None:
    with pytest.raises(ValueError, match="api_key_hashes"):
        Settings(models=("x",), api_key_hashes=("secret",))


def test_request_ids(client: httpx.Client) -> None:
    assert client.get("/livez", headers={"x-request-id": "abc-1.2"}).headers["x-request-id"] == "abc-1.2"
    drawn = {client.get("/livez").headers["x-request-id"] for _ in range(3)}
    for bad in ("a b", "x" * 129, "<script>", ""):
        drawn.add(client.get("/livez", headers={"x-request-id": bad}).headers["x-request-id"])
    assert len(drawn) == 7
    assert all(name.isalnum() for name in drawn)
    refused = client.post("/generate", json={}, headers={"x-request-id": "abc"})
    assert (refused.status_code, refused.headers["x-request-id"]) == (422, "abc")
    completion = client.post("/v1/completions", json={"prompt": "x"}, headers={"x-request-id": "abc"}).json()
    assert completion["id"] == "cmpl-abc"


@pytest.mark.parametrize(("origins", "allowed"), [((), None), (("https://a.example",), "https://a.example")])
def test_other_pages_are_refused_unless_named(
    settings: Settings, origins: tuple[str, ...], allowed: str | None
) -> None:
    async def test() -> None:
        app = create_app(settings.model_copy(update={"cors_origins": origins}))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            for origin in ("https://a.example", "https://b.example"):
                answer = await client.get("/livez", headers={"origin": origin})
                expected = allowed if origin == allowed else None
                assert answer.headers.get("access-control-allow-origin") == expected

    asyncio.run(test())


def test_every_header_of_openais_clients_may_be_sent(settings: Settings) -> None:
    """Browsers ask before: for those of openai-node, of LangChain and of whoever comes next."""
    sent = "authorization,content-type,x-stainless-lang,x-stainless-retry-count,x-stainless-timeout,openai-organization"
    asking = {
        "origin": "https://a.example",
        "access-control-request-method": "POST",
        "access-control-request-headers": sent,
    }

    async def test() -> None:
        app = create_app(settings.model_copy(update={"cors_origins": ("https://a.example",)}))
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            answer = await client.options("/v1/completions", headers=asking)
            assert answer.status_code == 200
            assert set(sent.split(",")) <= set(answer.headers["access-control-allow-headers"].lower().split(","))
            other = await client.options("/v1/completions", headers={**asking, "origin": "https://b.example"})
            assert "access-control-allow-origin" not in other.headers

    asyncio.run(test())


def test_a_request_has_its_deadline(settings: Settings) -> None:
    """The engine's thread is held until the answer is there, so that only the deadline can have ended it."""
    short = settings.model_copy(update={"request_seconds": 0.2, "max_batch": 2})
    engine = Engine(short, Metrics())
    gate = threading.Event()

    async def occupy() -> None:
        engine.submit(Steps(1, gate))

    with serving(short, engine) as client:
        asyncio.run(occupy())
        for route, body in (("/generate", {"inputs": "x"}), ("/v1/completions", {"prompt": "x"})):
            assert client.post(route, json=body).status_code == 504
        streamed = client.post("/v1/completions", json={"prompt": "x", "stream": True})
        assert '"code": "timeout"' in streamed.text
        gate.set()


def test_tokens_of_all_accepted_requests_are_bounded(settings: Settings, tiny: LoadedModel) -> None:
    async def test() -> None:
        gate = threading.Event()
        async with running(Engine(settings.model_copy(update={"max_tokens": 20}), Metrics())) as engine:
            engine.submit(Steps(1, gate))
            engine.submit(generation(tiny, engine.metrics, prompt=3, new=5))
            with pytest.raises(TokensOverloadedError) as caught:
                engine.submit(generation(tiny, engine.metrics, prompt=7, new=5))
            assert 1 <= int((caught.value.headers or {})["retry-after"]) <= LONGEST_SECONDS
            last = generation(tiny, engine.metrics, prompt=6, new=5)
            engine.submit(last)
            gate.set()
            assert len([token async for token in last.mailbox.events()]) == 5
        async with running(Engine(settings.model_copy(update={"max_tokens": 20}), Metrics())) as engine:
            alone = generation(tiny, engine.metrics, prompt=30, new=5)
            engine.submit(alone)  # more than are allowed, but alone
            assert len([token async for token in alone.mailbox.events()]) == 5

    asyncio.run(test())


def test_several_are_accepted_or_none(settings: Settings) -> None:
    engine = Engine(settings.model_copy(update={"max_batch": 1, "max_waiting": 3}), Metrics())
    gate = threading.Event()

    async def occupy() -> None:
        for _ in range(2):
            engine.submit(Steps(1, gate))

    with serving(settings, engine) as client:
        asyncio.run(occupy())
        body: dict[str, Any] = {"prompt": "x", "n": 4, "max_tokens": 1}
        assert client.post("/v1/completions", json=body).status_code == 429
        assert sample(client, "ttgpt_num_requests_waiting", model_name="tiny-fp32") <= 2
        assert client.post("/v1/completions", json={**body, "prompt": ["x", "y"]}).status_code == 400
        gate.set()
        wait_until(lambda: client.post("/v1/completions", json=body).status_code == 200)


def test_a_stuck_engine_is_not_alive(settings: Settings) -> None:
    quick = settings.model_copy(update={"heartbeat_seconds": 0.05})
    engine = Engine(quick, Metrics())
    gate = threading.Event()

    async def occupy() -> None:
        engine.submit(Steps(1, gate))

    with serving(quick, engine) as client:
        assert client.get("/livez").status_code == 200
        asyncio.run(occupy())
        assert any(client.get("/livez").status_code == 503 for _ in range(200))
        gate.set()
        assert any(client.get("/livez").status_code == 200 for _ in range(200))


def test_a_deadline_is_a_mailboxs_own(settings: Settings, tiny: LoadedModel) -> None:
    async def test() -> None:
        job = generation(tiny, Metrics())
        job.mailbox.expire_after(0.01)
        with pytest.raises(DeadlineError):
            await anext(job.mailbox.events())
        assert job.mailbox.cancelled

    asyncio.run(test())


def test_the_time_to_come_back_is_that_of_the_backlog() -> None:
    now = [0.0]
    pace = ThroughputEstimate(lambda: now[0])
    assert pace.retry_seconds(1) == 1
    for second in range(1, 11):
        now[0] = float(second)
        pace.ended(50)
    assert pace.retry_seconds(500) == 10
    assert pace.retry_seconds(10**9) == LONGEST_SECONDS


def test_nothing_new_while_draining(settings: Settings) -> None:
    async def test() -> None:
        app = create_app(settings)
        app.state.service.lifecycle.drain()
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://service") as client:
            for answer in (
                await client.get("/readyz"),
                await client.post("/generate", json={"inputs": "x"}),
                await client.post("/v1/completions", json={"prompt": "x"}),
            ):
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert "stopping" in answer.text
            assert (await client.get("/livez")).status_code == 200

    asyncio.run(test())
