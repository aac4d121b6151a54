"""Every refusal: status, TGI's shape, a text that names the field, and the metric that counts it."""

from typing import Any

import httpx
import pytest

from tests.service.conftest import sample

BAD_PARAMETERS: list[tuple[str, Any, str]] = [
    ("temperature", 0, "greater than 0, not 0"),
    ("temperature", 101, "100"),
    ("temperature", "hot", "number"),
    ("top_k", -2, "-1, not -2"),
    ("top_p", 0, "0"),
    ("top_p", 1.5, "1, not 1.5"),
    ("repetition_penalty", 0, "0"),
    ("max_new_tokens", 0, "1"),
    ("max_new_tokens", 65, "at most 64"),
    ("max_new_tokens", 10**30, "65536"),
    ("max_new_tokens", True, "integer"),
    ("seed", -2, "-1, not -2"),
    ("seed", 2**63, str(2**63 - 1)),
    ("stop", ["a"] * 17, "16"),
    ("stop", [""], "1 character"),
    ("stop", ["a" * 65], "64 characters"),
    ("best_of", 2, "must be 1 unless tokens are drawn"),
    ("best_of", 5, "4, not 5"),
    ("best_of", 0, "1, not 0"),
    ("watermark", True, "texts are not watermarked; leave it out or send false"),
    ("grammar", {"type": "regex", "value": "a*"}, "not held to a grammar; leave it out"),
    ("truncate", 0, "1, not 0"),
    ("truncate", 65537, "65536"),
    ("min_p", -0.1, "0, not -0.1"),
    ("min_p", 1.1, "1, not 1.1"),
    ("min_tokens", -1, "0, not -1"),
    ("min_tokens", 101, "at most max_new_tokens, 100, not 101"),
    ("presence_penalty", -2.1, "-2, not -2.1"),
    ("logit_bias", {"5": 101}, "100, not 101"),
    ("logit_bias", {"x": 1}, "ids"),
    ("logit_bias", {"05": 1}, "ids"),
    ("logit_bias", {"-5": 1}, "ids"),
    ("logit_bias", {"16384": 1}, "vocabulary of 16384, not 16384"),
    ("logit_bias", {str(i): 1 for i in range(301)}, "300"),
    ("logit_bias", [5], "dictionary"),
    ("stop_token_ids", [16384], "vocabulary of 16384, not 16384"),
    ("stop_token_ids", [-1], "0, not -1"),
    ("stop_token_ids", [5] * 129, "128"),
    ("ignore_eos", 1, "boolean"),
    ("typical_p", 0, "0"),
    ("typical_p", 1.01, "1"),
    ("top_n_tokens", 6, "5, not 6"),
    ("top_n_tokens", -1, "0, not -1"),
    ("frequency_penalty", 2.5, "2, not 2.5"),
    ("frequency_penalty", -2.5, "-2, not -2.5"),
    ("adapter_id", "x", "there are no adapters; leave it out"),
    ("temprature", 1, "not a known field"),
]


def refused(answer: httpx.Response, status: int, kind: str) -> str:
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert body.keys() == {"error", "error_type"}
    assert body["error_type"] == kind
    return str(body["error"])


@pytest.mark.parametrize(("field", "value", "hint"), BAD_PARAMETERS)
def test_bad_parameters(client: httpx.Client, field: str, value: Any, hint: str) -> None:
    before = sample(client, "ttgpt_requests_rejected_total", reason="invalid")
    answer = client.post("/generate", json={"inputs": "x", "parameters": {field: value}})
    text = refused(answer, 422, "validation")
    assert text.startswith(f"parameters.{field}")
    assert hint in text
    assert sample(client, "ttgpt_requests_rejected_total", reason="invalid") == before + 1


@pytest.mark.parametrize(
    ("fields", "hint"),
    [
        ({"best_of": 2, "do_sample": True}, "best_of: must be 1 in a stream, not 2"),
        ({"decoder_input_details": True}, "decoder_input_details: must be false in a stream"),
    ],
)
def test_what_a_stream_cannot_tell(client: httpx.Client, fields: dict[str, Any], hint: str) -> None:
    for route, stream in (("/generate_stream", True), ("/", True)):
        answer = client.post(route, json={"inputs": "x", "parameters": fields, "stream": stream})
        assert refused(answer, 422, "validation") == f"parameters.{hint}"


def test_long_texts_are_not_cut(client: httpx.Client) -> None:
    body = {"inputs": "a sea " * 11_000, "parameters": {"truncate": 5}}
    text = refused(client.post("/generate", json=body), 422, "validation")
    assert text == "parameters.truncate: the text that is cut must be at most 65536 bytes long, not 66000"


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b'"x"', b'{"inputs": 1}', b'{"inputs": "x", "parameters": []}', b"[" * 100_000,
        b'{"inputs": "\\ud800"}', b'{"inputs": "x", "parameters": {"temperature": NaN}}', b"\xff\xfe",
        b'{"inputs": "x", "parameters": {"seed": ' + b"9" * 5000 + b"}}", b'{"inputs": "x", "stream": true}',
    ],
)  # fmt: skip
def test_bad_bodies(client: httpx.Client, content: bytes) -> None:
    answer = client.post("/generate", content=content, headers={"content-type": "application/json"})
    refused(answer, 422, "validation")


def test_prompts_are_not_repeated_in_errors(client: httpx.Client) -> None:
    answer = client.post("/generate", json={"inputs": ["my secret"]})
    assert "secret" not in refused(answer, 422, "validation")


def test_a_prompt_longer_than_the_context(client: httpx.Client) -> None:
    for words, hint in ((100, "100 tokens are more than the 64"), (200_000, "at least")):
        text = refused(client.post("/generate", json={"inputs": " sea" * words}), 422, "validation")
        assert hint in text
    assert "no room" in refused(client.post("/generate", json={"inputs": " sea" * 64}), 422, "validation")


def test_unknown_model_names_the_loaded_ones(client: httpx.Client) -> None:
    for name in ("gpt5", "../tiny-fp32", "/etc/passwd"):
        answer = client.post("/generate", json={"inputs": "x", "model": name})
        assert "tiny-fp32, tiny-int8" in refused(answer, 404, "model_not_found")


def test_a_body_over_the_limit(client: httpx.Client) -> None:
    before = sample(client, "ttgpt_requests_rejected_total", reason="too_large")
    big = b"x" * (1 << 20) + b"x"
    assert "1048576" in refused(client.post("/generate", content=big), 413, "validation")
    refused(client.post("/generate", content=iter([big[:1000], big[1000:]])), 413, "validation")
    assert sample(client, "ttgpt_requests_rejected_total", reason="too_large") == before + 2


def test_unknown_routes_make_no_new_series(client: httpx.Client) -> None:
    labels = {"handler": "unmatched", "method": "OTHER", "status": "4xx"}
    refused(client.request("PROPFIND", "/coffee"), 404, "not_found")
    series = [line.rpartition(" ")[0] for line in client.get("/metrics").text.splitlines()]
    before = sample(client, "ttgpt_http_requests_total", **labels)
    for attempt in range(20):
        refused(client.request(("LOCK", "MKCOL", "REPORT")[attempt % 3], f"/wp-admin/{attempt}"), 404, "not_found")
    assert sample(client, "ttgpt_http_requests_total", **labels) == before + 20
    assert [line.rpartition(" ")[0] for line in client.get("/metrics").text.splitlines()] == series


def test_wrong_method(client: httpx.Client) -> None:
    answer = client.get("/generate")
    refused(answer, 405, "not_found")
    assert answer.headers["allow"] == "POST"
