"""POST /embeddings: one vector per token."""

import base64
from typing import Any

import httpx
import pytest
import torch

from service.models import LoadedModel
from tests.service.conftest import sample


def embeddings(client: httpx.Client, inputs: Any, **fields: Any) -> dict[str, Any]:
    answer = client.post("/embeddings", json={"inputs": inputs, **fields})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "application/json"
    return dict(answer.json())


def test_text_gives_the_vectors_of_its_tokens(client: httpx.Client, tiny: LoadedModel) -> None:
    before = sample(client, "ttgpt_prompt_tokens_total", model_name="tiny-fp32")
    answer = embeddings(client, "The old man")
    ids = tiny.encode("The old man")
    assert (answer["model"], answer["dim"]) == ("tiny-fp32", 32)
    (item,) = answer["data"]
    assert (item["index"], item["ids"]) == (0, ids)
    assert item["tokens"] == [tiny.tokenizer.id_to_token(token_id) for token_id in ids]
    assert torch.equal(torch.tensor(item["vectors"]), tiny.gpt2.wte.rows(torch.tensor(ids)))
    assert sample(client, "ttgpt_prompt_tokens_total", model_name="tiny-fp32") == before + len(ids)


def test_all_kinds_of_inputs(client: httpx.Client, tiny: LoadedModel) -> None:
    ids = [tiny.encode("The old"), tiny.encode(" man")]
    assert embeddings(client, ids) == embeddings(client, ["The old", " man"])
    assert embeddings(client, ids[0]) == embeddings(client, "The old")
    assert embeddings(client, [[3], []])["data"][1]["vectors"] == []


def test_base64_is_the_same_numbers(client: httpx.Client) -> None:
    plain = embeddings(client, ["The old", " man"], model="tiny-int8")
    coded = embeddings(client, ["The old", " man"], model="tiny-int8", encoding_format="base64")
    for expected, found in zip(plain["data"], coded["data"], strict=True):
        data = bytearray(base64.b64decode(found["vectors"]))
        vectors = torch.frombuffer(data, dtype=torch.float32).reshape(-1, 32)
        assert torch.equal(vectors, torch.tensor(expected["vectors"]))


@pytest.mark.parametrize(
    ("inputs", "hint"),
    [
        (1, "string"), ([], "at least 1"), ("", "at least 1 token"), ([1, "a"], "inputs.1"),
        ([-1], "0, not -1"), ([16384], "below the vocabulary of 16384, not 16384"), ([2**40], "less than"),
        ([0] * 2049, "2048"), ([[0] * 2048] * 65, "131072"), ([[0] * 2049, [1]], "2048"),
        (" sea" * 3000, "2048"), ([True], "integer"),
        (None, "string"), ([[1], "a"], "inputs.1"),
    ],
)  # fmt: skip
def test_refused_inputs(client: httpx.Client, inputs: Any, hint: str) -> None:
    answer = client.post("/embeddings", json={"inputs": inputs})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert answer.json()["error"].startswith("inputs")
    assert hint in answer.json()["error"]
