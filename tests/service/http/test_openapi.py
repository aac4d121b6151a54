"""The OpenAPI document is complete and true: schemathesis tries to find an answer that it does not describe."""

import os
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as run_with
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from service.http.app import create_app
from service.settings import Settings
from tests.service.http.test_chat import chatting

__all__ = ["chatting"]

CASES = int(os.environ.get("FUZZ_CASES", "2000"))  # `make soak` tries five times as many
STATIC = ("/livez", "/startupz", "/readyz", "/health", "/metrics", "/info", "/v1/models")  # there is nothing to vary
BODIES = (
    "/generate", "/generate_stream", "/", "/embeddings", "/tokenize", "/detokenize", "/v1/completions",
    "/v1/embeddings",
)  # fmt: skip
CHAT = "/v1/chat/completions"  # refuses every body without a template
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.mark.parametrize("path", [*BODIES, CHAT])
def test_every_answer_is_described(client: httpx.Client, chatting: httpx.Client, path: str) -> None:
    client = chatting if path == CHAT else client
    document = client.get("/openapi.json").json()
    schema = schemathesis.openapi.from_dict(document)
    tried = 0

    @seed(5)
    @run_with(
        max_examples=CASES // len(BODIES),
        deadline=None,
        database=None,
        phases=[Phase.explicit, Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    def check(case: Any) -> None:
        nonlocal tried
        tried += 1
        case.call_and_validate(base_url=str(client.base_url).rstrip("/"), checks=CHECKS)

    operation = schema[path]["POST"]
    strategy = operation.as_strategy() | operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    given(case=strategy)(check)()
    assert tried >= CASES // len(BODIES)


def test_what_takes_no_body_is_described(client: httpx.Client) -> None:
    schema = schemathesis.openapi.from_dict(client.get("/openapi.json").json())
    for path in STATIC:
        schema[path]["GET"].Case().call_and_validate(base_url=str(client.base_url).rstrip("/"), checks=CHECKS)
    posts = {path: verbs["post"] for path, verbs in schema.raw_schema["paths"].items() if "post" in verbs}
    assert {path for path, post in posts.items() if "requestBody" in post} == set(BODIES)
    assert set(posts) - set(BODIES) == {CHAT}
    schema[CHAT]["POST"].Case().call_and_validate(base_url=str(client.base_url).rstrip("/"), checks=CHECKS)


def test_every_body_has_an_example(settings: Settings) -> None:
    document = create_app(settings).openapi()
    for path in BODIES:
        body = document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        model = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]
        assert model["examples"], path
