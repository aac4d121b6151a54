"""Bodies that no decent client sends: refusing one costs little, and holds up nobody."""

import json
import os
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as some
from pydantic import BaseModel, ValidationError

from service.errors import InvalidRequestError
from service.http.app import create_app
from service.http.body_route import MAX_DEPTH, MAX_FIELDS, parsed, validated
from service.http.openai import routes as openai_routes
from service.http.tgi import routes
from service.settings import Settings
from tests.e2e.hostile import probes
from tests.service.conftest import wait_until
from tests.service.http.test_refusals import refused
from tests.service.test_process import address, process

MIB = 1 << 20
LONGEST_ANSWER = 1000  # bytes
LONGEST_PROBE_SECONDS = 0.5  # the first body below held the old service up for 2.5 s and more
MOST_GROWTH_MB = 60  # the first body below made the old service grow by 600 MB
JSON = {"content-type": "application/json"}


def compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":")).encode()


MANY = {f"field{i}": 1 for i in range(60_000)}
WRONG_IDS = compact([[-1] * 2048] * 170)
JUNK = {
    "wrong ids": WRONG_IDS,
    "fewer wrong ids": compact([[-1] * 2048] * 60),
    "wrong ids in one list": compact([-1] * 300_000),
    "fields": compact(MANY),
    "fewer fields": compact({str(i): 1 for i in range(400)}),
    "a name": compact({"x" * 900_000: 1}),
    "a text": compact("x" * 900_000),
    "texts": compact([""] * 200_000),
    "fewer texts": compact([5] + [""] * 2000),
    "lists": compact([[]] * 200_000),
    "objects": compact([{}] * 200_000),
}
LEGAL = {("inputs", "a text"), ("prompt", "a text"), ("input", "a text"), ("user", "a text")}
MODELS = {
    route.path: cast(type[BaseModel], route.body_field.field_info.annotation)
    for router in (routes.text, openai_routes.v1)
    for route in router.routes
    if isinstance(route, APIRoute) and route.body_field is not None
}
REQUIRED = {"inputs": "x", "prompt": "x", "input": "x", "ids": [1]}


def hostile() -> dict[str, tuple[str, bytes]]:
    """Return bodies, each with its route."""
    deep = b"[" * 900 + b"]" * 900
    return {
        "348,160 wrong ids": ("/embeddings", b'{"inputs":%s}' % WRONG_IDS),
        "348,160 wrong ids under /v1": ("/v1/embeddings", b'{"input":%s}' % WRONG_IDS),
        "60,000 unknown fields": ("/generate", compact({"inputs": "x"} | MANY)),
        "60,000 unknown parameters": ("/", compact({"inputs": "x", "parameters": MANY})),
        "60,000 biases": ("/v1/completions", compact({"prompt": "x", "logit_bias": MANY})),
        "a field's name of 900 kB": ("/generate_stream", compact({"inputs": "x", "x" * 900_000: 1})),
        "a million brackets": ("/tokenize", b"[" * (MIB - 1)),
        "lists, 900 deep": ("/generate", b'{"inputs":[' + b",".join([deep] * 500) + b"]}"),
        "escapes without an end": ("/detokenize", b'{"ids":"' + b'\\"' * 500_000),
        "numbers of 4,300 digits": ("/detokenize", b'{"ids":[' + b",".join([b"9" * 4300] * 240) + b"]}"),
        "2,048 texts": ("/v1/embeddings", compact({"input": ["The old man looked at the sea. " * 16] * 2048})),
        "one long text": ("/tokenize", compact({"inputs": os.urandom(18_000).hex()})),
        "130,000 ids": ("/v1/embeddings", compact({"input": [list(range(2000))] * 65})),
    }


def peak_mb(pid: int) -> float:
    """Return the most that a process ever had in memory."""
    (line,) = (part for part in Path(f"/proc/{pid}/status").read_text().splitlines() if part.startswith("VmHWM"))
    return int(line.split()[1]) / 1000


def test_hostile_bodies_cost_neither_memory_nor_probes(artifacts: list[Path]) -> None:
    with process(artifacts[0], "--port", 0, TTGPT_LOG_LEVEL="info") as child:
        url = address(child)
        wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        httpx.post(f"{url}/v1/embeddings", json={"input": ["The sea"] * 2000}, timeout=60)
        before = peak_mb(child.pid)
        for name, (route, body) in hostile().items():
            with probes(url) as waits:
                answer = httpx.post(url + route, content=body, headers=JSON, timeout=60)
            print(
                f"{name}: {answer.status_code}, slowest probe {max(waits) * 1000:.0f} ms, {peak_mb(child.pid):.0f} MB"
            )
            assert answer.status_code in (200, 400, 422), name
            assert answer.status_code == 200 or len(answer.content) <= LONGEST_ANSWER
            assert max(waits) < LONGEST_PROBE_SECONDS, name
        assert peak_mb(child.pid) - before < MOST_GROWTH_MB
        child.kill()
        assert child.stderr is not None
        assert "Traceback" not in child.stderr.read()


@pytest.mark.parametrize("path", MODELS)
def test_no_junk_makes_more_errors_than_fields(path: str) -> None:
    model = MODELS[path]
    least = {name: REQUIRED[name] for name, field in model.model_fields.items() if field.is_required()}
    nested = {"parameters": ["stop", "grammar"], "stream_options": ["include_usage"]}
    fields = [
        *model.model_fields,
        "unknown",
        *(f"{k}.{v}" for k in nested if k in model.model_fields for v in nested[k]),
    ]
    for field in fields:
        for name, junk in JUNK.items():
            outer, _, inner = field.partition(".")
            value = b'{"%s":%s}' % (inner.encode(), junk) if inner else junk
            others = compact({k: v for k, v in least.items() if k != outer} | {"model": None}).rstrip(b"}")
            body = b'%s,"%s":%s}' % (others, outer.encode(), value)
            if (field, name) in LEGAL:
                validated(body, model, 131_072)
                continue
            with pytest.raises(InvalidRequestError) as caught:
                validated(body, model, 131_072)
            assert len(str(caught.value)) < LONGEST_ANSWER, (field, name)
            cause = caught.value.__cause__
            assert not isinstance(cause, ValidationError) or cause.error_count() <= MAX_FIELDS, (field, name)


def test_every_list_and_text_of_a_body_is_bounded(settings: Settings) -> None:
    document = create_app(settings).openapi()
    seen = set()

    def check(schema: Any, where: str) -> None:
        if isinstance(schema, list):
            for part in schema:
                check(part, where)
        if not isinstance(schema, dict):
            return
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            if name not in seen:
                seen.add(name)
                check(document["components"]["schemas"][name], name)
        assert schema.get("type") != "array" or "maxItems" in schema, where
        assert schema.get("type") != "string" or schema.keys() & {"maxLength", "enum", "const"}, where
        for key, part in schema.items():
            if key not in ("examples", "default"):
                check(part, f"{where}.{key}")

    for path in MODELS:
        check(document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"], path)
    assert len(seen) >= len(set(MODELS.values()))


@pytest.mark.parametrize(
    ("content", "hint"),
    [
        (b"", "is not JSON"), (b"{", "is not JSON"), (b'{"inputs": "x', "does not end"), (b"nil", "is not JSON"),
        (b"[]", "must be a JSON object"), (b"null", "must be a JSON object"),
        (b'{"inputs": "\xff"}', "UTF-8"), ('{"inputs": "x"}'.encode("utf-16"), "UTF-8"),
        (b'{"inputs": [' + b"9" * 5000 + b"]}", "digits"),
        (b'{"inputs": "x", "parameters": {"temperature": NaN}}', "NaN"),
        (b'{"inputs": "x", "parameters": {"temperature": -Infinity}}', "Infinity"),
        (b'{"inputs": "x", "parameters": {"temperature": 1e999}}', "finite"),
        (b'{"inputs": "x", "inputs": "y"}', "inputs: stands there twice"),
        (b'{"inputs": "x", "\\ud800": 1}', "unicode"),
        (b'{"inputs": "x", "a\\nb\\u0000": 1}', "a?b?: is not a known field"),
        (b'{"inputs": "\\ud800"}', "inputs"), (b'{"inputs": "x", "model": "\\udfff"}', "model"),
        (b"[" * 100_000, "nested"), (b'{"inputs": ' + b"[" * 40 + b"]" * 40 + b"}", "nested"),
        (b'{"inputs": "x", "parameters": {"seed": ' + b"9" * 5000 + b"}}", "digits"),
        (b'{"inputs": "x", "parameters": {"seed": ' + b"9" * 4000 + b"}}", "9..."),
        (b'{"inputs": "x", "parameters": {"' + b"k" * 1000 + b'": 1}}', f"parameters.{'k' * 64}...: is not"),
    ],
    ids=lambda value: repr(value[:50]),
)  # fmt: skip
def test_what_is_wrong_with_a_body_is_said_in_one_short_line(client: httpx.Client, content: bytes, hint: str) -> None:
    text = refused(client.post("/generate", content=content, headers=JSON), 422, "validation")
    assert hint in text
    assert len(text) < 200
    assert text.isprintable()


def test_a_body_is_json_by_its_content_type(client: httpx.Client) -> None:
    body = compact({"inputs": "x", "parameters": {"max_new_tokens": 1}})
    for kind in ("application/json", "Application/JSON; charset=utf-8", "application/vnd.api+json"):
        assert client.post("/generate", content=body, headers={"content-type": kind}).status_code == 200
    assert client.post("/generate", content=b"\xef\xbb\xbf" + body, headers=JSON).status_code == 200
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        answer = client.post("/generate", content=body, headers={"content-type": kind})
        assert "content-type: application/json" in refused(answer, 422, "validation")


VALUES = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False, allow_infinity=False) | some.text(),
    lambda inner: some.lists(inner, max_size=5) | some.dictionaries(some.text(), inner, max_size=5),
    max_leaves=30,
)


@given(value=VALUES, spaced=some.booleans(), ascii_only=some.booleans())
def test_all_json_within_the_limits_is_read_as_it_is(value: Any, spaced: bool, ascii_only: bool) -> None:
    text = json.dumps(value, indent=2 if spaced else None, ensure_ascii=ascii_only)
    assert parsed(text.encode(), 1000) == value


@given(data=some.binary(max_size=50) | some.text(alphabet='[]{}",:\\ 1e-.', max_size=50).map(str.encode))
def test_what_is_read_is_json(data: bytes) -> None:
    try:
        found = parsed(data, 1000)
    except InvalidRequestError:
        return
    assert json.loads(data) == found


def test_the_limits_are_reached() -> None:
    assert len(parsed(compact({str(i): 1 for i in range(MAX_FIELDS)}), 0)) == MAX_FIELDS  # type: ignore[arg-type]
    parsed(b"[" * MAX_DEPTH + b"]" * MAX_DEPTH, 0)
    contents: list[Any] = [["x"] * 2048, [[1] * 64] * 2048]
    for content in contents:
        assert parsed(compact(content), 131_072) == content
    for too_much in ({str(i): 1 for i in range(MAX_FIELDS + 1)}, [[1] * 64] * 2048 + [[1]], ["x"] * 4097):
        with pytest.raises(InvalidRequestError, match="at most"):
            parsed(compact(too_much), 131_072)
