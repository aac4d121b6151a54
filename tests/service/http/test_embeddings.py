"""POST /embeddings: one vector per token. POST /v1/embeddings: their means, at length 1."""

import base64
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch

from compressor.artifact.gpt2_config import GPT2Config
from compressor.formats import Dense
from service.engine.engine import Engine
from service.engine.jobs import Request
from service.engine.models import LoadedModel
from service.errors import OverloadedError
from service.metrics import Metrics
from service.settings import Settings
from tests.conftest import tiny_model, write_artifact
from tests.service.conftest import sample, serving, wait_until
from tests.service.http.test_bodies import peak_mb
from tests.service.test_process import address, process


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
    assert np.array_equal(np.array(item["vectors"], np.float32), tiny.decoder.embed(np.array(ids)))
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
        ([0] * 2049, "2048"), ([[0] * 2049, [1]], "2048"),
        (" sea" * 3000, "2048"), ([True], "integer"),
        (None, "string"), ([[1], "a"], "inputs.1"),
    ],
)  # fmt: skip
def test_refused_inputs(client: httpx.Client, inputs: Any, hint: str) -> None:
    answer = client.post("/embeddings", json={"inputs": inputs})
    assert (answer.status_code, answer.json()["error_type"]) == (422, "validation")
    assert answer.json()["error"].startswith("inputs")
    assert hint in answer.json()["error"]


def test_a_text_may_have_2048_tokens_and_a_request_many_texts(client: httpx.Client) -> None:
    assert len(embeddings(client, " sea" * 2048)["data"][0]["ids"]) == 2048
    ids = [[(31 * i + j) % 16384 for j in range(2000)] for i in range(40)]
    told = embeddings(client, ids, encoding_format="base64")["data"]
    assert [item["ids"] for item in told] == ids
    assert {len(base64.b64decode(item["vectors"])) for item in told} == {2000 * 32 * 4}


@pytest.mark.parametrize("route", ["/embeddings", "/v1/embeddings"])
def test_all_texts_of_a_request_are_bounded_by_the_setting(settings: Settings, route: str) -> None:
    name = "input" if route.startswith("/v1") else "inputs"
    with serving(Settings(models=settings.models[:1], threads=1, max_tokens=5000)) as client:
        for many, status in ((2, 200), (3, 400 if route.startswith("/v1") else 422)):
            for inputs in ([[5] * 2000] * many, [" sea" * 2000] * many):
                answer = client.post(route, json={name: inputs})
                assert answer.status_code == status, answer.text
                assert status == 200 or "at most 5000 tokens (TTGPT_MAX_TOKENS)" in answer.text


def test_vectors_are_the_same_however_they_are_cut(client: httpx.Client, tiny: LoadedModel) -> None:
    """In pieces of any size, across inputs, and with empty ones between them."""
    ids = [list(range(2048)), [], list(range(7, 1500)), [3], list(range(2048))]
    expected = [torch.from_numpy(tiny.decoder.embed(np.array(row, np.int64))) for row in ids]
    for encoding in ("float", "base64"):
        for item, rows in zip(embeddings(client, ids, encoding_format=encoding)["data"], expected, strict=True):
            assert torch.equal(_vectors(item["vectors"]), rows)


def _vectors(told: list[list[float]] | str) -> torch.Tensor:
    if not told or isinstance(told, list):
        return torch.tensor(told or []).reshape(-1, 32)
    return torch.frombuffer(bytearray(base64.b64decode(told)), dtype=torch.float32).reshape(-1, 32)


class Choosy(Engine):
    """Refuses every second piece of work, from the second one on."""

    asked = 0

    def submit_all(self, requests: Sequence[Request[Any]]) -> None:
        self.asked += 1
        if self.asked % 2 == 0:
            raise OverloadedError(1)
        super().submit_all(requests)


def test_an_answer_that_has_begun_waits_for_its_place(settings: Settings) -> None:
    engine = Choosy(settings, Metrics())
    with serving(settings, engine) as client:
        body = {"inputs": [[i % 999 for i in range(2000)]] * 8, "encoding_format": "base64"}  # 8 pieces
        answer = client.post("/embeddings", json=body).json()
        assert [item["ids"] for item in answer["data"]] == body["inputs"]
        assert engine.asked == 1 + 2 * 7
        refused = client.post("/embeddings", json=body)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")


def test_what_open_answers_occupy_is_bounded(settings: Settings) -> None:
    """A client that does not read keeps its tokens; when it has gone, others get them."""
    body = {"inputs": [[5] * 2000] * 30}
    with serving(Settings(models=settings.models[:1], threads=1)) as client:
        with client.stream("POST", "/embeddings", json=body), client.stream("POST", "/embeddings", json=body):
            refused = client.post("/v1/embeddings", json={"input": [[5] * 2000] * 30})
            assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
            assert refused.json()["error"]["code"] == "overloaded"
            assert client.post("/embeddings", json={"inputs": "The sea"}).status_code == 200
            assert sample(client, "ttgpt_requests_rejected_total", reason="queue_tokens") == 1
        wait_until(lambda: client.post("/v1/embeddings", json={"input": [[5] * 2000] * 65}).status_code == 200)


def test_a_large_answer_is_never_in_memory(tmp_path: Path) -> None:
    """82 MB of vectors, 109 MB of base64."""
    config = GPT2Config(vocab_size=16384, n_positions=64, n_embd=512, n_layer=1, n_head=4, n_inner=64, eos_token_id=0)
    folder = write_artifact(tmp_path / "wide", tiny_model(config))
    body = {"inputs": [[i % 16384 for i in range(2000)]] * 20, "encoding_format": "base64"}
    with process(folder, "--port", 0) as child:
        url = address(child)
        wait_until(lambda: httpx.get(f"{url}/readyz").status_code == 200)
        httpx.post(f"{url}/embeddings", json=body | {"inputs": body["inputs"][:1]}, timeout=60)
        before = peak_mb(child.pid)
        with httpx.stream("POST", f"{url}/embeddings", json=body, timeout=60) as answer:
            assert sum(len(piece) for piece in answer.iter_bytes()) > 109_000_000
        assert peak_mb(child.pid) - before < 40


@pytest.mark.parametrize("encoding", ["float", "base64"])
def test_openais_vectors_have_length_1(artifacts: list[Path], tmp_path: Path, encoding: str) -> None:
    model = tiny_model(seed=4)
    table = model.matrices()["wte"].dense().clone()
    table[7] = 0
    table[8], table[9] = table[10] * 1e-20, table[10] * 1e18
    folder = write_artifact(tmp_path / "zero", model.with_matrices({"wte": Dense.of(table, "fp32")}))
    ids = [[5], [5, 6], [7], [7, 7], [8], [9, 9], [10], list(range(2000))]
    with serving(Settings(models=(folder,), threads=1)) as client:
        answer = client.post("/v1/embeddings", json={"input": ids, "encoding_format": encoding}).json()
    told = [item["embedding"] for item in answer["data"]]
    found = torch.cat([_vectors(vector if isinstance(vector, str) else [vector]) for vector in told]).double()
    assert torch.allclose(found.norm(dim=1), torch.tensor([1, 1, 0, 0, 1, 1, 1, 1.0]).double(), atol=1e-6)
    for vector, row in zip(found, ids, strict=True):
        mean = table[row].double().mean(0)
        assert torch.allclose(vector * mean.norm(), mean, atol=1e-6 * mean.norm().item())


def test_a_slow_reader_is_cut_off_at_the_deadline(settings: Settings) -> None:
    body = {"inputs": [[5] * 2000] * 60}
    short = Settings(models=settings.models[:1], threads=1, request_seconds=0.5, max_tokens=120_000)
    with serving(short) as client:
        with client.stream("POST", "/embeddings", json=body) as answer:
            time.sleep(1)
            with pytest.raises(httpx.RemoteProtocolError, match="incomplete"):
                answer.read()
        wait_until(lambda: client.post("/embeddings", json={"inputs": "The sea"}).status_code == 200)
