"""The routes under /v1 with the official client and without: answers, streams, refusals."""

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest
import torch
from openai import OpenAI

from compressor.formats import Dense
from service.engine.models import LoadedModel
from service.settings import Settings
from tests.conftest import TINY, tiny_model, write_artifact
from tests.service.conftest import logits_of, sample, serving

TEXT = "The old man looked at the sea"
ASKED: list[dict[str, Any]] = [
    {"seed": 7, "max_tokens": 30},
    {"temperature": 0, "stop": None, "logit_bias": {}, "best_of": 1, "presence_penalty": 0},
    {"seed": 3, "n": 3, "max_tokens": 12, "echo": True},
    {"seed": 5, "max_tokens": 12, "logprobs": 3, "echo": True, "n": 2},
    {"seed": 1, "max_tokens": 20, "logprobs": 0, "stop": ["e", "th"]},
    {"prompt": ["The sea", "🙂 漢字"], "seed": 2, "max_tokens": 9, "n": 2},
    {"prompt": [[5, 6, 7], [8]], "max_tokens": 0, "echo": True, "logprobs": 5},
]


@pytest.fixture(scope="module")
def ai(client: httpx.Client) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{str(client.base_url).rstrip(chr(47))}/v1", api_key="unused", max_retries=0) as ai:
        yield ai


def complete(client: httpx.Client, **fields: Any) -> dict[str, Any]:
    answer = client.post("/v1/completions", json={"prompt": TEXT, **fields})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def chunks(client: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    answer = client.post("/v1/completions", json={"prompt": TEXT, "stream": True, **fields})
    assert answer.status_code == 200, answer.text
    *events, done, end = answer.text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.mark.parametrize("fields", ASKED, ids=str)
def test_a_joined_stream_is_the_whole(client: httpx.Client, fields: dict[str, Any]) -> None:
    fields = {"seed": 0, **fields}
    whole = complete(client, **fields)["choices"]
    parts = [choice for chunk in chunks(client, **fields) for choice in chunk["choices"]]
    for index, expected in enumerate(whole):
        mine = [part for part in parts if part["index"] == index]
        assert "".join(part["text"] for part in mine) == expected["text"]
        assert [part["finish_reason"] for part in mine if part["finish_reason"]] == [expected["finish_reason"]]
        if expected["logprobs"]:
            for name in ("tokens", "token_logprobs", "text_offset"):
                assert [x for part in mine for x in part["logprobs"][name]] == expected["logprobs"][name]


def test_logprobs_are_laid_out_along_the_text(client: httpx.Client) -> None:
    (choice,) = complete(client, seed=5, max_tokens=12, logprobs=4, echo=True)["choices"]
    told = choice["logprobs"]
    assert "".join(told["tokens"]) == choice["text"]
    assert choice["text"].startswith(TEXT)
    for token, offset in zip(told["tokens"], told["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    assert told["token_logprobs"][0] is told["top_logprobs"][0] is None
    for own, top in zip(told["token_logprobs"][1:], told["top_logprobs"][1:], strict=True):
        assert 4 <= len(top) <= 5
        assert own in top.values()


def test_prompts_are_scored_as_the_model_does(client: httpx.Client, tiny: LoadedModel) -> None:
    ids = list(range(3, 40))
    told = complete(client, prompt=ids, max_tokens=0, echo=True, logprobs=1)["choices"][0]["logprobs"]
    scores = torch.from_numpy(logits_of(tiny.decoder, ids, Settings.model_fields["kv_dtype"].default)).log_softmax(-1)
    expected = scores[range(len(ids) - 1), ids[1:]]
    assert torch.allclose(torch.tensor(told["token_logprobs"][1:]), expected, atol=1e-4)


def test_choices_are_seeded_one_by_one(client: httpx.Client) -> None:
    three = [c["text"] for c in complete(client, prompt=[TEXT, "x"], seed=4, n=3)["choices"]]
    alone = [complete(client, prompt=p, seed=4 + i)["choices"][0]["text"] for p in (TEXT, "x") for i in range(3)]
    assert three == alone
    assert len(set(three)) > 1


def test_text_behind_its_end(tmp_path: Path) -> None:
    """With vLLM's ignore_eos; the token that ends a text is then a part of it, whose text is empty."""
    model = tiny_model()
    table, towards = model.wte.dense().clone(), model.vectors()["ln_f.bias"].decode()
    table[TINY.eos_token_id] = 12 * towards / towards.norm()  # often likely
    folder = write_artifact(tmp_path / "ends", model.with_matrices({"lm_head": Dense.of(table, "fp32")}))
    fields: dict[str, Any] = {"prompt": [4, 5, 6], "max_tokens": 30, "logprobs": 0, "seed": 1}
    with serving(Settings(models=(folder,), threads=1)) as client:
        ended = complete(client, ignore_eos=False, **fields)["choices"][0]
        whole = complete(client, ignore_eos=True, **fields)["choices"][0]
    count = len(ended["logprobs"]["tokens"])
    assert (ended["finish_reason"], whole["finish_reason"]) == ("stop", "length")
    assert count < len(whole["logprobs"]["tokens"]) == 30
    assert whole["logprobs"]["token_logprobs"][:count] == ended["logprobs"]["token_logprobs"]
    assert whole["logprobs"]["tokens"][count - 1] == ""
    assert whole["text"].startswith(ended["text"])
    assert whole["text"] > ended["text"]
    assert "endoftext" not in whole["text"]


def test_usage(client: httpx.Client, tiny: LoadedModel) -> None:
    read = len(tiny.encode(TEXT))
    fields: dict[str, Any] = {"max_tokens": 5, "n": 2}
    expected = {"prompt_tokens": read, "completion_tokens": 10, "total_tokens": read + 10}
    assert complete(client, **fields)["usage"] == expected
    told = chunks(client, stream_options={"include_usage": True}, **fields)
    assert [(chunk["choices"], chunk["usage"]) for chunk in told if chunk["usage"]] == [([], expected)]
    assert all(chunk["usage"] is None for chunk in chunks(client, **fields))


@pytest.mark.parametrize("fields", [{"n": 2, "max_tokens": 12}, {"prompt": ["x", TEXT], "max_tokens": 9, "echo": True}])
def test_usage_of_every_chunk(client: httpx.Client, tiny: LoadedModel, fields: dict[str, Any]) -> None:
    """As guidellm asks for it; vLLM's is of the chunk's choice so far, and needs include_usage."""
    both = {"include_usage": True, "continuous_usage_stats": True}
    *told, last = chunks(client, seed=1, stream_options=both, **fields)
    prompts = fields.get("prompt", [TEXT])
    lengths = [len(tiny.encode(prompt)) for prompt in prompts for _ in range(fields.get("n", 1))]
    for index, read in enumerate(lengths):
        mine = [chunk for chunk in told if chunk["choices"][0]["index"] == index]
        written = [chunk["usage"]["completion_tokens"] for chunk in mine]
        assert written == sorted(written)
        assert written[-1] == fields["max_tokens"]
        assert {chunk["usage"]["prompt_tokens"] for chunk in mine} == {read}
        assert all(c["usage"]["total_tokens"] == read + c["usage"]["completion_tokens"] for c in mine)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], len(lengths) * fields["max_tokens"])
    alone = chunks(client, stream_options={"continuous_usage_stats": True}, **fields)
    assert all(chunk["usage"] is None for chunk in alone)


def test_the_official_client(ai: OpenAI, client: httpx.Client, tiny: LoadedModel) -> None:
    assert [model.id for model in ai.models.list()] == ["tiny-fp32", "tiny-int8"]
    assert ai.models.retrieve("tiny-int8").id == "tiny-int8"
    asked: dict[str, Any] = {"model": "tiny-fp32", "prompt": TEXT, "max_tokens": 9, "seed": 1, "logprobs": 2}
    whole = ai.completions.create(**asked)
    streamed = list(ai.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(c.text for chunk in streamed for c in chunk.choices) == whole.choices[0].text
    assert streamed[-1].usage == whole.usage
    several = ai.completions.create(
        **asked, n=2, best_of=4, frequency_penalty=0.5, presence_penalty=-0.5, logit_bias={"464": -100, "5": 1},
        stop=list("abcdefghijklmnop"), extra_body={"min_p": 0.01, "min_tokens": 3, "stop_token_ids": [5, 6]},
    )  # fmt: skip
    assert [choice.index for choice in several.choices] == [0, 1]
    ids = tiny.encode("The sea")
    mean = torch.nn.functional.normalize(torch.from_numpy(tiny.decoder.embed(np.array(ids))).mean(0), dim=0)
    for encoding in ("float", "base64", None):
        options: dict[str, Any] = {"encoding_format": encoding} if encoding else {}
        found = ai.embeddings.create(model="tiny-fp32", input=["The sea", "x"], **options).data[0].embedding
        if isinstance(found, str):
            found = torch.frombuffer(bytearray(base64.b64decode(found)), dtype=torch.float32).tolist()
        assert torch.allclose(torch.tensor(found), mean)


DEFAULTS: dict[str, dict[str, Any]] = {
    "OpenAI": {"user": "somebody", "frequency_penalty": 0, "presence_penalty": 0, "logit_bias": None, "best_of": 1},
    "nulls": dict.fromkeys(
        ("best_of", "echo", "frequency_penalty", "logit_bias", "logprobs", "min_p", "min_tokens", "presence_penalty",
         "stop", "stop_token_ids", "stream", "stream_options", "suffix", "top_k", "truncate_prompt_tokens", "user")
    ),
    "vLLM": {
        "n": 1, "best_of": 1, "presence_penalty": 0.0, "frequency_penalty": 0.0, "repetition_penalty": 1.0,
        "top_p": 1.0, "top_k": 0, "min_p": 0.0, "stop": [], "stop_token_ids": [], "min_tokens": 0, "logit_bias": {},
        "suffix": "", "truncate_prompt_tokens": None,
    },
    "vLLM, older": {"top_k": -1, "stop_token_ids": None, "min_p": 0},
    "everything off": {
        "typical_p": 1, "ignore_eos": False, "truncate_prompt_tokens": 64, "response_format": {"type": "text"},
        "tools": [], "tool_choice": "none", "functions": [], "function_call": "none",
    },
    "no tools": dict.fromkeys(("response_format", "tools", "tool_choice", "functions", "function_call", "typical_p")),
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_of_clients_change_nothing(client: httpx.Client, name: str) -> None:
    for how in ({"temperature": 0}, {"seed": 3}):
        found = complete(client, **how, **DEFAULTS[name])["choices"]
        assert found == complete(client, **how)["choices"]


def test_a_seed_of_minus_1_is_any(client: httpx.Client) -> None:
    assert len({complete(client, seed=-1)["choices"][0]["text"] for _ in range(4)}) > 1
    asked = {"inputs": TEXT, "parameters": {"do_sample": True, "details": True, "seed": -1}}
    assert len({client.post("/generate", json=asked).json()["details"]["seed"] for _ in range(4)}) == 4


def test_the_official_client_knows_the_errors(ai: OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="tiny-fp32"):
        ai.completions.create(model="gpt5", prompt="x")
    with pytest.raises(openai.BadRequestError, match="max_tokens"):
        ai.completions.create(model="tiny-fp32", prompt="x", max_tokens=65)


def test_base_models_do_not_chat(ai: OpenAI, client: httpx.Client) -> None:
    route = "/v1/chat/completions"
    labels = {"handler": route, "method": "POST", "status": "4xx"}
    before = sample(client, "ttgpt_http_requests_total", **labels)
    with pytest.raises(openai.NotFoundError, match="without a chat template"):
        ai.chat.completions.create(model="tiny-fp32", messages=[{"role": "user", "content": TEXT}])
    for body in (b"", b"{", b'{"messages": []}'):
        error = client.post(route, content=body).json()["error"]
        assert error.keys() == {"message", "type", "param", "code"}
        assert "/v1/completions" in error["message"]
    assert sample(client, "ttgpt_http_requests_total", **labels) == before + 4


@pytest.mark.parametrize(
    ("fields", "param", "hint"),
    [
        ({"n": 5}, "n", "4"), ({"n": 0}, "n", "1"), ({"stop": ["a"] * 17}, "stop", "16"),
        ({"logprobs": 21}, "logprobs", "20"), ({"logprobs": -1}, "logprobs", "0"),
        ({"stop": "a" * 65}, "stop.0", "64"), ({"user": 5}, "user", "string"),
        ({"best_of": 5}, "best_of", "4"), ({"best_of": 0}, "best_of", "1"),
        ({"best_of": 2, "n": 3}, "best_of", "at least n, 3, not 2"),
        ({"best_of": 2, "stream": True}, "best_of", "must be n, 1, in a stream, not 2"),
        ({"typical_p": 0}, "typical_p", "0"), ({"typical_p": 1.1}, "typical_p", "1"),
        ({"min_p": -0.1}, "min_p", "0"), ({"min_p": 1.5}, "min_p", "1"),
        ({"min_tokens": 17}, "min_tokens", "at most max_tokens, 16, not 17"), ({"min_tokens": -1}, "min_tokens", "0"),
        ({"min_tokens": 1, "max_tokens": 0, "echo": True}, "min_tokens", "at most max_tokens, 0, not 1"),
        ({"stop_token_ids": [5] * 129}, "stop_token_ids", "128"), ({"top_k": -2}, "top_k", "-1"),
        ({"stop_token_ids": [16384]}, "stop_token_ids", "below the vocabulary of 16384"),
        ({"truncate_prompt_tokens": 0}, "truncate_prompt_tokens", "at least 1, or -1"),
        ({"truncate_prompt_tokens": -2}, "truncate_prompt_tokens", "-1"), ({"seed": -2}, "seed", "-1"),
        ({"prompt": "a sea " * 11_000, "truncate_prompt_tokens": 5}, "truncate_prompt_tokens", "65536 bytes"),
        ({"prompt": [5] * 80, "truncate_prompt_tokens": 70}, "prompt", "64"),
        ({"logit_bias": {"5": -100.5}}, "logit_bias.5", "-100, not -100.5"),
        ({"logit_bias": {"x": 1}}, "logit_bias", "ids"), ({"logit_bias": {"5": True}}, "logit_bias.5", "number"),
        ({"logit_bias": {"16384": 1}}, "logit_bias", "vocabulary of 16384"),
        ({"logit_bias": {str(i): 1 for i in range(301)}}, "logit_bias", "300"),
        ({"suffix": "x"}, "suffix", "fill nothing in"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not held to a format"),
        ({"tools": [{"type": "function"}]}, "tools", "call nothing"), ({"functions": [{}]}, "functions", "nothing"),
        ({"tool_choice": "auto"}, "tool_choice", 'leave it out or send "none"'),
        ({"function_call": {"name": "f"}}, "function_call", "call nothing"),
        ({"presence_penalty": 2.1}, "presence_penalty", "2"), ({"frequency_penalty": -3}, "frequency_penalty", "-2"),
        ({"temperature": 2.1}, "temperature", "2"),
        ({"max_tokens": 0}, "max_tokens", "echo"), ({"max_tokens": 10**20}, "max_tokens", "65536"),
        ({"prompt": [16384]}, "prompt", "16384"), ({"prompt": [1] * 65}, "prompt", "64"),
        ({"prompt": []}, "prompt", "1"),
        ({"prompt": None}, "prompt", "string"), ({"prompt": ["x"] * 33}, "prompt", "32"),
        ({"prompt": [[]]}, "prompt.0", "1"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "stream"), ({"coffee": 1}, "coffee", "known"),
    ],
)  # fmt: skip
def test_refusals(client: httpx.Client, fields: dict[str, Any], param: str, hint: str) -> None:
    before = sample(client, "ttgpt_requests_rejected_total", reason="invalid")
    answer = client.post("/v1/completions", json={"prompt": "x", **fields})
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert (error["type"], error["code"], error["param"]) == ("invalid_request_error", "validation", param)
    assert hint in error["message"]
    assert sample(client, "ttgpt_requests_rejected_total", reason="invalid") == before + 1


def test_other_failures_have_openais_shape_too(client: httpx.Client) -> None:
    for answer, status in (
        (client.get("/v1/completions"), 405),
        (client.get("/v1/coffee"), 404),
        (client.post("/v1/completions", content=b"{"), 400),
        (client.post("/v1/completions", content=b" " * ((1 << 20) + 1)), 413),
        (client.post("/v1/embeddings", json={"input": ""}), 400),
    ):
        assert answer.status_code == status
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
