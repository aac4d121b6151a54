"""Chats with base models are completions of a transcript, with the official client and without."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI
from pydantic import ValidationError

from service.chat_template import ChatTemplate
from service.settings import Settings
from tests.service.conftest import artifacts, serving
from tests.service.http.test_openai import TEXT

__all__ = ["artifacts"]
TEMPLATE = "[{role}] {content}\n\n"
TURNS: list[dict[str, Any]] = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": TEXT},
    {"role": "assistant", "content": "And?"},
    {"role": "user", "content": [{"type": "text", "text": "It was "}, {"type": "text", "text": "gone."}]},
]
TRANSCRIPT = f"[system] Be kind.\n\n[user] {TEXT}\n\n[assistant] And?\n\n[user] It was gone.\n\n[assistant]"
ASKED: list[dict[str, Any]] = [
    {"seed": 7, "max_tokens": 12},
    {"temperature": 0, "max_completion_tokens": 9, "n": 2},
    {"seed": 5, "max_tokens": 12, "n": 3, "stop": "e", "presence_penalty": 1, "min_p": 0.01},
    {"seed": 2, "logprobs": True, "top_logprobs": 2, "max_tokens": 5},
    {"seed": 2, "logprobs": True, "max_tokens": 5, "user": "somebody", "tools": [], "tool_choice": "none"},
]


@pytest.fixture(scope="module")
def chatting(settings: Settings, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    path = tmp_path_factory.mktemp("template") / "chat.txt"
    path.write_text(TEMPLATE)
    with serving(settings.model_copy(update={"chat_template": path})) as client:
        yield client


def chat(client: httpx.Client, **fields: Any) -> httpx.Response:
    return client.post("/v1/chat/completions", json={"messages": TURNS, **fields})


def streamed(client: httpx.Client, **fields: Any) -> list[dict[str, Any]]:
    *events, done, end = chat(client, stream=True, **fields).text.split("\n\n")
    assert (done, end) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


@pytest.mark.parametrize("fields", ASKED, ids=str)
def test_a_chat_is_the_completion_of_its_transcript(chatting: httpx.Client, fields: dict[str, Any]) -> None:
    found = chat(chatting, **fields).json()
    same = {key: value for key, value in fields.items() if key not in ("logprobs", "top_logprobs")}
    same["max_tokens"] = same.pop("max_completion_tokens", same.get("max_tokens"))
    stops = [*fields.get("stop", ""), "\n\n"]
    logprobs = fields.get("top_logprobs", 0) if fields.get("logprobs") else None
    asked = {"prompt": TRANSCRIPT, **same, "stop": stops, "logprobs": logprobs}
    expected = chatting.post("/v1/completions", json=asked).json()
    assert found["usage"] == expected["usage"]
    assert found["object"] == "chat.completion"
    for one, other in zip(found["choices"], expected["choices"], strict=True):
        assert one["message"] == {"role": "assistant", "content": other["text"].removeprefix(" ")}
        assert (one["finish_reason"], one["index"]) == (other["finish_reason"], other["index"])
        told = one["logprobs"] and [token["logprob"] for token in one["logprobs"]["content"]]
        assert told == (other["logprobs"] and other["logprobs"]["token_logprobs"])


@pytest.mark.parametrize("fields", ASKED, ids=str)
def test_a_joined_stream_is_the_whole(chatting: httpx.Client, fields: dict[str, Any]) -> None:
    fields = {"seed": 0, **fields}
    whole, chunks = (
        chat(chatting, **fields).json(),
        streamed(chatting, **fields, stream_options={"include_usage": True}),
    )
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"] == whole["usage"]
    for choice in whole["choices"]:
        parts = [part for chunk in chunks for part in chunk["choices"] if part["index"] == choice["index"]]
        assert [part["delta"].get("role") for part in parts].count("assistant") == 1
        assert parts[0]["delta"]["role"] == "assistant"
        assert "".join(part["delta"]["content"] for part in parts) == choice["message"]["content"]
        assert parts[-1]["finish_reason"] == choice["finish_reason"]


def test_the_official_client_chats(chatting: httpx.Client) -> None:
    url = f"{str(chatting.base_url).rstrip('/')}/v1"
    with OpenAI(base_url=url, api_key="unused", max_retries=0) as ai:
        messages: Any = TURNS
        answer = ai.chat.completions.create(model="tiny-fp32", messages=messages, seed=3, max_completion_tokens=9)
        stream = ai.chat.completions.create(model="tiny-fp32", messages=messages, seed=3, max_tokens=9, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in stream) == answer.choices[0].message.content
        with pytest.raises(openai.BadRequestError, match="response_format: is not supported"):
            ai.chat.completions.create(model="tiny-fp32", messages=messages, response_format={"type": "json_object"})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"messages": []}, "messages: "),
        ({"messages": [{"role": "tool", "content": "9"}]}, "messages.0.role: "),
        ({"messages": [{"role": "user", "content": "the sea " * 99}]}, "messages: "),
        ({"top_logprobs": 2}, "top_logprobs: needs logprobs"),
        ({"max_tokens": 3, "max_completion_tokens": 4}, "max_tokens: must be max_completion_tokens"),
        ({"logit_bias": {"99999": 1}}, "logit_bias: "),
        ({"tools": [{"type": "function"}]}, "tools: is not supported"),
        ({"stream_options": {"include_usage": True}}, "stream_options: needs stream"),
    ],
)
def test_what_is_wrong_is_named(chatting: httpx.Client, fields: dict[str, Any], message: str) -> None:
    answer = chat(chatting, **fields)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


@given(st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text())))
def test_a_transcript_has_every_turn_as_it_is(turns: list[tuple[str, str]]) -> None:
    for spaced in (True, False):
        template = ChatTemplate("<{role}>" + " " * spaced, "|")
        told = template.transcript(turns)
        space = " " * spaced
        assert told == "".join(f"<{role}>{space}{content}|" for role, content in turns) + "<assistant>"


@pytest.mark.parametrize(
    "text", ["", "{content}", "{role}: {content}", "{content} {role}\n", "{role} {content} {content}\n", "{role}\n"]
)
def test_a_template_that_is_none_is_refused(settings: Settings, tmp_path: Path, text: str) -> None:
    path = tmp_path / "chat.txt"
    path.write_text(text)
    with pytest.raises(ValidationError, match=r"chat.txt must have"):
        Settings(models=settings.models, chat_template=path)
    with pytest.raises(ValidationError, match="must be a text file"):
        Settings(models=settings.models, chat_template=tmp_path)
