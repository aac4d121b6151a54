"""What TGI has besides generation, and huggingface_hub's client of it."""

import os
import subprocess
import sys
from typing import Any

import httpx
import pytest

from service.engine.models import LoadedModel

TEXT = "The old man looked at the sea"


CLIENT = """
import sys
from huggingface_hub import InferenceClient

hub = InferenceClient(sys.argv[1])
options = {"max_new_tokens": 12, "seed": 3, "do_sample": True}
whole = hub.text_generation(sys.argv[2], details=True, **options)
events = list(hub.text_generation(sys.argv[2], details=True, stream=True, **options))
assert "".join(event.token.text for event in events) == whole.generated_text == events[-1].generated_text
assert "".join(hub.text_generation(sys.argv[2], stream=True, **options)) == whole.generated_text
hub.text_generation(sys.argv[2])  # all defaults
best = hub.text_generation(
    sys.argv[2], details=True, best_of=3, frequency_penalty=0.5, top_n_tokens=4, truncate=5, typical_p=0.9,
    decoder_input_details=True, stop=list("abcdefghijklmnop"), **options,
).details
assert len(best.best_of_sequences) == 2 and len(best.prefill) == 5
assert all(len(tops) == 4 for tops in best.top_tokens)
endpoint = InferenceClient(sys.argv[1], provider="hf-inference")
assert endpoint.get_endpoint_info()["model_id"] == "tiny-fp32"
assert endpoint.health_check()
"""


DEFAULTS: dict[str, dict[str, Any]] = {
    "text_generation 0.7": {
        "best_of": None, "decoder_input_details": False, "details": True, "do_sample": False, "frequency_penalty": None,
        "grammar": None, "repetition_penalty": None, "return_full_text": False, "seed": None, "stop": [],
        "temperature": None, "top_k": None, "top_n_tokens": None, "top_p": None, "truncate": None, "typical_p": None,
        "watermark": False,
    },
    "neutral values": {
        "adapter_id": None, "best_of": 1, "decoder_input_details": False, "do_sample": False, "frequency_penalty": 0.0,
        "repetition_penalty": 1.0, "seed": -1, "stop": [], "temperature": 1.0, "top_k": 0, "top_n_tokens": 0,
        "top_p": 1.0, "truncate": None, "watermark": False,
    },
    "everything off": {"top_k": -1, "seed": -1, "stop": None, "temperature": None},
    "what TGI lacks, off": {
        "min_p": 0, "presence_penalty": 0, "logit_bias": {}, "min_tokens": 0, "ignore_eos": False, "stop_token_ids": [],
        "truncate": 64, "best_of": 1,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_of_clients_change_nothing(client: httpx.Client, name: str) -> None:
    plain = {"max_new_tokens": 12, "details": True}
    expected = client.post("/generate", json={"inputs": TEXT, "parameters": plain}).json()
    for route, stream in (("/generate", False), ("/", False)):
        body = {"inputs": TEXT, "parameters": plain | DEFAULTS[name], "stream": stream}
        answer = client.post(route, json=body)
        assert answer.status_code == 200, answer.text
        assert answer.json() == ([expected] if route == "/" else expected)


def test_the_official_client(client: httpx.Client) -> None:
    """In a process of its own, since it reads when it is imported whether it is offline, as the other tests are."""
    command = [sys.executable, "-c", CLIENT, str(client.base_url).rstrip("/"), TEXT]
    environment = os.environ | {"HF_HUB_OFFLINE": "0"}
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("text", ["The old man", "", "naïve 🙂🙃 漢字\n\ttabs"])
def test_tokens_there_and_back(client: httpx.Client, tiny: LoadedModel, text: str) -> None:
    tokens = client.post("/tokenize", json={"inputs": text}).json()
    ids = [token["id"] for token in tokens]
    assert ids == tiny.encode(text)
    assert all(token["text"] == text[token["start"] : token["stop"]] for token in tokens)
    assert client.post("/detokenize", json={"ids": ids}).json() == {"text": text}


def test_refused_tokens(client: httpx.Client) -> None:
    for route, body in (
        ("/detokenize", {"ids": [16384]}),
        ("/detokenize", {"ids": [0] * 2049}),
        ("/detokenize", {"ids": [-1]}),
        ("/tokenize", {"inputs": " sea" * 2049}),
    ):
        answer = client.post(route, json=body)
        assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")


def test_info_tells_the_limits_and_the_footprint(client: httpx.Client) -> None:
    info = client.get("/info").json()
    assert (info["max_total_tokens"], info["max_input_tokens"], info["max_stop_sequences"]) == (64, 63, 16)
    assert [model["model_id"] for model in info["models"]] == ["tiny-fp32", "tiny-int8"]
    for model in info["models"]:
        assert 0 < model["bytes_disk"] <= model["bytes_dense_fp32"]
        assert model["perplexity_ratio"] == 1.25


def test_timing_headers(client: httpx.Client, tiny: LoadedModel) -> None:
    for route, body in (
        ("/generate", {"inputs": TEXT, "parameters": {"max_new_tokens": 4}}),
        ("/", {"inputs": TEXT, "parameters": {"max_new_tokens": 4}}),
        ("/v1/completions", {"prompt": TEXT, "max_tokens": 4}),
    ):
        told = client.post(route, json=body).headers
        assert (told["x-compute-type"], told["x-generated-tokens"]) == ("cpu", "4")
        assert told["x-prompt-tokens"] == str(len(tiny.encode(TEXT)))
        parts = [int(told[f"x-{name}-time"]) for name in ("validation", "queue", "inference")]
        assert sum(parts) <= int(told["x-total-time"]) + 3  # each is rounded
