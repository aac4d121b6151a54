"""POST /generate, /generate_stream and /: TGI's bodies, TGI's answers, and the metrics they move."""

import json
from typing import Any

import httpx
import pytest

from service.engine.models import LoadedModel
from tests.service.conftest import sample

TEXT = "The old man looked at the sea"


def generate(client: httpx.Client, **parameters: Any) -> dict[str, Any]:
    answer = client.post("/generate", json={"inputs": TEXT, "parameters": {"details": True, **parameters}})
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


def stream(client: httpx.Client, **parameters: Any) -> list[dict[str, Any]]:
    answer = client.post("/generate_stream", json={"inputs": TEXT, "parameters": parameters})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(event.removeprefix("data:")) for event in answer.text.split("\n\n") if event]


def test_only_the_text_without_details(client: httpx.Client) -> None:
    answer = client.post("/generate", json={"inputs": TEXT, "parameters": {"max_new_tokens": 4}})
    assert answer.json().keys() == {"generated_text"}


def test_details(client: httpx.Client) -> None:
    answer = generate(client, max_new_tokens=5)
    details = answer["details"]
    assert (details["finish_reason"], details["generated_tokens"], details["seed"]) == ("length", 5, None)
    assert details["prefill"] == []
    assert len(details["tokens"]) == 5
    assert "".join(token["text"] for token in details["tokens"]) == answer["generated_text"]
    assert all(token["logprob"] <= 0 and not token["special"] for token in details["tokens"])


def test_metrics_of_a_generation(client: httpx.Client, tiny: LoadedModel) -> None:
    name = {"model_name": "tiny-fp32"}
    counted: dict[str, tuple[dict[str, str], int]] = {
        "ttgpt_generation_tokens_total": (name, 5),
        "ttgpt_prompt_tokens_total": (name, len(tiny.encode(TEXT))),
        "ttgpt_request_success_total": ({**name, "finished_reason": "length"}, 1),
        "ttgpt_http_requests_total": ({"handler": "/generate", "method": "POST", "status": "2xx"}, 1),
        "ttgpt_time_to_first_token_seconds_count": (name, 1),
        "ttgpt_inter_token_latency_seconds_count": (name, 4),
        "ttgpt_e2e_request_latency_seconds_count": (name, 1),
        "ttgpt_request_queue_time_seconds_count": (name, 1),
        "ttgpt_request_prefill_time_seconds_count": (name, 1),
        "ttgpt_request_decode_time_seconds_count": (name, 1),
        "ttgpt_request_generation_tokens_sum": (name, 5),
    }
    before = {metric: sample(client, metric, **labels) for metric, (labels, _) in counted.items()}
    generate(client, max_new_tokens=5)
    for metric, (labels, difference) in counted.items():
        assert sample(client, metric, **labels) - before[metric] == difference, metric
    assert sample(client, "ttgpt_num_requests_running", **name) == 0
    assert sample(client, "ttgpt_num_requests_waiting", **name) == 0


@pytest.mark.parametrize(
    "parameters", [{}, {"seed": 7, "temperature": 1.3, "top_k": 50}, {"do_sample": True, "seed": 1}]
)
def test_a_stream_tells_the_same_as_the_whole(client: httpx.Client, parameters: dict[str, Any]) -> None:
    whole = generate(client, max_new_tokens=20, **parameters)
    events = stream(client, max_new_tokens=20, **parameters)
    assert [event["token"] for event in events] == whole["details"]["tokens"]
    assert [event["index"] for event in events] == list(range(1, 21))
    assert all(event["generated_text"] is None and event["details"] is None for event in events[:-1])
    assert events[-1]["generated_text"] == whole["generated_text"]
    details = events[-1]["details"]
    assert details.pop("input_length") > 0
    assert details == {key: whole["details"][key] for key in details}


def test_a_drawn_seed_is_told_and_repeats_the_text(client: httpx.Client) -> None:
    first = generate(client, max_new_tokens=12, do_sample=True)
    again = generate(client, max_new_tokens=12, do_sample=True, seed=first["details"]["seed"])
    other = generate(client, max_new_tokens=12, do_sample=True)
    assert again == first
    assert other["details"]["seed"] != first["details"]["seed"]


def test_text_ends_before_a_stop_string(client: httpx.Client) -> None:
    whole = generate(client, max_new_tokens=20)["generated_text"]
    stop = whole[len(whole) // 2 :][:3]
    stopped = generate(client, max_new_tokens=20, stop=[stop])
    events = stream(client, max_new_tokens=20, stop=[stop])
    assert stopped["generated_text"] == whole[: whole.index(stop)]
    assert stopped["details"]["finish_reason"] == "stop_sequence"
    assert "".join(event["token"]["text"] for event in events) == stopped["generated_text"]


def test_full_text_begins_with_the_prompt(client: httpx.Client) -> None:
    text = generate(client, max_new_tokens=3)["generated_text"]
    assert generate(client, max_new_tokens=3, return_full_text=True)["generated_text"] == TEXT + text


def test_an_empty_prompt_starts_from_the_end_of_text(client: httpx.Client) -> None:
    answer = client.post("/generate", json={"inputs": "", "parameters": {"max_new_tokens": 2}})
    assert answer.status_code == 200


@pytest.mark.parametrize("asked", [{}, {"max_new_tokens": 64}])
def test_a_text_ends_with_the_context(client: httpx.Client, tiny: LoadedModel, asked: dict[str, int]) -> None:
    details = generate(client, **asked)["details"]
    assert details["generated_tokens"] == tiny.context - len(tiny.encode(TEXT))
    assert details["finish_reason"] == "length"


def test_penalised_text_differs(client: httpx.Client) -> None:
    ids = [token["id"] for token in generate(client, max_new_tokens=40, repetition_penalty=100.0)["details"]["tokens"]]
    assert len(set(ids)) == len(ids)


def test_models_are_chosen_by_name(client: httpx.Client) -> None:
    body: dict[str, Any] = {"inputs": TEXT, "parameters": {"max_new_tokens": 8}}
    default, fp32, int8 = (
        client.post("/generate", json=body | model).json()["generated_text"]
        for model in ({}, {"model": "tiny-fp32"}, {"model": "tiny-int8"})
    )
    assert default == fp32 != int8


def test_compat_route_streams_if_asked(client: httpx.Client) -> None:
    nothing = dict.fromkeys(["best_of", "watermark", "truncate", "typical_p", "adapter_id", "grammar", "stop", "seed"])
    body = {"inputs": TEXT, "parameters": {"max_new_tokens": 4, **nothing}}
    whole = client.post("/", json=body).json()
    streamed = client.post("/", json=body | {"stream": True}).text
    assert whole == client.post("/", json=body | {"stream": False}).json()
    assert [set(part) for part in whole] == [{"generated_text"}]
    last = json.loads(streamed.rstrip().rpartition("data:")[2])
    assert last["generated_text"] == whole[0]["generated_text"]


def test_typical_p_turns_sampling_on(client: httpx.Client) -> None:
    """As in TGI; LangChain's HuggingFaceEndpoint sends this with every request."""
    asked: dict[str, Any] = {"top_k": None, "top_p": 0.95, "typical_p": 0.95, "temperature": 0.8, "stop": []}
    asked["do_sample"] = False
    first = generate(client, max_new_tokens=20, seed=5, **asked)
    assert first == generate(client, max_new_tokens=20, seed=5, **asked)
    assert generate(client, max_new_tokens=1, typical_p=0.2)["details"]["seed"] is not None
    assert generate(client, max_new_tokens=20, seed=5, typical_p=0.2) != first
