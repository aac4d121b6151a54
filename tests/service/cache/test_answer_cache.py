"""Remembered answers: the same bytes as computed ones, for greedy and seeded requests only."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from service.settings import Settings
from tests.redis_server import RedisServer, redis_server
from tests.service.conftest import sample, serving, wait_until

STEPS = "ttgpt_decode_steps_total"
RESULTS = "ttgpt_answer_cache_requests_total"
SEEDED = {"do_sample": True, "temperature": 0.8, "seed": 7, "max_new_tokens": 12, "details": True}
REQUESTS = [
    ("/generate", {"inputs": "The sea", "parameters": SEEDED}),
    ("/generate", {"inputs": "The sea", "parameters": {"max_new_tokens": 9, "stop": ["e"]}}),
    ("/generate_stream", {"inputs": "The sea", "parameters": SEEDED}),
    ("/v1/completions", {"prompt": ["A", "B"], "seed": 3, "n": 2, "max_tokens": 6, "logprobs": 2, "echo": True}),
    ("/v1/completions", {"prompt": "A", "temperature": 0, "max_tokens": 6, "stream": True}),
    ("/v1/completions", {"prompt": ["A", "B"], "seed": 3, "n": 2, "best_of": 3, "max_tokens": 6, "min_p": 0.01}),
    ("/generate", {"inputs": "The sea", "parameters": SEEDED | {"best_of": 3, "top_n_tokens": 2}}),
    ("/generate", {"inputs": "The sea", "parameters": SEEDED | {"decoder_input_details": True}}),
    ("/v1/completions", {"prompt": ["The sea", "A"], "max_tokens": 0, "logprobs": 2, "echo": True}),
    ("/v1/completions", {"prompt": "The sea", "max_tokens": 0, "logprobs": 0, "echo": True, "n": 2, "stream": True}),
]


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def of(artifacts: list[Path], **fields: Any) -> Settings:
    return Settings(models=tuple(artifacts), threads=1, cache_timeout_ms=2000, **fields)


def body_of(answer: httpx.Response) -> Any:
    """Return the body without what belongs to the request rather than to its answer."""
    assert answer.status_code == 200, answer.text
    pieces = answer.text.split("data:") if "event-stream" in answer.headers["content-type"] else [answer.text]
    told = [json.loads(piece) for piece in pieces if piece.strip() not in ("", "[DONE]")]
    return [{key: value for key, value in piece.items() if key not in ("id", "created")} for piece in told]


def results(client: httpx.Client, tier: str) -> dict[str, float]:
    return {r: n for r in ("hit", "miss", "error", "bypass") if (n := sample(client, RESULTS, tier=tier, result=r))}


def test_remembered_answers_are_the_computed_ones(artifacts: list[Path], redis: RedisServer) -> None:
    with serving(of(artifacts)) as plain:
        expected = [body_of(plain.post(route, json=body)) for route, body in REQUESTS]
        assert results(plain, "local") == {}
    settings = of(artifacts, cache_answers=True, redis_url=redis.url)
    with serving(settings) as first:
        assert [body_of(first.post(route, json=body)) for route, body in REQUESTS] == expected
        steps = sample(first, STEPS, model_name="tiny-fp32")
        assert [body_of(first.post(route, json=body)) for route, body in REQUESTS] == expected
        assert sample(first, STEPS, model_name="tiny-fp32") == steps
        written = results(first, "local")["miss"]
        assert results(first, "local")["hit"] >= written
        wait_until(lambda: len(redis.stored("*:answer:*")) == written)
    with serving(settings) as second:
        assert [body_of(second.post(route, json=body)) for route, body in REQUESTS] == expected
        assert sample(second, STEPS, model_name="tiny-fp32") == 0
        assert results(second, "redis") == {"hit": written}
        ended = sample(second, "ttgpt_request_success_total", model_name="tiny-fp32", finished_reason="length")
        assert ended > 0
    assert "The sea" not in b"".join(redis.client.mget(redis.stored())).decode(errors="replace")  # type: ignore[arg-type]


def test_what_was_drawn_at_random_is_not_remembered(artifacts: list[Path], redis: RedisServer) -> None:
    redis.client.flushall()
    with serving(of(artifacts, cache_answers=True, redis_url=redis.url)) as client:
        body = {"inputs": "The sea", "parameters": {"do_sample": True, "max_new_tokens": 4}}
        assert client.post("/generate", json=body).status_code == 200
        assert client.post("/v1/completions", json={"prompt": "A", "max_tokens": 4}).status_code == 200
        assert results(client, "local") == results(client, "redis") == {}


@pytest.mark.parametrize(
    "change",
    [{"seed": 8}, {"temperature": 0.9}, {"max_new_tokens": 11}, {"stop": ["q"]}, {"top_k": 5}, {"top_p": 0.5},
     {"typical_p": 0.5}, {"repetition_penalty": 1.5}, {"min_p": 0.1}, {"frequency_penalty": 1}, {"presence_penalty": 1},
     {"logit_bias": {"5": 1}}, {"min_tokens": 2}, {"ignore_eos": True}, {"stop_token_ids": [5]}, {"top_n_tokens": 1},
     {"truncate": 1}, {"decoder_input_details": True}],
)  # fmt: skip
def test_whatever_decides_an_answer_is_part_of_its_key(artifacts: list[Path], change: dict[str, Any]) -> None:
    with serving(of(artifacts[:1], cache_answers=True)) as client:
        for parameters in (SEEDED, SEEDED | change):
            assert client.post("/generate", json={"inputs": "The sea", "parameters": parameters}).status_code == 200
        assert results(client, "local") == {"miss": 2}


def test_artefacts_do_not_share_answers(artifacts: list[Path]) -> None:
    with serving(of(artifacts, cache_answers=True)) as client:
        for model in ("tiny-fp32", "tiny-int8"):
            body = {"inputs": "The sea", "model": model, "parameters": SEEDED}
            assert client.post("/generate", json=body).status_code == 200
        assert results(client, "local") == {"miss": 2}
